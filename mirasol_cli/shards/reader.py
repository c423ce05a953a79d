"""Reading prepared shards: media by clip number, each row checked against its checksum, and the texts about them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirasol_cli.errors import ShardError
from mirasol_cli.files import sha256_of
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.sample import field_shapes
from mirasol_cli.shards.columns import ClipColumns, ClipStatus, TextColumns, Texts
from mirasol_cli.shards.index import (
    CLIP_COLUMNS,
    CLIPS,
    INDEX,
    REPAIR_HINT,
    ShardEntry,
    SplitIndex,
    row_checksum,
    shard_name,
    text_columns_name,
    texts_name,
)
from mirasol_cli.shards.lines import Lines
from mirasol_cli.shards.shard_file import ShardFile

OPEN_SHARDS = 256
"""Shards kept open per split; the least recently used one is closed first (a process may often hold no more than 1,024 files)."""


class ShardFolder:
    """The shards of one data set and geometry: one split per subfolder."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ShardError(f"no shards in '{self.path}'", "create them with `mirasol prepare`, or set data.shards to their folder")

    @property
    def splits(self) -> list[str]:
        return sorted(entry.parent.name for entry in self.path.glob(f"*/{INDEX}"))

    def split(self, name: str) -> ShardSplit:
        """Raises ShardError if the split was not prepared, or is damaged."""
        if name not in self.splits:
            has = f"it has {', '.join(self.splits)}" if self.splits else "it has no finished split"
            raise ShardError(f"'{self.path}' has no split '{name}'; {has}", f"prepare it: `mirasol prepare ... --split {name}`")
        return ShardSplit(self.path / name)


class ShardSplit:
    """One split. Random access to its clips and texts, which threads may share.

    Attributes:
        index: index.json.
        columns: what there is per expected clip.

    Raises ShardError, naming the file, wherever a file is missing, foreign, truncated or changed.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.index = SplitIndex.read(self.path / INDEX)
        self.geometry: ClipGeometry = self.index.geometry
        self.views = self.index.views
        self.columns = clip_columns(self.path, self.index)
        self._fields = tuple(field_shapes(self.geometry))
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._opening = threading.Lock()
        check_sizes(self.path, self.index.shards)

    @property
    def name(self) -> str:
        return self.index.split

    @property
    def tasks(self) -> list[str]:
        return list(self.index.tasks)

    @property
    def labels(self) -> list[str]:
        """The closed answer set, in the official order; empty where there is none."""
        return next((entry.labels for entry in self.index.tasks.values() if entry.labels), [])

    @cached_property
    def kept(self) -> np.ndarray:
        """int64, numbers of the clips that have media, ascending."""
        return np.flatnonzero(self.columns.status == ClipStatus.KEPT)

    @cached_property
    def clips(self) -> Clips:
        """Every expected clip: key, video, start_s, end_s, status (kept, failed or missing); the position is the clip's number."""
        return Clips(clip_lines(self.path, self.index, self.columns), self.columns.status)

    def has(self, clip: int) -> bool:
        """Whether the clip of this number has media."""
        return 0 <= clip < len(self.columns.status) and bool(self.columns.status[clip] == ClipStatus.KEPT)

    def texts(self, task: str) -> Texts:
        """All texts of a task, of kept, failed and missing clips alike, in the annotation's order."""
        entry = self.index.tasks.get(task)
        if entry is None:
            raise ShardError(
                f"'{self.path}' has no texts for task '{task}'; it has {', '.join(self.tasks) or 'none'}",
                "prepare the task: videos that are prepared already are not decoded again",
            )
        path = self.path / texts_name(task)
        if not entry.columns:
            return Texts.measured(Lines.scanned(path, entry.sha256))
        return Texts.of(path, TextColumns.read(self.path / text_columns_name(task), entry.columns))

    def media(self, clip: int, view: int = 0) -> dict[str, Tensor]:
        """The fields of one clip (see `mirasol_cli.sample`), read from its shard and checked against their checksum."""
        if not self.has(clip):
            raise KeyError(f"clip {clip} of '{self.path}' has no media: it is missing or failed when it was prepared")
        if not 0 <= view < self.views:
            raise IndexError(f"clip {clip} of '{self.path}' has {self.views} views, not {view + 1}")
        number, first = self._shard_of(clip)
        position = int(np.count_nonzero(self.columns.status[first:clip] == ClipStatus.KEPT))
        sample = self._shard(number).row(position * self.views + view)
        if row_checksum(sample, self._fields) != self.columns.crc32[clip, view]:
            path = self.path / shard_name(number)
            raise ShardError(f"'{path}' is damaged: clip {clip} does not match its checksum", REPAIR_HINT)
        return {name: torch.from_numpy(array) for name, array in sample.items()}

    def _shard_of(self, clip: int) -> tuple[int, int]:
        """The clip's shard, and the shard's first clip."""
        number = clip // self.index.clips_per_shard
        return number, number * self.index.clips_per_shard

    def _shard(self, number: int) -> ShardFile:
        with self._opening:
            shard = self._open.pop(number, None)
            if shard is None:
                shard = self._opened(number)
            self._open[number] = shard
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)  # it is closed when the last reader lets go of it
        return shard

    def _opened(self, number: int) -> ShardFile:
        path, first = self.path / shard_name(number), number * self.index.clips_per_shard
        shard = ShardFile(path, self.geometry)
        kept = int(np.count_nonzero(self.columns.status[first : first + self.index.clips_per_shard] == ClipStatus.KEPT))
        if shard.rows != kept * self.views:
            raise ShardError(f"'{path}' does not belong to '{self.path / INDEX}': it holds other clips", REPAIR_HINT)
        return shard


class Clips(Sequence[dict[str, Any]]):
    """The expected clips of a split, each read when it is asked for."""

    def __init__(self, lines: Lines, status: np.ndarray):
        if len(lines) != len(status):
            raise ShardError(f"'{lines.path}' has {len(lines)} lines, and the index tells of {len(status)} clips", REPAIR_HINT)
        self._lines, self._status = lines, status

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, clip: Any) -> Any:
        if isinstance(clip, slice):
            return [self[number] for number in range(*clip.indices(len(self)))]
        return {**self._lines[clip], "status": ClipStatus(int(self._status[clip])).word}


def clip_columns(folder: Path, index: SplitIndex) -> ClipColumns:
    """What there is per clip: mapped, or from an index that tells of its clips itself."""
    if CLIP_COLUMNS in index.files:
        columns = ClipColumns.read(folder / CLIP_COLUMNS, index.files[CLIP_COLUMNS])
        if len(columns.status) != index.clips:
            raise ShardError(f"'{folder / CLIP_COLUMNS}' does not belong to '{folder / INDEX}': it holds other clips", REPAIR_HINT)
        return columns
    return ClipColumns.of(index.inline, index.clips, index.views, None)


def clip_lines(folder: Path, index: SplitIndex, columns: ClipColumns) -> Lines:
    """The lines of clips.jsonl."""
    if CLIP_COLUMNS in index.files:
        return Lines(folder / CLIPS, columns.offset, columns.line_crc32)
    return Lines.scanned(folder / CLIPS, index.files[CLIPS])


def check_sizes(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Every shard must be there with its size. One listing of the folder; content is checked when it is read."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".safetensors")}
    for entry in entries:
        if entry.bytes and entry.name not in sizes:
            raise ShardError(f"'{folder / entry.name}' is missing", REPAIR_HINT)
        if entry.bytes and sizes[entry.name] != entry.bytes:
            raise ShardError(
                f"'{folder / entry.name}' has {sizes[entry.name]} bytes where its index says {entry.bytes}: "
                "it was damaged, or a `mirasol prepare` of it was not finished",
                f"run that `mirasol prepare` again; {REPAIR_HINT}",
            )


def verify_split(path: Path) -> list[str]:
    """Reads every byte of a split and compares it with the checksums of the index; one line per damaged file."""
    try:
        index = SplitIndex.read(path / INDEX)
    except ShardError as error:
        return [error.message]
    expected = dict(index.files)
    expected |= {texts_name(task): entry.sha256 for task, entry in index.tasks.items()}
    expected |= {text_columns_name(task): entry.columns for task, entry in index.tasks.items() if entry.columns}
    expected |= {shard.name: shard.sha256 for shard in index.shards if shard.bytes}
    problems = []
    for name, sha256 in expected.items():
        try:
            if sha256_of(path / name) != sha256:
                problems.append(f"'{path / name}' is damaged: its checksum is not the one in {INDEX}")
        except FileNotFoundError:
            problems.append(f"'{path / name}' is missing")
        except OSError as error:
            problems.append(f"'{path / name}' cannot be read: {error.strerror}")
    return problems
