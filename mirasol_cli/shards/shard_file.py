"""One shard's media file, read row by row with plain reads: on a shared store one request brings what many page faults would, and a
store that fails gives an error where a mapped file would end the process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mirasol_cli.errors import ShardError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.sample import field_shapes
from mirasol_cli.shards.index import METADATA_KEY, REPAIR_HINT, check_reader

LENGTH_BYTES = 8
"""Of the header's length, which a safetensors file begins with."""


class ShardFile:
    """The rows of one shard. Threads may share it; the file is closed when nobody holds it any more.

    Attributes:
        metadata: what the writer said about the rows: geometry, views, keys, digest, crc32.
        rows: how many there are.

    Raises:
        ShardError: the file is missing, damaged, of another geometry, schema or reader. It is named.
    """

    def __init__(self, path: Path, geometry: ClipGeometry):
        self.path = path
        try:
            with safe_open(path, "np") as file:  # checks the header: names, types, shapes and places fit together and fill the file
                self.metadata: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (it stays open)
            length = int.from_bytes(os.pread(self._file.fileno(), LENGTH_BYTES, 0), "little")
            header = json.loads(os.pread(self._file.fileno(), length, LENGTH_BYTES))
        except FileNotFoundError:
            raise ShardError(f"'{path}' is missing", REPAIR_HINT) from None
        except (SafetensorError, OSError, ValueError) as error:
            raise ShardError(f"'{path}' is damaged or no safetensors file: {error}", REPAIR_HINT) from None
        if not isinstance(self.metadata, dict) or self.metadata.get("geometry") != geometry.to_plain():
            raise ShardError(f"'{path}' is a shard of another clip geometry than its index", REPAIR_HINT)
        check_reader(self.metadata, path)
        self.rows = len(self.metadata.get("crc32", ()))
        self._fields: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}  # name -> dtype, shape of a row, place of the first row
        for name, (dtype, shape) in field_shapes(geometry).items():
            stored = header.get(name, {})
            if stored.get("shape") != [self.rows, *shape] or stored.get("dtype") != _stored_name(np.dtype(dtype)):
                raise ShardError(f"'{path}' is damaged: field '{name}' is missing or has another shape or dtype", REPAIR_HINT)
            self._fields[name] = np.dtype(dtype), shape, LENGTH_BYTES + length + stored["data_offsets"][0]

    def row(self, number: int) -> dict[str, np.ndarray]:
        """The fields of one row, as arrays of their own.

        Raises ShardError if it cannot be read; its checksum is not looked at.
        """
        return {name: self._read(number, *field) for name, field in self._fields.items()}

    def _read(self, number: int, dtype: np.dtype, shape: tuple[int, ...], begin: int) -> np.ndarray:
        array = np.empty(shape, dtype)
        view = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], begin + number * len(view) + done)
            except OSError as error:
                raise ShardError(f"'{self.path}' cannot be read: {error.strerror}", "check the disk or the store it lies on") from error
            if not count:
                raise ShardError(f"'{self.path}' is damaged: it ends before row {number}", REPAIR_HINT)
            done += count
        return array


def _stored_name(dtype: np.dtype) -> str:
    """A dtype as a safetensors header says it: U8, F16, F64."""
    return f"{ {'u': 'U', 'i': 'I', 'f': 'F'}[dtype.kind] }{8 * dtype.itemsize}"
