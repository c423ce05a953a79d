"""What video2dataset leaves: `<key>.mp4` with `<key>.txt` or `<key>.json` beside it, in folders or in uncompressed tar shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mirasol_cli.datasets.captions.row import Row
from mirasol_cli.datasets.example import ClipSpan, Text
from mirasol_cli.datasets.resolver import read_member, split_suffix, tar_members
from mirasol_cli.datasets.splits import split_word

Pairs = dict[str, tuple[str, list[str]]]
"""key (path without suffix) -> (video, caption files: .txt before .json)."""


def pairs_in_folders(names: Sequence[str]) -> Pairs:
    """The videos that have a caption file of the same name beside them."""
    texts = {name for name in names if name.endswith((".txt", ".json"))}
    pairs: Pairs = {}
    for name in names:
        stem, suffix = split_suffix(name)
        beside = [stem + ending for ending in (".txt", ".json") if stem + ending in texts]
        if suffix and beside:
            pairs.setdefault(stem, (name, beside))
    return pairs


def folder_rows(root: Path, pairs: Pairs, notes: list[str]) -> Iterator[Row]:
    """The id is the path without suffix; a folder named after a split says the split, else it is train."""
    without = 0
    for key, (video, texts) in pairs.items():
        caption = next((caption for name in texts if (caption := _caption(name, (root / name).read_bytes()))), None)
        without += caption is None
        if caption:
            yield Row(split_word(os.path.dirname(key)) or "train", "caption", Text(id=key, clip=ClipSpan(video=video), answer=caption))
    if without:
        notes.append(f"{without} videos whose .txt or .json holds no caption were left out")


def tar_rows(root: Path, name: str, notes: list[str]) -> Iterator[Row]:
    """Videos are named `<tar, relative to the root>/<member>`, which `VideoIndex` understands."""
    path = root / name
    members, problem = tar_members(path)
    if problem:
        notes.append(f"'{name}' is damaged ({problem}); its first {len(members)} members were read")
    for key, (video, texts) in pairs_in_folders(list(members)).items():
        caption = next((caption for name in texts if (caption := _caption(name, read_member(path, members[name])))), None)
        if caption:
            split = split_word(name) or "train"
            yield Row(
                split, "caption", Text(id=f"{name.removesuffix('.tar')}/{key}", clip=ClipSpan(video=f"{name}/{video}"), answer=caption)
            )


def _caption(name: str, content: bytes) -> str | None:
    """The text of a .txt, or the `caption` (else `text`) of a .json; None if there is none."""
    try:
        text = content.decode("utf-8-sig")
        if not name.endswith(".json"):
            return text.strip() or None
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = (data.get("caption") or data.get("text")) if isinstance(data, dict) else None
    return value.strip() or None if isinstance(value, str) else None
