"""Reading prepared shards: media by clip number, each row checked against its checksum, and the texts about them."""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirasol_cli.errors import ShardError
from mirasol_cli.files import sha256_of
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.sample import field_shapes
from mirasol_cli.shards.index import (
    CLIPS,
    INDEX,
    METADATA_KEY,
    REPAIR_HINT,
    ShardRecord,
    SplitIndex,
    check_reader,
    read_lines,
    row_checksum,
    texts_name,
)

OPEN_SHARDS = 256
"""Shards kept mapped per process; the least recently used one is closed first (a process may hold 65,530 maps)."""


class ShardFolder:
    """The shards of one data set and geometry: one split per subfolder."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ShardError(
                f"there are no shards at '{self.path}'", "make them with `mirasol prepare`, or set data.shards to where they are"
            )

    @property
    def splits(self) -> list[str]:
        return sorted(entry.parent.name for entry in self.path.glob(f"*/{INDEX}"))

    def split(self, name: str) -> ShardSplit:
        """Raises ShardError if the split was not prepared, or is damaged."""
        if name not in self.splits:
            has = f"it has {', '.join(self.splits)}" if self.splits else "it holds no finished split"
            raise ShardError(f"'{self.path}' has no split '{name}'; {has}", f"prepare it: `mirasol prepare ... --split {name}`")
        return ShardSplit(self.path / name)


class ShardSplit:
    """One split. Random access to its kept clips.

    Raises ShardError, naming the file, wherever a file is missing, foreign, truncated or changed.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.index = SplitIndex.read(self.path / INDEX)
        self.geometry: ClipGeometry = self.index.geometry
        self.views = self.index.views
        self._fields = tuple(field_shapes(self.geometry))
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
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
    def kept(self) -> list[int]:
        """Numbers of the clips that have media, ascending."""
        return [clip for record in self.index.shards for clip in record.kept]

    @cached_property
    def clips(self) -> list[dict[str, Any]]:
        """Every expected clip: key, video, start_s, end_s, status (kept, failed or missing); the position is the clip's number."""
        clips = read_lines(self.path / CLIPS, self.index.files[CLIPS])
        status = dict.fromkeys(range(len(clips)), "failed")
        status |= dict.fromkeys((clip for record in self.index.shards for clip in record.missing), "missing")
        status |= dict.fromkeys(self.kept, "kept")
        return [{**clip, "status": status[number]} for number, clip in enumerate(clips)]

    def has(self, clip: int) -> bool:
        """Whether the clip of this number has media."""
        return self._row(clip) is not None

    def texts(self, task: str) -> list[dict[str, Any]]:
        """All texts of a task, of kept, failed and missing clips alike, in the annotation's order."""
        if task not in self.index.tasks:
            raise ShardError(
                f"'{self.path}' has no texts for task '{task}'; it has {', '.join(self.tasks) or 'none'}",
                "prepare the task: videos that are prepared already are not decoded again",
            )
        return read_lines(self.path / texts_name(task), self.index.tasks[task].sha256)

    def media(self, clip: int, view: int = 0) -> dict[str, Tensor]:
        """The fields of one clip (see `mirasol_cli.sample`), copied out of the shard and checked against their checksum."""
        place = self._row(clip)
        if place is None:
            raise KeyError(f"clip {clip} of '{self.path}' has no media: it is missing or failed when it was prepared")
        if not 0 <= view < self.views:
            raise IndexError(f"clip {clip} of '{self.path}' has {self.views} views, not {view + 1}")
        record, position = place
        row = position * self.views + view
        tensors = self._shard(record)
        sample = {name: tensors[name][row].clone() for name in self._fields}
        if row_checksum({name: tensor.numpy() for name, tensor in sample.items()}, self._fields) != record.crc32[row]:
            raise ShardError(f"'{self.path / record.name}' is damaged: clip {clip} does not fit its checksum", REPAIR_HINT)
        return sample

    def _row(self, clip: int) -> tuple[ShardRecord, int] | None:
        number = clip // self.index.clips_per_shard
        if not 0 <= number < len(self.index.shards):
            return None
        record = self.index.shards[number]
        position = bisect_left(record.kept, clip)
        return (record, position) if position < len(record.kept) and record.kept[position] == clip else None

    def _shard(self, record: ShardRecord) -> dict[str, Tensor]:
        tensors = self._open.pop(record.number, None)
        if tensors is None:
            path = self.path / record.name
            tensors = open_shard(path, self.geometry)[0]
            if len(tensors[self._fields[0]]) != len(record.crc32):
                raise ShardError(f"'{path}' does not belong to '{self.path / INDEX}': it holds other clips", REPAIR_HINT)
        self._open[record.number] = tensors
        if len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)
        return tensors


def open_shard(path: Path, geometry: ClipGeometry) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The mapped tensors and the metadata of a shard file, after all names, dtypes and shapes were compared with the geometry.

    Raises ShardError that names the file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except FileNotFoundError:
        raise ShardError(f"'{path}' is missing", REPAIR_HINT) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ShardError(f"'{path}' is damaged or no safetensors file: {error}", REPAIR_HINT) from None
    if not isinstance(metadata, dict) or metadata.get("geometry") != geometry.to_plain():
        raise ShardError(f"'{path}' is a shard of another clip geometry than its index", REPAIR_HINT)
    check_reader(metadata, path)
    rows = len(metadata.get("crc32", ()))
    for name, (dtype, shape) in field_shapes(geometry).items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape) != (rows, *shape) or str(tensor.dtype) != f"torch.{dtype}":
            raise ShardError(f"'{path}' is damaged: field '{name}' is missing or has another shape or dtype", REPAIR_HINT)
    return tensors, metadata


def check_sizes(folder: Path, records: Sequence[ShardRecord]) -> None:
    """Every shard must be there with its size. One listing of the folder; content is checked when it is read."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".safetensors")}
    for record in records:
        if record.bytes and record.name not in sizes:
            raise ShardError(f"'{folder / record.name}' is missing", REPAIR_HINT)
        if record.bytes and sizes[record.name] != record.bytes:
            raise ShardError(
                f"'{folder / record.name}' has {sizes[record.name]} bytes where its index says {record.bytes}: "
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
    expected |= {record.name: record.sha256 for record in index.shards if record.bytes}
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
