"""Predictions for a split: each clip encoded once for all its questions, written as they come, and the same bytes every time.

The clips form fixed batches in clip order. A process takes every n-th batch; a file that was cut off is taken up again
at the last whole batch. So an interrupted, a repeated and a divided evaluation all make the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.errors import DataError
from mirasol_cli.evaluation.answerer import Answerer, Question
from mirasol_cli.evaluation.controls import altered, derangement
from mirasol_cli.evaluation.protocols import Protocol, judge
from mirasol_cli.evaluation.subsets import choose
from mirasol_cli.files import disk_problem, read_json, write_atomic, write_json
from mirasol_cli.shards.format import json_line

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
        kept = set(self.split.kept)
        present = [clip for clip, _ in self.clips if clip in kept]
        return derangement(present, self.seed) if self.control == "swap-media" else {clip: clip for clip in present}


def predict(plan: Plan, answerer: Answerer, numbers: Sequence[int] | None = None) -> Iterator[list[dict]]:
    """Rows of one batch after the other; `numbers` picks batches (all by default)."""
    shown = plan.media_of()
    for number in range(batches_of(plan, answerer.settings.batch_clips)) if numbers is None else numbers:
        size = answerer.settings.batch_clips
        yield _predict_batch(plan, answerer, plan.clips[number * size : (number + 1) * size], shown)


def batches_of(plan: Plan, batch_clips: int) -> int:
    return -(-len(plan.clips) // batch_clips)


def _predict_batch(plan: Plan, answerer: Answerer, clips: list[tuple[int, list[dict]]], shown: dict[int, int]) -> list[dict]:
    present = [(clip, texts) for clip, texts in clips if clip in shown]
    answers: dict[int, list[dict]] = {}
    if present:
        samples = [altered(plan.split.media(shown[clip]), plan.control, clip, plan.seed) for clip, _ in present]
        memory = answerer.encode(samples)
        questions = [[Question(text["question"], text["context"], str(text["id"])) for text in texts] for _, texts in present]
        results = _answer(plan, answerer, memory, questions, [texts for _, texts in present])
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
            rows.append(judge(row, plan.protocol))
    return rows


def _answer(plan: Plan, answerer: Answerer, memory: Any, questions: list[list[Question]], texts: list[list[dict]]) -> list[list[dict]]:
    """prediction, logprob and, where candidates are ranked, scores of every question."""
    protocol = plan.protocol
    if protocol.generates:
        results = [
            [{"prediction": answer.text, "logprob": round(answer.logprob, 4)} for answer in row]
            for row in answerer.answers(memory, questions)
        ]
    else:
        results = [[{} for _ in row] for row in questions]
    if protocol.ranks_labels and plan.labels:
        once = [row[:1] for row in questions]  # every text of a classification set asks the same
        scores = answerer.likelihoods(memory, once, [[plan.labels] for _ in once])
        for row, per_question in zip(results, scores, strict=True):
            for result in row:
                result["scores"] = [round(value, 4) for value in per_question[0]]
    if not protocol.generates:
        choices = [[text["choices"] for text in row] for row in texts]
        scores = answerer.likelihoods(memory, questions, choices, per_token=True)
        for row, row_scores, row_choices in zip(results, scores, choices, strict=True):
            for result, values, options in zip(row, row_scores, row_choices, strict=True):
                if not options:
                    raise DataError("a multiple-choice question has no choices", "use the task `oe` or `qa` for open questions")
                best = max(range(len(values)), key=values.__getitem__)
                result |= {"prediction": options[best], "logprob": round(values[best], 4), "scores": [round(value, 4) for value in values]}
    return results


# ------------------------------------------------------------------------------------------------------- the growing file


def write_predictions(
    folder: Path, plan: Plan, answerer: Answerer, origin: dict, *, rank: int = 0, size: int = 1, progress: Progress | None = None
) -> Path:
    """This process's share of the predictions, appended batch by batch to its file in `folder`; returns that file.

    Args:
        origin: what the predictions depend on. An unfinished file of the same origin is taken up again, any other is replaced.
    """
    name = PREDICTIONS if size == 1 else part_name(rank, size)
    path, origin_path = folder / name, folder / (ORIGIN if size == 1 else f"{name}.origin")
    numbers = list(range(rank, batches_of(plan, answerer.settings.batch_clips), size))
    counts = _rows_per_batch(plan, answerer.settings.batch_clips)
    origin = {**origin, "processes": size}
    done = 0
    if path.is_file() and origin_path.is_file() and read_json(origin_path) == origin:
        done = _keep_whole_batches(path, [counts[number] for number in numbers])
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
                    progress(min(finished * answerer.settings.batch_clips * size, len(plan.clips)), len(plan.clips))
    except OSError as error:
        raise disk_problem(error, path) from error
    return path


def merge_parts(folder: Path, plan: Plan, batch_clips: int, size: int, origin: dict) -> Path:
    """`predictions.jsonl` from the parts of `size` processes, in the order a single process would have written."""
    counts = _rows_per_batch(plan, batch_clips)
    with ExitStack() as stack:
        parts = [stack.enter_context(open(folder / part_name(rank, size), "rb")) for rank in range(size)]
        content = b"".join(parts[number % size].readline() for number, count in enumerate(counts) for _ in range(count))
    write_atomic(folder / PREDICTIONS, content)
    write_json(folder / ORIGIN, {**origin, "processes": 1})
    for rank in range(size):
        (folder / part_name(rank, size)).unlink()
        (folder / f"{part_name(rank, size)}.origin").unlink()
    return folder / PREDICTIONS


def part_name(rank: int, size: int) -> str:
    return f"predictions.part-{rank}-of-{size}.jsonl"


def _rows_per_batch(plan: Plan, size: int) -> list[int]:
    return [sum(len(texts) for _, texts in plan.clips[start : start + size]) for start in range(0, len(plan.clips), size)]


def _keep_whole_batches(path: Path, counts: list[int]) -> int:
    """Cut the file back to whole batches; returns how many it holds. A cut last line goes with its batch."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    kept = batches = 0
    for count in counts:
        if kept + count > len(lines):
            break
        kept, batches = kept + count, batches + 1
    with open(path, "r+b") as file:
        file.truncate(sum(map(len, lines[:kept])))
    return batches
