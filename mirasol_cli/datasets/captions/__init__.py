"""Caption sets for pretraining, each in its own format, recognised by content: MSR-VTT, VATEX, Panda-70M, InternVid,
LLaVA-Video-178K, and folders or tar shards of video2dataset and WebDataset. Several may lie in one folder. Other sets: a manifest.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mirasol_cli.datasets.captions import lists, panda70m, shards
from mirasol_cli.datasets.captions.row import Reader, Row
from mirasol_cli.datasets.example import Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.msr_captions import read_captions
from mirasol_cli.datasets.resolver import split_suffix
from mirasol_cli.datasets.row_tables import ClipTable, TextTable
from mirasol_cli.datasets.splits import of_task
from mirasol_cli.datasets.tables import csv_header, read_head

NAME, TITLE = "captions", "a caption set"
LICENCE = "MSR-VTT: research only; VATEX: CC BY 4.0; Panda-70M: Snap research licence, non-commercial; others: as their publishers say"
SOURCE = (
    "the pages of the sets: MSR-VTT (Microsoft Research), VATEX, GitHub repositories snap-research/Panda-70M, "
    "OpenGVLab/InternVideo (InternVid), LLaVA-VL/LLaVA-NeXT"
)
TASKS = ("caption", "qa")


def candidates(clip: ClipSpan) -> list[Candidate]:
    """The names of the clip cut out already, then the id: with a span, the id is the source that it has to be cut from."""
    whole = clip.start_s is None
    names = [Candidate(name) for name in clip.aliases] + [Candidate(clip.video, whole)]
    stem, suffix = split_suffix(clip.video)
    if suffix and ".tar/" not in clip.video:  # a list names .mp4, the copy at hand may be another container
        names.append(Candidate(stem, whole))
    return names


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """All captions below `root` (and the question files of LLaVA-Video-178K as task `qa`), by split."""
    files = AnnotationFiles(root)
    notes = files.notes
    found: dict[tuple[str, str], _Found] = defaultdict(_Found)
    clips: dict[str, ClipTable] = defaultdict(ClipTable)  # of every split, which its tasks share

    def keep(rows: Iterable[Row], title: str) -> None:
        count = 0
        for row in rows:
            found[row.split, row.task].add(row.text)
            clips[row.split].add(row.text.clip)
            count += 1
        if count:
            notes.append(f"{title}: {count} texts")

    pairs = shards.pairs_in_folders(files.everything)
    files.paths = [name for name in files.paths if os.path.splitext(name)[0] not in pairs]
    keep(shards.folder_rows(root, pairs, notes), "video2dataset folders")
    keep((Row(split.name, "caption", text) for split in read_captions(files) for text in split.texts), "MSR-VTT")
    for name in files.paths:
        if name.lower().endswith(".tar"):
            keep(shards.tar_rows(root, name, notes), f"tar shard '{name}'")
        else:
            title, reader = _format_of(root / name)
            if reader:
                keep(reader(root / name, notes), f"{title}, '{name}'")
    if not found:
        what = "a published list, videos with .txt or .json files of the same name, or tar shards (another format: write a manifest)"
        raise files.missing(TITLE, what, SOURCE)
    if len({kind for _, kind in found}) > 1:  # as `share_clips` sorts them
        clips = {split: ClipTable(table.by_key()) for split, table in clips.items()}
    splits = [
        Split(name=split, task=kind, clips=clips[split], texts=texts.table, notes=texts.notes) for (split, kind), texts in found.items()
    ]
    return of_task(splits, task, TITLE, notes)


class _Found:
    """The texts of one split and task. A row that two lists share (Panda-70M's 2m and 10m) is kept once."""

    def __init__(self) -> None:
        self.table, self._renamed, self._example = TextTable(), 0, ""

    def add(self, text: Text) -> None:
        if self.table.add_renamed(text):
            self._renamed += 1
            self._example = self._example or self.table[-1].id

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{self._renamed} repeated ids got a number, as in '{self._example}'",) if self._renamed else ()


def _format_of(path: Path) -> tuple[str, Reader | None]:
    """The set that a file belongs to and what reads it, by its content; None if it is no caption file."""
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        head = read_head(path)
        if '"enCap"' in head:
            return "VATEX", lists.vatex
        if '"conversations"' in head:
            return "LLaVA-Video-178K", lists.llava
        if '"YoutubeID"' in head:
            return "InternVid", lists.internvid
    if suffix == ".csv" and {"videoID", "timestamp", "caption"} <= set(csv_header(path)):
        return "Panda-70M", panda70m.panda70m
    return "", None
