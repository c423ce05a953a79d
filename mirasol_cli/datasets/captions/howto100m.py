"""HowTo100M: spoken words (ASR) as captions of overlapping spans; `HowTo100M_v1.csv` only lists the videos."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mirasol_cli.datasets.captions.row import Row
from mirasol_cli.datasets.example import ClipSpan, Text
from mirasol_cli.datasets.splits import split_word
from mirasol_cli.datasets.tables import csv_header, csv_records, json_value, seconds
from mirasol_cli.errors import DataError

CAPTION_JSON = re.compile(r'\s*\{\s*"[^"]+"\s*:\s*\{\s*"(start|end|text)"\s*:')
"""How `caption.json` begins: video id -> lists of start, end and text."""


def is_video_list(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and {"video_id", "category_1", "task_id"} <= set(csv_header(path))


def is_video_csv(path: Path) -> bool:
    """One CSV per video, named by its id: start,end,text (pandas may have put its own counter before)."""
    return path.suffix.lower() == ".csv" and [cell for cell in csv_header(path) if cell] == ["start", "end", "text"]


def caption_json(path: Path, notes: list[str]) -> Iterator[Row]:
    """`{vid: {"start": [..], "end": [..], "text": [..]}}`."""
    captions = json_value(path)
    left_out: list[str] = []
    for video, columns in captions.items():
        lists = [columns.get(key) for key in ("start", "end", "text")] if isinstance(columns, dict) else []
        lengths = {len(values) if isinstance(values, list) else -1 for values in lists}
        if len(lengths) != 1 or -1 in lengths:
            raise DataError(f"'{path}': video '{video}' does not have equally long lists start, end and text")
        yield from _rows(video, zip(*(values or [] for values in lists), strict=True), "train", left_out)
    _note(left_out, path, notes)


def video_csv(path: Path, notes: list[str]) -> list[Row]:
    """The captions of the video that the file is named after."""
    left_out: list[str] = []
    lines = ((row["start"], row["end"], row["text"]) for _, row in csv_records(path, needs=("start", "end", "text")))
    rows = list(_rows(path.stem, lines, split_word(path.parent.name) or "train", left_out))
    _note(left_out, path, notes)
    return rows


def _rows(video: str, lines: Iterable[tuple[Any, Any, Any]], split: str, left_out: list[str]) -> Iterator[Row]:
    for place, (start, end, text) in enumerate(lines):
        try:
            start_s, end_s = seconds(start), seconds(end)
        except ValueError:
            start_s, end_s = 0.0, 0.0
        caption = " ".join(text.split()) if isinstance(text, str) else ""
        if end_s <= start_s or not caption:
            left_out.append(video)
            continue
        yield Row(split, "caption", Text(id=f"{video}_{place}", clip=ClipSpan(video=video, start_s=start_s, end_s=end_s), answer=caption))


def _note(left_out: list[str], path: Path, notes: list[str]) -> None:
    if left_out:
        notes.append(f"{len(left_out)} lines of '{path.name}' without words or without length were left out")
