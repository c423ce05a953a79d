"""Panda-70M: a CSV with one row per video."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mirasol_cli.datasets.captions.row import Row
from mirasol_cli.datasets.example import ClipSpan, Text
from mirasol_cli.datasets.splits import split_word
from mirasol_cli.datasets.tables import csv_rows, seconds


def panda70m(path: Path, notes: list[str]) -> Iterator[Row]:
    """One row per video; `timestamp` and `caption` are lists written as Python literals. Damaged rows are left out and counted."""
    split, bad, header = split_word(path.stem) or "train", [], None
    for number, cells in csv_rows(path):
        if header is None:
            header = [cell.strip() for cell in cells]
            continue
        row = dict(zip(header, cells, strict=False))
        clips = _panda_clips(row) if len(cells) == len(header) else None
        if clips is None:
            bad.append(number)
            continue
        video = row["videoID"].strip()
        for place, (start_s, end_s, caption) in enumerate(clips):
            name = f"{video}_{place}"
            yield Row(
                split, "caption", Text(id=name, clip=ClipSpan(video=video, start_s=start_s, end_s=end_s, aliases=(name,)), answer=caption)
            )
    if bad:
        notes.append(f"{len(bad)} damaged rows of '{path.name}' were left out, the first at line {bad[0]}")


def _panda_clips(row: dict[str, str]) -> list[tuple[float, float, str]] | None:
    """(start, end, caption) of each clip of a row, or None if the row is damaged."""
    try:
        spans, captions = ast.literal_eval(row["timestamp"]), ast.literal_eval(row["caption"])
        clips = [(seconds(start), seconds(end), caption.strip()) for (start, end), caption in zip(spans, captions, strict=True)]
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
        return None
    if not row["videoID"].strip() or any(end <= start or not caption for start, end, caption in clips):
        return None
    return clips
