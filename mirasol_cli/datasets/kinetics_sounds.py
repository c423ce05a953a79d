"""Kinetics-Sounds: the clips of Kinetics-400 whose class can be seen and heard. There is no official file, only class lists."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mirasol_cli.datasets.example import LABEL_PROMPT, Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import build_split, finish
from mirasol_cli.datasets.tables import csv_header, csv_records, span_at, text_of
from mirasol_cli.errors import UsageError

NAME, TITLE = "kinetics-sounds", "Kinetics-Sounds"
LICENCE = "Kinetics: annotations CC BY 4.0; the videos stay with their YouTube uploaders"
SOURCE = "GitHub repository activitynet/ActivityNet, Crawler/Kinetics/data/ (kinetics-400_train.csv, kinetics-400_val.csv)"
TASKS = ("label",)

# Names of Kinetics-400. "32": every class of "Look, Listen and Learn" (arXiv 1705.08168, A.1) that Kinetics-400 has.
CLASSES_32 = (
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing", "mowing lawn",
    "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet", "playing drums", "playing guitar",
    "playing harmonica", "playing keyboard",
    "playing organ", "playing piano", "playing saxophone", "playing trombone", "playing trumpet", "playing violin", "playing xylophone",
    "ripping paper", "shoveling snow", "shuffling cards", "singing", "stomping grapes", "strumming guitar", "tap dancing", "tapping guitar",
    "tapping pen", "tickling",
)  # fmt: skip
CLASS_LISTS = {
    "31": tuple(name for name in CLASSES_32 if name != "strumming guitar"),  # AdaMML's choice
    "32": CLASSES_32,
    "34": tuple(sorted((*CLASSES_32, "typing", "patting"))),  # the paper's: two classes that Kinetics-400 lacks
}
EARLY_NAMES = {
    "blowing out": "blowing out candles", "dribbling ball": "dribbling basketball", "stomping": "stomping grapes",
    "mowing the lawn by pushing lawnmower": "mowing lawn", "fingerpicking": "strumming guitar",
}  # fmt: skip
"""Names of the early Kinetics that the paper used -> names of Kinetics-400."""
FILE_WORDS = {"train": "train", "val": "(val|validate|validation)", "test": "test"}


def candidates(clip: ClipSpan) -> list[Candidate]:
    """`<ytid>_000417_000427`, flat or in class folders; shorter forms; the bare id may be the clip or its source."""
    start, end = round(clip.start_s or 0), round(clip.end_s or 0)
    cut = (f"{clip.video}_{start:06d}_{end:06d}", f"{clip.video}_{start}_{end}", f"{clip.video}_{start:06d}")
    return [*map(Candidate, cut), Candidate(clip.video, whole=None)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """The clips of the chosen class list. A list without labels (Kinetics' test) cannot tell which clips belong: no split.

    Raises:
        UsageError: `options.classes` is not 31, 32 or 34.
    """
    if options.classes not in CLASS_LISTS:
        raise UsageError(f"Kinetics-Sounds has no class list of {options.classes} names", "choose 31, 32 or 34")
    labels = CLASS_LISTS[options.classes]
    files = AnnotationFiles(root, prefer="kinetics")
    files.notes.append(f"class list of {len(labels)} names of Kinetics-400")
    splits, unlabelled = [], []
    for split, word in FILE_WORDS.items():
        path = files.first(rf"kinetics[-_]?sounds[-_]{word}\.csv", rf"kinetics[-_]?(400)?[-_]{word}\.csv", rf"(.+[-_])?{word}\.csv")
        if path is None:
            continue
        if "label" not in csv_header(path):
            unlabelled.append(path.name)
            continue
        texts = list(_texts(path, frozenset(labels)))
        notes = [f"{len(texts)} clips of {len({text.answer for text in texts})} classes are listed in '{path.relative_to(root)}'"]
        splits.append(build_split(split, "label", texts, labels=labels, notes=notes))
    for name in unlabelled:
        files.notes.append(f"'{name}' has no label column: which of its clips belong here is unknown, so it gives no split")
    if not splits:
        expected = "'kinetics-400_train.csv' and 'kinetics-400_val.csv' (or 'train.csv', 'val.csv', 'validate.csv') with a column 'label'"
        raise files.missing(TITLE, expected + (f"; '{unlabelled[0]}' has none" if unlabelled else ""), SOURCE)
    return finish(splits, task, TITLE, files.notes)


def _texts(path: Path, labels: frozenset[str]) -> Iterable[Text]:
    for number, row in csv_records(path, needs=("label", "youtube_id", "time_start", "time_end")):
        label = text_of(path, number, row, "label").replace("_", " ")
        label = EARLY_NAMES.get(label, label)
        if label not in labels:
            continue
        video = text_of(path, number, row, "youtube_id")
        start_s, end_s = span_at(path, number, row["time_start"], row["time_end"])
        clip = ClipSpan(video=video, start_s=start_s, end_s=end_s)
        yield Text(id=f"{video}_{round(start_s):06d}_{round(end_s):06d}", clip=clip, question=LABEL_PROMPT, answer=label)
