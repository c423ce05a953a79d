"""Writing one shard: rows come in any order, the file's bytes depend only on which clips were kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from mirasol_cli.datasets.example import ClipSpan
from mirasol_cli.errors import ShardError
from mirasol_cli.files import write_atomic
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import READER_VERSION, valid_share
from mirasol_cli.sample import field_shapes
from mirasol_cli.shards.index import (
    METADATA_KEY,
    SCHEMA,
    ClipFailure,
    ShardRecord,
    check_geometry,
    check_reader,
    clips_per_shard,
    keys_digest,
    read_checksummed,
    record_name,
    row_checksum,
    shard_name,
    write_checksummed,
)
from mirasol_cli.shards.shard_file import ShardFile

SHORT_S = 0.5
"""A clip is short if it lacks more than this: cuts at keyframes are off by a little, always."""
Sample = Mapping[str, Any]  # field -> numpy array, one view of one clip


@dataclass(frozen=True, kw_only=True)
class ShardSlot:
    """Which shard, of which clips, goes where. Small, and may be sent to another machine."""

    folder: Path
    number: int
    clips: tuple[ClipSpan, ...]  # the expected clips; the first one's number is number * clips_per_shard
    geometry: ClipGeometry
    views: int

    @property
    def first(self) -> int:
        return self.number * clips_per_shard(self.geometry)

    @cached_property
    def digest(self) -> str:
        return keys_digest([clip.key for clip in self.clips])

    @property
    def path(self) -> Path:
        return self.folder / shard_name(self.number)

    @property
    def record_path(self) -> Path:
        return self.folder / record_name(self.number)

    def read_record(self, *, repair: bool = False) -> ShardRecord | None:
        """The record that a finished but not yet indexed shard left; None if there is none or it is damaged or not of these clips.

        Raises ShardError if it was made with another geometry or, unless `repair`, by another reader.
        """
        try:
            plain = read_checksummed(self.record_path)
        except ShardError:
            return None
        try:
            check_reader(plain, self.record_path)
        except ShardError:
            if repair:
                return None
            raise
        check_geometry(self.geometry, ClipGeometry.from_plain(plain["geometry"]), self.record_path)
        record = ShardRecord.from_plain(plain["record"])
        return record if record.clips_digest == self.digest else None


class ShardDraft:
    """The rows of one shard while they come in. Memory: one shard, allocated as rows arrive; `write` takes as much again."""

    def __init__(self, slot: ShardSlot):
        self.slot = slot
        self._fields = field_shapes(slot.geometry)
        rows = len(slot.clips) * slot.views
        self._rows = {name: np.empty((rows, *shape), dtype) for name, (dtype, shape) in self._fields.items()}
        self._kept: set[int] = set()  # positions in slot.clips
        self._missing: set[int] = set()
        self._failed: dict[int, ClipFailure] = {}

    @property
    def open_positions(self) -> list[int]:
        """Positions of the clips of which nothing is known yet."""
        return [p for p in range(len(self.slot.clips)) if p not in self._kept and p not in self._missing and p not in self._failed]

    def add(self, position: int, views: Sequence[Sample]) -> None:
        """The sample of every view of a clip. Raises ValueError on fields that are not those of the geometry."""
        if len(views) != self.slot.views:
            raise ValueError(f"{len(views)} views where {self.slot.views} are expected")
        for view, sample in enumerate(views):
            for name, (dtype, shape) in self._fields.items():
                if name not in sample:
                    raise ValueError(f"a sample lacks the field '{name}'")
                value = np.asarray(sample[name])
                if value.shape != shape or (value.dtype != dtype and not (value.dtype == bool and dtype == "uint8")):
                    raise ValueError(f"field '{name}' is {value.dtype} {value.shape}, not {dtype} {shape}")
                self._rows[name][position * self.slot.views + view] = value
        self._kept.add(position)

    def mark_missing(self, position: int) -> None:
        """There is no file for this clip."""
        self._missing.add(position)

    def fail(self, position: int, stage: str, reason: str, hint: str | None = None) -> None:
        clip = self.slot.clips[position]
        self._failed[position] = ClipFailure(
            clip=self.slot.first + position, key=clip.key, video=clip.video, stage=stage, reason=reason, hint=hint or ""
        )

    def reuse_rows(self) -> None:
        """Copy the intact rows of clips of this slot from the shard file that is there already, if any: they need no decoding."""
        try:
            shard = ShardFile(self.slot.path, self.slot.geometry)
            metadata = shard.metadata
            keys, names, views = metadata.get("keys", []), tuple(self._fields), self.slot.views
            if metadata.get("views") != views or metadata.get("digest") != keys_digest(keys):
                return
            positions = {clip.key: position for position, clip in enumerate(self.slot.clips)}
            for old, key in enumerate(keys):
                rows = [shard.row(old * views + view) for view in range(views)]
                intact = all(row_checksum(row, names) == metadata["crc32"][old * views + view] for view, row in enumerate(rows))
                if key in positions and intact:
                    self.add(positions[key], rows)
        except ShardError:  # what was read before it stays
            return

    def write(self) -> ShardRecord:
        """The shard file, then its record; both atomic, so that a kill leaves the old state, or the shard without its record.

        Raises EnvironmentProblem where the disk is full.
        """
        slot, kept = self.slot, sorted(self._kept)
        self._compact(kept)
        arrays = {name: array[: len(kept) * slot.views] for name, array in self._rows.items()}
        names = tuple(self._fields)
        crc32 = [row_checksum({name: arrays[name][row] for name in names}, names) for row in range(len(kept) * slot.views)]
        content = b""
        if kept:
            keys = [slot.clips[position].key for position in kept]
            described = {
                "schema": SCHEMA, "reader": READER_VERSION, "geometry": slot.geometry.to_plain(), "views": slot.views,
                "keys": keys, "digest": keys_digest(keys), "crc32": crc32,
            }  # fmt: skip
            content = safetensors_numpy.save(arrays, {METADATA_KEY: json.dumps(described)})
        first_views = slice(0, None, slot.views)
        spans = arrays["span"][first_views]
        shares = [valid_share({"frame_times": arrays["frame_times"][row : row + slot.views]}) for row in range(0, len(crc32), slot.views)]
        record = ShardRecord(
            number=slot.number,
            clips=len(slot.clips),
            clips_digest=slot.digest,
            kept=[slot.first + position for position in kept],
            missing=[slot.first + position for position in sorted(self._missing)],
            failed=[self._failed[position] for position in sorted(self._failed)],
            short=[slot.first + p for p, (start, end) in zip(kept, spans, strict=True) if is_short(slot.clips[p], end - start)],
            incomplete=[[slot.first + p, round(1 - share, 4)] for p, share in zip(kept, shares, strict=True) if share < 1],
            audio=arrays["audio_state"][first_views].tolist(),
            seconds=[round(float(end - start), 3) for start, end in spans],
            crc32=crc32,
            bytes=len(content),
            sha256=sha256(content).hexdigest() if content else "",
        )
        slot.record_path.unlink(missing_ok=True)  # it would describe the file that is replaced now
        if content:
            write_atomic(slot.path, content)
        else:
            slot.path.unlink(missing_ok=True)
        described = {"schema": SCHEMA, "reader": READER_VERSION, "geometry": slot.geometry.to_plain(), "record": record.to_plain()}
        write_checksummed(slot.record_path, described)
        return record

    def _compact(self, kept: Sequence[int]) -> None:
        """Move the kept rows to the front, in order, in place."""
        views = self.slot.views
        for new, old in enumerate(kept):
            if new != old:
                for array in self._rows.values():
                    array[new * views : (new + 1) * views] = array[old * views : (old + 1) * views]


def is_short(clip: ClipSpan, seconds: float) -> bool:
    """Whether clearly less was read than the annotation's span asks for."""
    return clip.start_s is not None and clip.end_s is not None and seconds < clip.end_s - clip.start_s - SHORT_S


def remove_partials(folder: Path) -> None:
    """Remove what killed writes left half-done in `folder`."""
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and entry.name.endswith(".partial"):
            Path(entry.path).unlink(missing_ok=True)
