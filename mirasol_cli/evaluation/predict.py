"""Predictions for a split: each clip encoded once for all its questions, written as they come, and the same bytes every time.

The clips form fixed batches in clip order. A process takes every n-th batch; a file that was cut off is taken up again
at the last whole batch. So an interrupted, a repeated and a divided evaluation all make the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.errors import DataError
from mirasol_cli.evaluation.controls import MODEL_CONTROLS, apply_control, derangement
from mirasol_cli.evaluation.protocols import Protocol, score_row
from mirasol_cli.evaluation.subsets import choose
from mirasol_cli.files import disk_problem, json_line, read_json, read_jsonl, sha256_of, write_atomic, write_json
from mirasol_cli.inference.answerer import Answerer, Question

if TYPE_CHECKING:
    from mirasol_cli.shards.reader import ShardSplit

PREDICTIONS, ORIGIN = "predictions.jsonl", "predictions.origin.json"
Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all) after every batch."""


@dataclass(frozen=True)
class Plan:
    """The questions of a split in file order: clip after clip, each with its texts as the annotation orders them."""

    split: ShardSplit
    protocol: Protocol
    labels: tuple[str, ...]
    clips: list[tuple[int, list[dict]]]  # clip number, its texts
    control: str | None
    seed: int

    @staticmethod
    def of(
        split: ShardSplit, task: str, protocol: Protocol, *, sample: int | None = None, limit: int | None = None,
        control: str | None = None, seed: int = 0,
    ) -> Plan:  # fmt: skip
        """Of the clips that have questions, `sample` keeps so many drawn by the hash of their keys, then `limit` the first ones.

        Raises DataError if there is no question at all.
        """
        texts: dict[int, list[dict]] = {}
        for text in split.texts(task):
            texts.setdefault(int(text["clip"]), []).append(text)
        clips = sorted(texts.items())
        if sample is not None:
            keys = {clip: split.clips[clip]["key"] for clip in texts}
            chosen = choose(keys.values(), sample)
            clips = [(clip, rows) for clip, rows in clips if keys[clip] in chosen]
        clips = clips[:limit]
        if not clips:
            raise DataError(f"'{split.path}' has no questions of task '{task}'", "prepare a split that has some")
        labels = tuple(split.index.tasks[task].labels)
        return Plan(split, protocol, labels, clips, control, seed)

    def questions(self) -> list[dict]:
        """All rows without a prediction yet."""
        return [self.row(clip, text) for clip, texts in self.clips for text in texts]

    def row(self, clip: int, text: dict) -> dict:
        span = self.split.clips[clip]
        row = {"id": text["id"], "clip": clip, "video": span["video"], "start_s": span["start_s"], "end_s": span["end_s"]}
        row |= {key: text[key] for key in ("question", "context", "type", "answer")}
        row |= {key: text[key] for key in ("references", "choices") if text[key]}
        return row

    def media_of(self) -> dict[int, int]:
        """Clip -> the clip whose media is shown with it; clips without media are left out."""
        present = [clip for clip, _ in self.clips if self.split.has(clip)]
        return derangement(present, self.seed) if self.control == "swap-media" else {clip: clip for clip in present}


def predict(plan: Plan, answerer: Answerer, numbers: Sequence[int] | None = None) -> Iterator[list[dict]]:
    """Rows of one batch after the other; `numbers` picks batches (all by default)."""
    shown = plan.media_of()
    for number in range(batches_of(plan, answerer.settings.batch_size)) if numbers is None else numbers:
        size = answerer.settings.batch_size
        yield _predict_batch(plan, answerer, plan.clips[number * size : (number + 1) * size], shown)


def batches_of(plan: Plan, batch_size: int) -> int:
    return -(-len(plan.clips) // batch_size)


def _predict_batch(plan: Plan, answerer: Answerer, clips: list[tuple[int, list[dict]]], shown: dict[int, int]) -> list[dict]:
    present = [(clip, texts) for clip, texts in clips if clip in shown]
    answers: dict[int, list[dict]] = {}
    if present:
        samples = [apply_control(plan.split.media(shown[clip]), plan.control, clip, plan.seed) for clip, _ in present]
        text_kv = answerer.encode(samples, plan.control if plan.control in MODEL_CONTROLS else None)
        questions = [[Question(text["question"], text["context"], str(text["id"])) for text in texts] for _, texts in present]
        results = _answer(plan, answerer, text_kv, questions, [texts for _, texts in present])
        answers = {clip: result for (clip, _), result in zip(present, results, strict=True)}
    rows = []
    for clip, texts in clips:
        for position, text in enumerate(texts):
            row = plan.row(clip, text)
            if clip not in answers:
                row |= {"prediction": "", "logprob": None, "missing": True}
            else:
                row |= answers[clip][position]
                if plan.control == "swap-media":
                    row["shown"] = shown[clip]
            rows.append(score_row(row, plan.protocol))
    return rows


def _answer(plan: Plan, answerer: Answerer, text_kv: Any, questions: list[list[Question]], texts: list[list[dict]]) -> list[list[dict]]:
    """prediction, logprob and, where candidates are ranked, scores of every question."""
    protocol = plan.protocol
    if protocol.generates:
        results = [
            [{"prediction": answer.text, "logprob": round(answer.logprob, 4)} for answer in row]
            for row in answerer.answers(text_kv, questions)
        ]
    else:
        results = [[{} for _ in row] for row in questions]
    if protocol.ranks_labels and plan.labels:
        once = [row[:1] for row in questions]  # every text of a classification set asks the same
        scores = answerer.likelihoods(text_kv, once, [[plan.labels] for _ in once])
        for row, per_question in zip(results, scores, strict=True):
            for result in row:
                result["scores"] = [round(value, 4) for value in per_question[0]]
    if not protocol.generates:
        choices = [[text["choices"] for text in row] for row in texts]
        scores = answerer.likelihoods(text_kv, questions, choices, per_token=True)
        for row, row_scores, row_choices in zip(results, scores, choices, strict=True):
            for result, values, options in zip(row, row_scores, row_choices, strict=True):
                if not options:
                    raise DataError("a multiple-choice question has no choices", "use the task `oe` or `qa` for open questions")
                best = max(range(len(values)), key=values.__getitem__)
                result |= {"prediction": options[best], "logprob": round(values[best], 4), "scores": [round(value, 4) for value in values]}
    return results


# ------------------------------------------------------------------------------------------------------- the growing file


def read_origin(path: Path) -> dict[str, Any]:
    """What the predictions beside it depend on; empty where that is not known."""
    try:
        origin = read_json(path)
    except DataError:
        return {}
    return origin if isinstance(origin, dict) else {}


def is_finished(folder: Path, origin: dict) -> bool:
    """Whether `predictions.jsonl` holds all answers of this origin, as they were written.

    Raises DataError where it was changed since: a figure of it would not be the model's own.
    """
    stored = read_origin(folder / ORIGIN)
    digest = stored.pop("sha256", None)
    path = folder / PREDICTIONS
    if digest is None or stored != {**origin, "processes": 1} or not path.is_file():
        return False
    if sha256_of(path) != digest:
        raise DataError(
            f"'{path}' is not as it was written, so its figures would not be those of the checkpoint",
            "move it elsewhere: the answers are then made again, and `--predictions FILE` scores the changed ones",
        )
    return True


def write_predictions(
    folder: Path, plan: Plan, answerer: Answerer, origin: dict, *, rank: int = 0, size: int = 1, progress: Progress | None = None
) -> Path:
    """This process's share of the predictions, appended batch by batch to its file in `folder`; returns that file.

    Args:
        origin: what the predictions depend on. An unfinished file of the same origin is taken up again, any other is replaced.
    """
    name = PREDICTIONS if size == 1 else part_name(rank, size)
    path, origin_path = folder / name, folder / (ORIGIN if size == 1 else f"{name}.origin")
    numbers = list(range(rank, batches_of(plan, answerer.settings.batch_size), size))
    batches = _ids_of_batches(plan, answerer.settings.batch_size)
    origin = {**origin, "processes": size}
    stored = read_origin(origin_path)
    stored.pop("sha256", None)
    done = 0
    if path.is_file() and stored == origin:
        done = _keep_whole_batches(path, [batches[number] for number in numbers])
    else:
        path.unlink(missing_ok=True)
        write_json(origin_path, origin)
        write_atomic(path, b"")
    try:
        with open(path, "ab") as file:
            for finished, rows in enumerate(predict(plan, answerer, numbers[done:]), done + 1):
                file.write("".join(json_line(row) + "\n" for row in rows).encode())
                file.flush()
                if progress:
                    progress(min(finished * answerer.settings.batch_size * size, len(plan.clips)), len(plan.clips))
    except OSError as error:
        raise disk_problem(error, path) from error
    return path


def finish_predictions(folder: Path, plan: Plan, batch_size: int, size: int, origin: dict) -> None:
    """`predictions.jsonl` from the parts of `size` processes, in the order a single process would have written, marked as finished."""
    if size > 1:
        batches = _ids_of_batches(plan, batch_size)
        with ExitStack() as stack:
            parts = [stack.enter_context(open(folder / part_name(rank, size), "rb")) for rank in range(size)]
            content = b"".join(parts[number % size].readline() for number, ids in enumerate(batches) for _ in ids)
        write_atomic(folder / PREDICTIONS, content)
    read_finished(folder, plan)
    write_json(folder / ORIGIN, {**origin, "processes": 1, "sha256": sha256_of(folder / PREDICTIONS)})
    for rank in range(size if size > 1 else 0):
        (folder / part_name(rank, size)).unlink()
        (folder / f"{part_name(rank, size)}.origin").unlink()


def read_finished(folder: Path, plan: Plan) -> list[dict]:
    """The rows of `predictions.jsonl`. Raises DataError unless they answer exactly the questions of the plan, in its order."""
    path = folder / PREDICTIONS
    rows = read_jsonl(path)
    expected = [str(text["id"]) for _, texts in plan.clips for text in texts]
    if [_id_of(row) for row in rows] != expected:
        raise DataError(
            f"'{path}' does not answer exactly the {len(expected)} questions of this evaluation: it has {len(rows)} rows, "
            f"{len({_id_of(row) for row in rows} & set(expected))} of them about these questions",
            "remove it and run the command again; only one evaluation at a time may write there",
        )
    return rows


def part_name(rank: int, size: int) -> str:
    return f"predictions.part-{rank}-of-{size}.jsonl"


def _ids_of_batches(plan: Plan, size: int) -> list[list[str]]:
    """The ids of the questions of every batch of `size` clips."""
    return [
        [str(text["id"]) for _, texts in plan.clips[start : start + size] for text in texts] for start in range(0, len(plan.clips), size)
    ]


def _id_of(row: Any) -> str | None:
    return str(row.get("id")) if isinstance(row, dict) else None


def _keep_whole_batches(path: Path, batches: list[list[str]]) -> int:
    """Cut the file back to the whole batches it begins with; returns how many. A cut last line goes with its batch."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = done = 0
    for ids in batches:
        if [_id_on(line) for line in lines[kept : kept + len(ids)]] != ids:
            break
        kept, done = kept + len(ids), done + 1
    with open(path, "r+b") as file:
        file.truncate(sum(map(len, lines[:kept])))
    return done


def _id_on(line: bytes) -> str | None:
    """The id of a row; None for a line that is cut off or damaged."""
    try:
        return _id_of(json.loads(line)) if line.endswith(b"\n") else None
    except ValueError:
        return None
