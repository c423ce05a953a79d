"""Rows of predictions to the figures of results.json: scores, comparison with a baseline, the table of controls."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.errors import DataError
from mirasol_cli.evaluation.bootstrap import compare
from mirasol_cli.evaluation.job import EvaluationJob, Options
from mirasol_cli.evaluation.metrics import exact
from mirasol_cli.evaluation.protocols import Protocol, gold_answers, score_row
from mirasol_cli.evaluation.scoring import score
from mirasol_cli.evaluation.submissions import read_predictions

if TYPE_CHECKING:
    from mirasol_cli.shards.reader import ShardSplit

MISSING_LISTED = 1000
"""Missing videos named in results.json; all of them are rows of predictions.jsonl."""


def question_ids(split: ShardSplit, task: str) -> frozenset[str]:
    """Of all questions of the split, whatever part of it is evaluated."""
    return frozenset(text["id"] for text in split.texts(task))


def align_to_questions(given: Mapping[str, dict], questions: Sequence[dict], present: Set[int], protocol: Protocol) -> list[dict]:
    """Every expected question once, in order, with the answer that `given` (id -> row) has for it.

    What it does not answer counts as wrong: as `missing` where the clip is not among those `present`, else as `unanswered`.
    """
    taken = ("prediction", "logprob", "scores", "missing", "unanswered", "shown")
    rows = []
    for question in questions:
        why_not = "unanswered" if question["clip"] in present else "missing"
        answer = given.get(question["id"]) or {"prediction": "", why_not: True}
        rows.append(score_row({**question, **{key: answer[key] for key in taken if key in answer}}, protocol))
    return rows


def prepared_share(split: ShardSplit, task: str, protocol: Protocol) -> dict[str, Any]:
    """How much of the split as it was published is at hand: clips by the annotation, questions by what is known of the set."""
    expected, kept = split.index.counts.get("expected", len(split.clips)), len(split.kept)
    return {
        "clips": expected, "present": kept, "share": kept / expected if expected else 0.0,
        "questions": split.index.tasks[task].texts, "published_questions": protocol.sizes.get(split.name),
    }  # fmt: skip


def results_of(
    job: EvaluationJob, rows: list[dict], labels: Sequence[str], options: Options, provenance: dict[str, Any], split: ShardSplit | None
) -> dict[str, Any]:
    """What results.json holds. `provenance` is how the rows were made; `split` is None where only a file of predictions is at hand."""
    scored = score(rows, job.protocol, labels, seed=job.recipe.eval.seed)
    missing = sorted({str(row["video"]) for row in rows if row.get("missing")})
    protocol = job.protocol
    results: dict[str, Any] = {
        "dataset": job.dataset, "task": job.task, "split": job.split, "n": len(rows),
        "missing": sum(bool(row.get("missing")) for row in rows),
        "unanswered": sum(bool(row.get("unanswered")) for row in rows), "limited": provenance.get("limit") is not None,
        "metrics": scored.metrics, "counts": scored.counts, "by_type": scored.by_type, "groups": scored.groups,
        "intervals": scored.intervals,
        "protocol": {"name": protocol.name, "statement": protocol.statement, "paper": protocol.paper or None, **provenance},
        "notes": scored.notes, "missing_videos": missing[:MISSING_LISTED],
    }  # fmt: skip
    if split:
        results["prepared"] = prepared = prepared_share(split, job.task, protocol)
        if prepared["published_questions"] not in (None, prepared["questions"]):
            results["notes"].append(
                f"the annotation at hand has {prepared['questions']:,} questions where the published split '{split.name}' has "
                f"{prepared['published_questions']:,}: the figures are not those of the benchmark"
            )
    if job.subset:
        clips = len({row["clip"] for row in rows})
        results["subset"] = {"of": job.subset.split, "clips": clips, "purpose": job.subset.purpose}
        if split:
            results["subset"]["of_clips"] = len(split.clips)
    if options.baseline:
        results["comparison"] = comparison(rows, options.baseline, job, question_ids(split, job.task) if split else None)
    return results


def comparison(rows: list[dict], baseline: Path, job: EvaluationJob, known: Set[str] | None) -> dict[str, Any]:
    """Paired with the baseline's predictions for the same questions, by video; `known` are the ids of the whole split."""
    questions = [{**row, "prediction": None} for row in rows]
    theirs = read_predictions(baseline, questions, known)
    both = [(row, score_row({**row, "prediction": theirs[row["id"]]["prediction"]}, job.protocol)) for row in rows if row["id"] in theirs]
    both = [(row, other) for row, other in both if row["correct"] is not None]
    if not both:
        raise DataError(f"'{baseline}' shares no labelled question with these predictions", "compare predictions of the same split")
    result: dict[str, Any] = {"baseline": str(baseline), "left_out": len(rows) - len(both)}
    for name, key in (("exact_match", "correct"), ("exact_match_normalised", "correct_normalised")):
        mine = [float(row[key]) for row, _ in both]
        baseline_values = [float(other[key]) for _, other in both]
        videos = [str(row["video"]) for row, _ in both]
        result[name] = dataclasses.asdict(compare(mine, baseline_values, videos, job.recipe.eval.seed))
    return result


def control_summary(rows: list[dict], control: str | None, plain: list[dict], protocol: Protocol) -> dict[str, Any]:
    """One line of the controls table; `plain` are the rows with everything shown."""
    judged = [row for row in rows if row["correct"] is not None]
    line: dict[str, Any] = {"n": len(judged)}
    if judged:
        line |= {"exact_match": sum(row["correct"] for row in judged) / len(judged)}
        line |= {"exact_match_normalised": sum(row["correct_normalised"] for row in judged) / len(judged)}
        verdicts: dict[str, list[bool]] = defaultdict(list)
        for row in judged:
            verdicts[protocol.type_of(row)].append(bool(row["correct"]))
        line["by_type"] = {kind: sum(right) / len(right) for kind, right in verdicts.items()}
    before = {row["id"]: row["prediction"] for row in plain}
    line["changed_answers"] = sum(row["prediction"] != before.get(row["id"]) for row in rows) / max(len(rows), 1)
    if control == "swap-media":
        line["follows_media"] = follows_media(rows, protocol)
    return line


def follows_media(rows: list[dict], protocol: Protocol) -> dict[str, Any]:
    """How often the answer is one that belongs to the clip that was shown, over questions which that clip is asked as well."""
    asked: dict[tuple[int, str, str], list[dict]] = {}
    for row in rows:
        asked.setdefault((row["clip"], row["question"], row.get("context") or ""), []).append(row)
    follows = keeps = n = 0
    for row in rows:
        same_question = asked.get((row.get("shown", -1), row["question"], row.get("context") or ""), [])
        answers = [answer for other in same_question for answer in gold_answers(other, protocol)]
        if answers:
            n += 1
            follows += exact(row["prediction"] or "", answers)
            keeps += bool(row["correct"])
    return {"n": n, "follows": follows, "keeps": keeps, "share": follows / n if n else None}
