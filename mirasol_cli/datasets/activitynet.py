"""ActivityNet-QA: free answers about whole untrimmed videos, questions and answers in two files joined by `question_id`."""

from __future__ import annotations

from pathlib import Path

from mirasol_cli.datasets.example import Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import build_split, finish
from mirasol_cli.datasets.tables import json_records, text_of
from mirasol_cli.errors import DataError

NAME, TITLE = "activitynet", "ActivityNet-QA"
LICENCE = "ActivityNet-QA: the LICENSE file says Apache-2.0, the README non-commercial use only: treat as non-commercial"
SOURCE = "GitHub repository MILVLG/activitynet-qa, folder dataset/; videos: the request form of ActivityNet"
TASKS = ("qa",)
TYPES = tuple("012345678")
"""As in the files; `evaluation.protocols` has their names."""


def candidates(clip: ClipSpan) -> list[Candidate]:
    """`v_<id>` of the official download, `<id>` of others. An id may itself start with `v_` or `-`, so nothing is ever stripped."""
    return [Candidate(f"v_{clip.video}"), Candidate(clip.video)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """The splits whose questions are there; without its answers a split has no labels."""
    files = AnnotationFiles(root, prefer="activitynet")
    splits = []
    for split in ("train", "val", "test"):
        questions = files.first(rf"{split}_q\.json")
        if questions:
            splits.append(_split(split, questions, files.first(rf"{split}_a\.json")))
    if not splits:
        raise files.missing(TITLE, "'train_q.json', 'train_a.json' and the same for val and test", SOURCE)
    absent = [split for split in ("train", "val", "test") if split not in {s.name for s in splits}]
    if absent:
        files.notes.append(f"no questions of the split {' or '.join(absent)} were found")
    return finish(splits, task, TITLE, files.notes)


def _split(split: str, questions: Path, answers: Path | None) -> Split:
    answer_of = _answers(answers) if answers else {}
    texts, unanswered = [], 0
    for number, row in json_records(questions):
        key = text_of(questions, number, row, "question_id")
        if answers and key not in answer_of:
            unanswered += 1
            continue
        answer, kind = answer_of.pop(key, (None, ""))
        clip = ClipSpan(video=text_of(questions, number, row, "video_name"))
        texts.append(Text(id=key, clip=clip, question=text_of(questions, number, row, "question"), answer=answer, type=kind))
    notes = []
    if answers is None:
        notes.append(f"no '{split}_a.json' beside '{questions.name}': the split has no labels and cannot be scored")
    if unanswered:
        notes.append(f"{unanswered} questions without an answer in '{split}_a.json' were left out")
    if answer_of:
        notes.append(f"{len(answer_of)} answers in '{split}_a.json' belong to no question")
    return build_split(split, "qa", texts, notes=notes)


def _answers(path: Path) -> dict[str, tuple[str | None, str]]:
    """question_id -> (answer, type)."""
    answers: dict[str, tuple[str | None, str]] = {}
    for number, row in json_records(path):
        key = text_of(path, number, row, "question_id")
        kind = text_of(path, number, row, "type")
        if kind not in TYPES:
            raise DataError(f"'{path}' entry {number}: type {kind} is not one of 0 to 8")
        if key in answers:
            raise DataError(f"'{path}' entry {number}: a second answer to '{key}'")
        answers[key] = (text_of(path, number, row, "answer"), kind)
    return answers
