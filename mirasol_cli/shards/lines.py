"""JSON lines of a split: written in one pass, read by offset, so that no text is in memory before it is used."""

from __future__ import annotations

import hashlib
import io
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from mirasol_cli.errors import ShardError
from mirasol_cli.files import crc32_of, json_line, open_atomic
from mirasol_cli.shards.index import INDEX, REPAIR_HINT


@dataclass(frozen=True)
class WrittenLines:
    """Where each line of a file lies, and what it holds."""

    sha256: str  # of the file
    offset: np.ndarray  # int64 [lines + 1]: where each line begins, and where the last one ends
    crc32: np.ndarray  # uint32 [lines], without the line break


def write_lines(path: Path, rows: Iterable[Any]) -> WrittenLines:
    """Atomic JSONL, a row at a time. A file that holds just this is left alone.

    Raises EnvironmentProblem where the disk is full or read-only.
    """
    digest, offset, crc32 = hashlib.sha256(), array("q", [0]), array("I")
    with ExitStack() as files:
        old = files.enter_context(open(path, "rb")) if path.is_file() else io.BytesIO()
        new: BinaryIO | None = None  # from the first line on that differs

        def begin() -> BinaryIO:
            file = files.enter_context(open_atomic(path))
            old.seek(0)
            _copy(old, file, offset[-1])
            return file

        for row in rows:
            line = json_line(row).encode() + b"\n"
            if new is None and old.read(len(line)) != line:
                new = begin()
            if new is not None:
                new.write(line)
            digest.update(line)
            offset.append(offset[-1] + len(line))
            crc32.append(crc32_of([line[:-1]]))
        if new is None and (old.read(1) or not path.is_file()):
            begin()
    return WrittenLines(digest.hexdigest(), np.array(offset, np.int64), np.array(crc32, np.uint32))


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size > 0 and (piece := source.read(min(size, 1 << 22))):
        target.write(piece)
        size -= len(piece)


class Lines(Sequence[dict[str, Any]]):
    """The rows of a JSONL file, each parsed and compared with its checksum when it is asked for. Threads may share it.

    Args:
        offset, crc32: as `write_lines` gave them.

    Raises:
        ShardError: the file is missing, or has another size; later, a line does not match its checksum. The file is named.
    """

    def __init__(self, path: Path, offset: np.ndarray, crc32: np.ndarray):
        self.path, self._offset, self._crc32 = path, offset, crc32
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (it stays open)
            size = os.fstat(self._file.fileno()).st_size
        except FileNotFoundError:
            raise ShardError(f"'{path}' is missing", REPAIR_HINT) from None
        except OSError as error:
            raise ShardError(f"'{path}' cannot be read: {error.strerror}", REPAIR_HINT) from None
        if size != int(offset[-1]):
            raise ShardError(f"'{path}' is damaged: it has {size} bytes where {int(offset[-1])} were written", REPAIR_HINT)

    @staticmethod
    def scanned(path: Path, sha256: str) -> Lines:
        """Of a file that no columns lie beside: one pass finds its lines, and compares it with the checksum of the index."""
        content = checked_content(path, sha256)
        offset, crc32, begin = array("q", [0]), array("I"), 0
        while begin < len(content):
            end = content.find(b"\n", begin)
            end = len(content) if end < 0 else end
            crc32.append(crc32_of([content[begin:end]]))
            offset.append(min(end + 1, len(content)))
            begin = end + 1
        return Lines(path, np.array(offset, np.int64), np.array(crc32, np.uint32))

    def __len__(self) -> int:
        return len(self._crc32)

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, number: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, number: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        place = index(number)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(f"'{self.path}' has {len(self)} lines, not {number}")
        begin, end = int(self._offset[place]), int(self._offset[place + 1])
        try:
            line = os.pread(self._file.fileno(), end - begin, begin).removesuffix(b"\n")
        except OSError as error:
            raise ShardError(f"'{self.path}' cannot be read: {error.strerror}", "check the disk or the store it lies on") from error
        if crc32_of([line]) != self._crc32[place]:
            raise ShardError(f"'{self.path}' is damaged: line {place + 1} does not match its checksum", REPAIR_HINT)
        row: dict[str, Any] = json.loads(line)
        return row


def checked_content(path: Path, sha256: str) -> bytes:
    """The bytes of a file of a split, after its checksum was compared with the index's. Raises ShardError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"'{path}' is missing", REPAIR_HINT) from None
    except OSError as error:
        raise ShardError(f"'{path}' cannot be read: {error.strerror}", REPAIR_HINT) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ShardError(f"'{path}' is damaged: its checksum is not the one in {INDEX}", REPAIR_HINT)
    return content


def read_lines(path: Path, sha256: str) -> Iterator[dict[str, Any]]:
    """All rows of a JSONL file of a split, after its checksum was compared with the index's. Raises ShardError."""
    return (json.loads(line) for line in checked_content(path, sha256).split(b"\n") if line)
