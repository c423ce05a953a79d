"""Caption sets published as JSON: VATEX, InternVid, LLaVA-Video-178K."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mirasol_cli.datasets.captions.row import Row
from mirasol_cli.datasets.example import ClipSpan, Text
from mirasol_cli.datasets.splits import split_word
from mirasol_cli.datasets.tables import json_records, span_at, text_of
from mirasol_cli.errors import DataError

VATEX_ID = re.compile(r"(?P<ytid>.+)_(?P<start>\d{6})_(?P<end>\d{6})")
PLACEHOLDER = re.compile(r"<(image|video)>\s*")
"""LLaVA's place for the media in the human's text; it says image though it is a video."""


def vatex(path: Path, notes: list[str]) -> Iterator[Row]:
    """`{"videoID": "<ytid>_000055_000065", "enCap": [10 captions]}`; the file's name says the split."""
    split, without = split_word(path.stem) or "train", 0
    for number, row in json_records(path):
        name = text_of(path, number, row, "videoID")
        captions = row.get("enCap") or []
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise DataError(f"'{path}' entry {number}: 'enCap' is not a list of captions")
        without += not captions
        for place, caption in enumerate(captions):
            yield Row(split, "caption", Text(id=f"{name}_{place}", clip=_vatex_clip(name), answer=caption.strip()))
    if without:
        notes.append(f"{without} videos of '{path.name}' have no English captions and were left out")


def _vatex_clip(name: str) -> ClipSpan:
    parts = VATEX_ID.fullmatch(name)
    if parts is None or int(parts["start"]) >= int(parts["end"]):
        return ClipSpan(video=name)
    return ClipSpan(video=parts["ytid"], start_s=float(parts["start"]), end_s=float(parts["end"]), aliases=(name,))


def internvid(path: Path, notes: list[str]) -> Iterator[Row]:
    """`{"YoutubeID", "Start_timestamp", "End_timestamp" ("HH:MM:SS.mmm"), "Caption", ...}`, one object per line."""
    for number, row in json_records(path):
        video = text_of(path, number, row, "YoutubeID")
        start, end = (text_of(path, number, row, key) for key in ("Start_timestamp", "End_timestamp"))
        start_s, end_s = span_at(path, number, start, end)
        clip = ClipSpan(video=video, start_s=start_s, end_s=end_s, aliases=(f"{video}_{start}_{end}", f"{video}_{start_s:.3f}_{end_s:.3f}"))
        yield Row("train", "caption", Text(id=f"{video}_{start}_{end}", clip=clip, answer=text_of(path, number, row, "Caption")))


def llava(path: Path, notes: list[str]) -> Iterator[Row]:
    """Conversations about a video: every human turn is a question (its own prompt is kept), the next gpt turn the answer.

    Files with `_oe_` or `_mc_` in their names hold questions (task `qa`), the others captions.
    """
    task = "qa" if re.search(r"_(oe|mc)(_|$)", path.stem) else "caption"
    split = split_word(path.stem) or "train"
    without = 0
    for number, row in json_records(path):
        if not row.get("video"):  # the mixes that circulate hold entries about images and about text alone
            without += 1
            continue
        clip = ClipSpan(video=text_of(path, number, row, "video"))
        source, turns = str(row.get("data_source") or ""), row.get("conversations")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(f"'{path}' entry {number}: 'conversations' is not a list of turns")
        key = f"{source}/{row.get('id', number)}"
        for place, (human, gpt) in enumerate(zip(turns[::2], turns[1::2], strict=False)):
            if (human.get("from"), gpt.get("from")) != ("human", "gpt"):
                raise DataError(f"'{path}' entry {number}: turns {2 * place + 1} and {2 * place + 2} are not from human and gpt")
            question = PLACEHOLDER.sub("", text_of(path, number, human, "value")).strip()
            text_id = key if place == 0 else f"{key}/{place + 1}"
            yield Row(split, task, Text(id=text_id, clip=clip, question=question, answer=text_of(path, number, gpt, "value"), type=source))
    if without:
        notes.append(f"{without} entries of '{path.name}' have no video and were left out")
