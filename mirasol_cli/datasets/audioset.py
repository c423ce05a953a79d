"""AudioSet: 10 s segments of YouTube videos with one or more of 527 labels.

The published CSVs start with `#` lines and separate by comma and space; spreadsheet re-saves, which spread the quoted label
list over ragged columns, are read too. The splits are called train (balanced), unbalanced and test (the eval segments).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mirasol_cli.datasets.example import LABEL_PROMPT, Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import build_split, finish
from mirasol_cli.datasets.tables import csv_records, csv_rows, seconds, span_at, text_of
from mirasol_cli.errors import DataError

NAME, TITLE = "audioset", "AudioSet"
LICENCE = "AudioSet: annotations CC BY 4.0, ontology CC BY-SA 4.0; the videos stay with their YouTube uploaders"
SOURCE = "the AudioSet download page of Google Research (segments); 'class_labels_indices.csv' also in GitHub repository YuanGongND/ast"
TASKS = ("label",)
FILES = {
    "train": (r"balanced_train_segments\.csv", r".*[-_]balanced_train_segments\.csv"),
    "unbalanced": (r"unbalanced_train_segments\.csv", r".*[-_]unbalanced_train_segments\.csv"),
    "test": (r"eval_segments\.csv", r".*[-_]eval_segments\.csv"),
}
JOINT = "; "
"""OURS: a clip's labels as one answer, in the order of the file; display names hold commas, never semicolons."""


def candidates(clip: ClipSpan) -> list[Candidate]:
    """`<ytid>_30.000`, `Y<ytid>_30.000_40.000` and their kin name the clip; the bare id, with or without the Y, may be either."""
    start, end = clip.start_s or 0.0, clip.end_s or 0.0
    spans = [f"{start:.3f}", f"{start:.3f}_{end:.3f}", f"{round(start * 1000)}_{round(end * 1000)}"]
    if start == int(start) and end == int(end):
        spans += [f"{int(start)}_{int(end)}", f"{int(start):06d}", f"{int(start):06d}_{int(end):06d}", f"{int(start)}"]
    names = (clip.video, f"Y{clip.video}")
    return [*(Candidate(f"{name}_{span}") for name in names for span in spans), *(Candidate(name, whole=None) for name in names)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """The splits whose files are there. `references` are a clip's labels, `answer` all of them joined."""
    files = AnnotationFiles(root, prefer="audioset")
    paths = {split: files.first(*patterns) for split, patterns in FILES.items()}
    if not any(paths.values()):
        raise files.missing(TITLE, "'balanced_train_segments.csv', 'unbalanced_train_segments.csv' and 'eval_segments.csv'", SOURCE)
    index = files.first(r"class_labels_indices\.csv")
    if index is None:
        raise files.missing(TITLE, "'class_labels_indices.csv' (names of the labels)", SOURCE)
    names = {
        text_of(index, number, row, "mid"): text_of(index, number, row, "display_name")
        for number, row in csv_records(index, needs=("mid", "display_name"))
    }
    labels = list(names.values())
    splits = [build_split(split, "label", list(_texts(path, names)), labels=labels) for split, path in paths.items() if path]
    files.notes.append(f"{len(names)} labels; a clip's labels are joined with '{JOINT.strip()}' into one answer, each alone is a reference")
    return finish(splits, task, TITLE, files.notes)


def _texts(path: Path, names: dict[str, str]) -> Iterable[Text]:
    for place, (number, cells) in enumerate(csv_rows(path, comments=True, spaces=True)):
        if len(cells) < 4:
            raise DataError(f"'{path}' line {number} has {len(cells)} cells instead of 4: id, start, end, labels")
        if place == 0 and not _is_time(cells[1]):  # a header that lost its '#'
            continue
        video = cells[0].strip()
        start_s, end_s = span_at(path, number, cells[1], cells[2])
        labels = tuple(_display_name(path, number, names, mid) for mid in _label_ids(cells[3:]))
        if not labels or not video:
            raise DataError(f"'{path}' line {number} has no id or no labels")
        clip = ClipSpan(video=video, start_s=start_s, end_s=end_s)
        yield Text(id=f"{video}_{start_s:.3f}", clip=clip, question=LABEL_PROMPT, answer=JOINT.join(labels), references=labels)


def _is_time(cell: str) -> bool:
    try:
        seconds(cell)
    except ValueError:
        return False
    return True


def _label_ids(cells: list[str]) -> list[str]:
    """The label ids of one quoted cell, or of the ragged cells that a spreadsheet made of it."""
    return [label for cell in cells for part in cell.split(",") if (label := part.strip().strip('"').strip())]


def _display_name(path: Path, number: int, names: dict[str, str], mid: str) -> str:
    if mid not in names:
        raise DataError(f"'{path}' line {number}: label '{mid}' is not in 'class_labels_indices.csv'")
    return names[mid]
