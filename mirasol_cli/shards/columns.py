"""Columns: what there is per clip and per text, as arrays in a safetensors file that is mapped, not read.

    clips.columns    status    uint8    [clips]         ClipStatus
                     audio     uint8    [clips]         AudioState
                     seconds   float64  [clips]         s that were read
                     missing   float32  [clips]         share of the frames that are not there
                     short     uint8    [clips]         1: shorter than the span asked for
                     crc32     uint32   [clips, views]  of each row (`row_checksum`)
                     offset    int64    [clips + 1]     where the clip's line of clips.jsonl begins
                     line_crc32  uint32 [clips]         of that line

    <task>.columns   clip      int32    [texts]         number of the clip that it is about
                     answered  uint8    [texts]         1: it has an answer
                     length    uint32   [texts, 3]      bytes of context, question and answer
                     offset    int64    [texts + 1]     where its line of <task>.jsonl begins
                     line_crc32  uint32 [texts]         of that line

What was not kept has zeros.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy

from mirasol_cli.errors import ShardError
from mirasol_cli.files import sha256_of, write_atomic
from mirasol_cli.shards.index import INDEX, REPAIR_HINT, ClipFailure, ShardEntry, ShardRecord
from mirasol_cli.shards.lines import Lines, WrittenLines, write_lines


class ClipStatus(IntEnum):
    FAILED = 0  # it was there and could not be used
    MISSING = 1  # there was no file
    KEPT = 2

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class _Columns:
    """Arrays by name, in one file."""

    def write(self, path: Path) -> str:
        """Atomic; a file that holds just this is left alone. Returns the file's SHA-256."""
        content = safetensors_numpy.save({each.name: np.ascontiguousarray(getattr(self, each.name)) for each in fields(self)})
        digest = sha256(content).hexdigest()
        if not path.is_file() or path.stat().st_size != len(content) or sha256_of(path) != digest:
            write_atomic(path, content)
        return digest

    @classmethod
    def read(cls, path: Path, digest: str) -> Self:
        """The arrays, mapped. Raises ShardError that names the file if it is missing, damaged or foreign."""
        try:
            if sha256_of(path) != digest:
                raise ShardError(f"'{path}' is damaged: its checksum is not the one in {INDEX}", REPAIR_HINT)
            with safe_open(path, "pt") as file:  # numpy's own reader would copy
                return cls(**{each.name: file.get_tensor(each.name).numpy() for each in fields(cls)})
        except FileNotFoundError:
            raise ShardError(f"'{path}' is missing", REPAIR_HINT) from None
        except (SafetensorError, OSError) as error:
            raise ShardError(f"'{path}' is damaged or does not hold columns: {error}", REPAIR_HINT) from None


@dataclass(frozen=True)
class ClipColumns(_Columns):
    """Arrays with an entry per expected clip (see the module)."""

    status: np.ndarray
    audio: np.ndarray
    seconds: np.ndarray
    missing: np.ndarray
    short: np.ndarray
    crc32: np.ndarray
    offset: np.ndarray
    line_crc32: np.ndarray

    @staticmethod
    def of(records: Iterable[ShardRecord], clips: int, views: int, lines: WrittenLines | None) -> ClipColumns:
        """From the records of all shards. `lines`: of clips.jsonl; None where they are not known."""
        columns = ClipColumns(
            status=np.zeros(clips, np.uint8), audio=np.zeros(clips, np.uint8), seconds=np.zeros(clips, np.float64),
            missing=np.zeros(clips, np.float32), short=np.zeros(clips, np.uint8), crc32=np.zeros((clips, views), np.uint32),
            offset=np.zeros(1, np.int64) if lines is None else lines.offset,
            line_crc32=np.zeros(0, np.uint32) if lines is None else lines.crc32,
        )  # fmt: skip
        for record in records:
            columns.status[record.missing] = ClipStatus.MISSING
            columns.status[record.kept] = ClipStatus.KEPT
            columns.audio[record.kept] = record.audio
            columns.seconds[record.kept] = record.seconds
            columns.crc32[record.kept] = np.array(record.crc32, np.uint32).reshape(-1, views)
            columns.short[record.short] = 1
            for clip, share in record.incomplete:
                columns.missing[clip] = share
        return columns

    def record(self, entry: ShardEntry, first: int, failures: Mapping[int, ClipFailure]) -> ShardRecord:
        """All that is known of the shard whose first expected clip is `first`."""
        clips = np.arange(first, first + entry.clips)
        status = self.status[clips]
        kept, missing = clips[status == ClipStatus.KEPT], self.missing[clips]
        return ShardRecord(
            number=entry.number, clips=entry.clips, clips_digest=entry.clips_digest, bytes=entry.bytes, sha256=entry.sha256,
            kept=kept.tolist(), missing=clips[status == ClipStatus.MISSING].tolist(),
            failed=[failures[clip] for clip in clips[status == ClipStatus.FAILED].tolist() if clip in failures],
            short=clips[self.short[clips] > 0].tolist(),
            incomplete=[[int(clip), round(float(share), 4)] for clip, share in zip(clips, missing, strict=True) if share > 0],
            audio=self.audio[kept].tolist(), seconds=self.seconds[kept].tolist(), crc32=self.crc32[kept].reshape(-1).tolist(),
        )  # fmt: skip


@dataclass(frozen=True)
class TextColumns(_Columns):
    """Arrays with an entry per text (see the module)."""

    clip: np.ndarray
    answered: np.ndarray
    length: np.ndarray
    offset: np.ndarray
    line_crc32: np.ndarray


PARTS = ("context", "question", "answer")
"""The columns of `length`."""


class Texts(Sequence[dict[str, Any]]):
    """The texts of a task, in the annotation's order, each read when it is asked for. Threads may share it.

    Attributes:
        clip: int32 [texts], number of the clip that each is about.
        answered: bool [texts].
        length: uint32 [texts, 3], bytes of context, question and answer (`PARTS`).
    """

    def __init__(self, rows: Sequence[dict[str, Any]], clip: np.ndarray, answered: np.ndarray, length: np.ndarray):
        self._rows, self.clip, self.answered, self.length = rows, clip, answered.view(bool), length

    @staticmethod
    def of(path: Path, columns: TextColumns) -> Texts:
        """The texts of a file, read by offset."""
        return Texts(Lines(path, columns.offset, columns.line_crc32), columns.clip, columns.answered, columns.length)

    @staticmethod
    def measured(rows: Sequence[dict[str, Any]]) -> Texts:
        """Of rows at hand, or of a file that no columns lie beside."""
        measures = _Measures()
        for row in rows:
            measures.add(row)
        return Texts(rows, *measures.arrays())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        return self._rows[number]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._rows[number] for number in range(len(self)))


class _Measures:
    """What columns tell of texts, while they pass."""

    def __init__(self) -> None:
        self._clip, self._answered, self._length = array("i"), array("B"), array("I")

    def add(self, row: Mapping[str, Any]) -> None:
        self._clip.append(row["clip"])
        self._answered.append(row["answer"] is not None)
        self._length.extend(len((row[part] or "").encode("utf-8", "surrogatepass")) for part in PARTS)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """clip, answered, length"""
        length = np.array(self._length, np.uint32).reshape(-1, len(PARTS))
        return np.array(self._clip, np.int32), np.array(self._answered, np.uint8), length


def write_texts(path: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[str, TextColumns]:
    """The lines of a task, a row at a time: the file's SHA-256 and its columns. A file that holds just this is left alone."""
    measures = _Measures()

    def measured() -> Iterator[Mapping[str, Any]]:
        for row in rows:
            measures.add(row)
            yield row

    lines = write_lines(path, measured())
    clip, answered, length = measures.arrays()
    return lines.sha256, TextColumns(clip=clip, answered=answered, length=length, offset=lines.offset, line_crc32=lines.crc32)
