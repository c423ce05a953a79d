"""Captions of MSR-VTT: the official JSON (keys with spaces) and the retrieval CSV `key,vid_key,video_id,sentence`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from mirasol_cli.datasets.example import ClipSpan, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import SPLIT_WORDS, build_split, split_word
from mirasol_cli.datasets.tables import csv_header, csv_records, json_value, read_head, text_of
from mirasol_cli.errors import DataError


def read_captions(files: AnnotationFiles) -> list[Split]:
    """All captions below the folder, by split; the official JSON is used alone where it is there (the CSVs are parts of it)."""
    official = [path for path in files.matching(r".*\.json") if is_official(path)]
    retrieval = [path for path in files.matching(r".*\.csv") if is_retrieval(path)]
    splits: dict[str, dict[str, Text]] = {}
    for path in official or retrieval:
        for split, text in official_texts(path) if official else retrieval_texts(path):
            splits.setdefault(split, {})[text.id] = text
    return [build_split(split, "caption", list(texts.values())) for split, texts in splits.items()]


def is_official(path: Path) -> bool:
    head = read_head(path)
    return ('"videos"' in head and '"start time"' in head) or ('"sentences"' in head and '"sen_id"' in head)


def is_retrieval(path: Path) -> bool:
    return {"video_id", "sentence"} <= set(csv_header(path))


def official_texts(path: Path) -> Iterable[tuple[str, Text]]:
    """(split, caption): 20 captions of each video; the file is the clip ("start time" is a time in the YouTube source)."""
    data = json_value(path)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("videos", "sentences")):
        raise DataError(f"'{path}' lacks the lists 'videos' and 'sentences' of MSR-VTT's own format")
    split_of = {}
    for number, video in enumerate(data["videos"], 1):
        word = text_of(path, number, video, "split")
        split_of[text_of(path, number, video, "video_id")] = SPLIT_WORDS.get(word, word)
    for number, sentence in enumerate(data["sentences"], 1):
        video_id = text_of(path, number, sentence, "video_id")
        if video_id not in split_of:
            raise DataError(f"'{path}' sentence {number}: video {json.dumps(video_id)} is not in the list 'videos'")
        key = f"{video_id}_{text_of(path, number, sentence, 'sen_id')}" if "sen_id" in sentence else f"{video_id}_s{number}"
        yield split_of[video_id], Text(id=key, clip=ClipSpan(video=video_id), answer=text_of(path, number, sentence, "caption"))


def retrieval_texts(path: Path) -> Iterable[tuple[str, Text]]:
    """(split, caption) of a retrieval CSV; its file name says the split, else it is a test list."""
    split = split_word(path.stem) or "test"
    for number, row in csv_records(path, needs=("video_id", "sentence")):
        video_id = text_of(path, number, row, "video_id")
        key = row.get("key") or f"{video_id}_r{number}"
        yield split, Text(id=key, clip=ClipSpan(video=video_id), answer=text_of(path, number, row, "sentence"))
