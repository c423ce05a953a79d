"""EPIC-SOUNDS: sound events in long first-person kitchen videos, 44 classes, from 0.2 s to minutes long.

The time stamps are used, never the sample columns (older releases hold seconds or values ten times off there). Events
shorter than the context window are widened by `clip.min_span_s`, not here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mirasol_cli.datasets.example import LABEL_PROMPT, Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import build_split, finish
from mirasol_cli.datasets.tables import csv_header, csv_records, span_at, text_of
from mirasol_cli.errors import DataError

NAME, TITLE = "epic-sounds", "EPIC-SOUNDS"
LICENCE = "EPIC-SOUNDS and EPIC-KITCHENS-100: CC BY-NC 4.0 (non-commercial)"
SOURCE = "GitHub repository epic-kitchens/epic-sounds-annotations; videos: the EPIC-KITCHENS-100 download scripts"
TASKS = ("label",)
CLASSES = 44
FILES = {
    "train": r"EPIC_Sounds_train\.csv", "val": r"EPIC_Sounds_validation\.csv", "test": r"EPIC_Sounds_recognition_test_timestamps\.csv"
}  # fmt: skip


def candidates(clip: ClipSpan) -> list[Candidate]:
    """`P01_01.MP4` in any folder: the 2018 layout's train/test folders do not match today's splits."""
    return [Candidate(clip.video, whole=False)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """The splits whose files are there; test has no labels (they are hidden on the challenge server)."""
    files = AnnotationFiles(root, prefer="epic")
    classes: dict[int, str] = {}
    texts: dict[str, list[Text]] = {}
    for split, pattern in FILES.items():
        path = files.first(pattern)
        if path:
            texts[split] = list(_texts(path, classes))
    if not texts:
        raise files.missing(TITLE, "'EPIC_Sounds_train.csv' and 'EPIC_Sounds_validation.csv'", SOURCE)
    labels = _labels(files, classes)
    splits = []
    for split, rows in texts.items():
        notes = [] if any(text.answer for text in rows) else ["the split has no labels: it cannot be scored here"]
        splits.append(build_split(split, "label", rows, labels=labels, notes=notes))
    return finish(splits, task, TITLE, files.notes)


def _texts(path: Path, classes: dict[int, str]) -> Iterable[Text]:
    labelled = {"class", "class_id"} <= set(csv_header(path))
    for number, row in csv_records(path, needs=("annotation_id", "video_id", "start_timestamp", "stop_timestamp")):
        start_s, end_s = span_at(path, number, row["start_timestamp"], row["stop_timestamp"])
        label = None
        if labelled:
            label = text_of(path, number, row, "class")
            _register(path, number, classes, text_of(path, number, row, "class_id"), label)
        clip = ClipSpan(video=text_of(path, number, row, "video_id"), start_s=start_s, end_s=end_s)
        yield Text(id=text_of(path, number, row, "annotation_id"), clip=clip, question=LABEL_PROMPT, answer=label)


def _register(path: Path, number: int, classes: dict[int, str], class_id: str, label: str) -> None:
    if not class_id.isdigit() or classes.setdefault(int(class_id), label) != label:
        raise DataError(f"'{path}' line {number}: class_id '{class_id}' and class '{label}' do not agree with the rows before")


def _labels(files: AnnotationFiles, classes: dict[int, str]) -> list[str]:
    """The classes by class_id: from a class file (`class_id,class`) if there is one, else those that the rows use."""
    for path in files.matching(r".*class.*\.csv"):
        if csv_header(path) == ["class_id", "class"]:
            for number, row in csv_records(path, needs=("class_id", "class")):
                _register(path, number, classes, text_of(path, number, row, "class_id"), text_of(path, number, row, "class"))
    if classes and len(classes) != CLASSES:
        files.notes.append(f"the files at hand use {len(classes)} of the {CLASSES} classes")
    return [label for _, label in sorted(classes.items())]
