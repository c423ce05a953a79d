"""VGG-Sound: 10 s clips of YouTube videos, one of 309 sounds each.

`vggsound.csv` has no header (`ytid,start_seconds,label,split`); `stat.csv` gives the official class list. The set has no
validation split: a small share of the train ids is held out, by YouTube id, so that no video is in both.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from mirasol_cli.datasets.example import LABEL_PROMPT, Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import SPLIT_WORDS, build_split, finish
from mirasol_cli.datasets.tables import csv_rows, seconds
from mirasol_cli.errors import DataError, UsageError

NAME, TITLE = "vggsound", "VGG-Sound"
LICENCE = "VGG-Sound: annotations CC BY 4.0; the videos stay with their YouTube uploaders"
SOURCE = "GitHub repository hche11/VGGSound, data/vggsound.csv and data/stat.csv"
TASKS = ("label",)
CLIP_SECONDS = 10.0
OFFICIAL_CLASSES = 309
CLIP_NAME = re.compile(r"(?P<ytid>.+)_(?P<start>\d{6})(\.[A-Za-z0-9]+)?")
"""A row of the official test.csv: `<ytid>_<start, six digits>.mp4`; ids may hold `_` themselves."""


def candidates(clip: ClipSpan) -> list[Candidate]:
    """The five conventions: four name the clip cut out already; under the bare id lies the clip or the whole source."""
    start = round(clip.start_s or 0)
    end = round(clip.end_s or 0)
    names = (f"{start:06d}", f"{start * 1000}_{end * 1000}", f"{start}", f"{start}_{end}")
    return [*(Candidate(f"{clip.video}_{name}") for name in names), Candidate(clip.video, whole=None)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """train, val (held out of train) and test from `vggsound.csv`; else what `train.csv` and `test.csv` list.

    Raises:
        UsageError: `options.held_out` is no share.
    """
    if not 0 <= options.held_out < 1:
        raise UsageError(f"the share {options.held_out:g} of VGG-Sound's train ids cannot be held out", "give 0 or more, and less than 1")
    files = AnnotationFiles(root, prefer="vggsound")
    texts: dict[str, list[Text]] = {"train": [], "val": [], "test": []}
    path = files.first(r"vgg[-_]?sound\.csv")
    if path:
        for split, text in _main_rows(path):
            texts[_held_out(text.clip.video, options.held_out) if split == "train" else split].append(text)
    else:
        for split in ("train", "test"):
            listed = files.first(rf"(vgg[-_]?sound[-_])?{split}\.csv")
            for text in _listed_rows(listed) if listed else ():
                texts[_held_out(text.clip.video, options.held_out) if split == "train" else split].append(text)
        files.notes.append("no 'vggsound.csv': read the lists 'train.csv' and 'test.csv' instead, as far as they are there")
    if not any(texts.values()):
        raise files.missing(TITLE, "'vggsound.csv' (and 'stat.csv', the class list)", SOURCE)
    labels = _labels(files, {text.answer or "" for rows in texts.values() for text in rows})
    if texts["val"]:
        files.notes.append(f"val is held out of train by YouTube id ({options.held_out:.1%} of the ids); VGG-Sound has no val of its own")
    splits = [build_split(name, "label", rows, labels=labels) for name, rows in texts.items() if rows]
    return finish(splits, task, TITLE, files.notes)


def _text(video: str, start: float, label: str) -> Text:
    clip = ClipSpan(video=video, start_s=start, end_s=start + CLIP_SECONDS)
    return Text(id=f"{video}_{round(start):06d}", clip=clip, question=LABEL_PROMPT, answer=label)


def _main_rows(path: Path) -> Iterable[tuple[str, Text]]:
    for place, (number, cells) in enumerate(csv_rows(path)):
        if len(cells) != 4:
            raise DataError(f"'{path}' line {number} has {len(cells)} cells instead of 4: youtube id, start, label, split")
        video, start, label, split = (cell.strip() for cell in cells)
        try:
            start_s = seconds(start)
        except ValueError:
            if place == 0:  # a re-save with a header
                continue
            raise DataError(f"'{path}' line {number}: '{start}' is not a start in seconds") from None
        if split.lower() not in SPLIT_WORDS:
            raise DataError(f"'{path}' line {number}: '{split}' is not a split")
        if not video or not label:
            raise DataError(f"'{path}' line {number}: the id or the label is empty")
        yield SPLIT_WORDS[split.lower()], _text(video, start_s, label)


def _listed_rows(path: Path) -> Iterable[Text]:
    for place, (number, cells) in enumerate(csv_rows(path)):
        name = CLIP_NAME.fullmatch(cells[0].strip())
        if name and len(cells) == 2:
            yield _text(name["ytid"], float(name["start"]), cells[1].strip())
        elif place:
            raise DataError(f"'{path}' line {number} is not '<youtube id>_<start, six digits>.mp4,label'")


def _held_out(video: str, share: float) -> str:
    """`val` for a fixed share of the ids, whatever else the list holds."""
    digest = hashlib.sha256(f"vggsound held out {video}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < share * 2**64 else "train"


def _labels(files: AnnotationFiles, used: set[str]) -> list[str]:
    """The official class list, `sorted(stat.csv column 0)`, or what the annotation uses. Whole strings, commas and typos kept."""
    path = files.first(r"stat\.csv")
    if path is None:
        files.notes.append(f"no 'stat.csv': the class list is the {len(used)} labels of the annotation (officially {OFFICIAL_CLASSES})")
        return sorted(used)
    labels = {cells[0].strip() for _, cells in csv_rows(path)}
    files.notes.append(f"class list: the {len(labels)} labels of 'stat.csv', sorted")
    if used - labels:
        files.notes.append(f"{len(used - labels)} labels are not in 'stat.csv', such as '{min(used - labels)}'")
    return sorted(labels)
