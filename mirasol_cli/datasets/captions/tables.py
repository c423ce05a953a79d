"""Caption sets published as CSV: WebVid, VideoCC, Panda-70M."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mirasol_cli.datasets.captions.row import Row
from mirasol_cli.datasets.example import ClipSpan, Text
from mirasol_cli.datasets.splits import split_word
from mirasol_cli.datasets.tables import csv_records, csv_rows, seconds, span_at, text_of
from mirasol_cli.errors import DataError

YOUTUBE_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:youtube\.com/(?:watch\?(?:.*&)?v=|embed/)|youtu\.be/)([A-Za-z0-9_-]{11}).*")
MICROSECONDS = 1e-6


def webvid(path: Path, notes: list[str]) -> Iterator[Row]:
    """Columns in either known order: `videoid, name` (the caption), `page_dir` (the folder). The whole video is the clip."""
    split = split_word(path.stem) or "train"
    for number, row in csv_records(path, needs=("videoid", "name")):
        video, folder = text_of(path, number, row, "videoid"), row.get("page_dir", "").strip()
        clip = ClipSpan(video=video, aliases=(f"{folder}/{video}",) if folder else ())
        yield Row(split, "caption", Text(id=video, clip=clip, answer=text_of(path, number, row, "name")))


def is_videocc_row(cells: list[str]) -> bool:
    """VideoCC's file has no header: id or address, start and end in microseconds, caption."""
    return len(cells) == 4 and cells[1].isdigit() and cells[2].isdigit() and not cells[3].isdigit()


def videocc(path: Path, notes: list[str]) -> Iterator[Row]:
    split = split_word(path.stem) or "train"
    for number, cells in csv_rows(path):
        if not is_videocc_row([cell.strip() for cell in cells]) or not cells[3].strip():
            raise DataError(f"'{path}' line {number} is not 'id, start and end in microseconds, caption'")
        video, start, end, caption = (cell.strip() for cell in cells)
        address = YOUTUBE_ADDRESS.fullmatch(video)
        video = address[1] if address else video
        start_s, end_s = span_at(path, number, int(start) * MICROSECONDS, int(end) * MICROSECONDS)
        name = f"{video}_{start}_{end}"
        clip = ClipSpan(video=video, start_s=start_s, end_s=end_s, aliases=(name, f"{video}_{start_s:g}_{end_s:g}"))
        yield Row(split, "caption", Text(id=name, clip=clip, answer=caption))


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
