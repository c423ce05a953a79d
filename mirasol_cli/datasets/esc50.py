"""ESC-50 and its ten-class part ESC-10: 5 s recordings of environmental sounds, without video, in five folds.

ESC-50 is published as `meta/esc50.csv` and `audio/`, which tells the clips of ESC-10 by a column; ESC-10 alone as class folders
(`001 - Dog bark/1-100032-A.ogg`). The folds are the splits, fold1 to fold5: each is tested by a model trained on the other four
(`data.fold`), and the published figure is the mean of the five. Clips of one recording are in one fold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mirasol_cli.datasets.example import LABEL_PROMPT, Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.resolver import AUDIO_SUFFIXES, split_suffix
from mirasol_cli.datasets.splits import build_split, finish
from mirasol_cli.datasets.tables import csv_records, text_of
from mirasol_cli.errors import DataError

NAME, TITLE = "esc50", "ESC-50"
LICENCE = "ESC-50: CC BY-NC 3.0 (non-commercial); its part ESC-10: CC BY 3.0; the authors of the clips are named in the set's own list"
SOURCE = "GitHub repository karolpiczak/ESC-50 (meta/esc50.csv, audio/); ESC-10 alone: karolpiczak/ESC-10"
TASKS = ("label", "esc10")
HAS_VIDEO = False
FOLDS = ("1", "2", "3", "4", "5")
CLIPS = {"label": 2000, "esc10": 400}
CLASS_FOLDER = re.compile(r"\d+ - (?P<label>.+)")
CLIP_NAME = re.compile(r"(?P<fold>[1-5])-(?P<source>\d+)-(?P<take>[A-Z])(-\d+)?")
"""Fold, number of the recording on Freesound, part of the recording; in ESC-50 also the number of the class."""


def candidates(clip: ClipSpan) -> list[Candidate]:
    """The file as listed, or converted to another format."""
    return [Candidate(clip.video), Candidate(split_suffix(clip.video, AUDIO_SUFFIXES)[0])]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """fold1 to fold5 for each task: `label`, the 50 classes, where `esc50.csv` is there, and `esc10`, the ten classes."""
    files = AnnotationFiles(root, prefer="esc")
    table = files.first(r"esc-?50\.csv")
    if table is not None:
        rows = list(_table_rows(table))
        texts = {"label": [text for text, _ in rows], "esc10": [text for text, in_esc10 in rows if in_esc10]}
    else:
        texts = {"esc10": list(_class_folders(files.everything))}
    if not any(texts.values()):
        expected = "'meta/esc50.csv' and 'audio/', or the class folders of ESC-10 ('001 - Dog bark/1-100032-A.ogg')"
        raise files.missing(TITLE, expected, SOURCE)
    for name, found in texts.items():
        if len(found) not in (0, CLIPS[name]):
            files.notes.append(f"{len(found)} clips for the task '{name}'; published are {CLIPS[name]}")
    splits = [split for name, found in texts.items() for split in _folds(name, found)]
    return finish(splits, task, TITLE, files.notes)


def _folds(task: str, texts: Sequence[Text]) -> Iterable[Split]:
    labels = sorted({text.answer or "" for text in texts})
    for fold in FOLDS:
        # The id of a clip begins with its fold.
        if own := [text for text in texts if text.id.startswith(f"{fold}-")]:
            yield build_split(f"fold{fold}", task, own, labels=labels)


def _table_rows(path: Path) -> Iterable[tuple[Text, bool]]:
    """Every row's text, and whether it belongs to ESC-10."""
    for number, row in csv_records(path, needs=("filename", "fold", "category", "esc10")):
        video, fold = text_of(path, number, row, "filename"), text_of(path, number, row, "fold")
        name = CLIP_NAME.fullmatch(split_suffix(video, AUDIO_SUFFIXES)[0])
        if name is None or name["fold"] != fold:
            raise DataError(f"'{path}' line {number}: fold '{fold}' and file name '{video}' do not agree (FOLD-RECORDING-TAKE-CLASS.wav)")
        label = text_of(path, number, row, "category").replace("_", " ")
        yield _text(name[0], video, label), row["esc10"].strip().lower() == "true"


def _class_folders(names: Iterable[str]) -> Iterable[Text]:
    """The clips of folders named `NUMBER - CLASS`, in the order of their names."""
    for path in sorted(names):
        *folders, last = path.split("/")
        stem, suffix = split_suffix(last, AUDIO_SUFFIXES)
        folder, name = CLASS_FOLDER.fullmatch(folders[-1]) if folders else None, CLIP_NAME.fullmatch(stem)
        if folder and name and suffix:
            yield _text(stem, "/".join((folders[-1], last)), folder["label"].strip().lower())


def _text(name: str, video: str, label: str) -> Text:
    return Text(id=name, clip=ClipSpan(video=video), question=LABEL_PROMPT, answer=label)
