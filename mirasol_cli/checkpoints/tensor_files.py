"""The tensors of a checkpoint in safetensors files: written as a stream that is hashed on its way, read row by row.

A set of tensors (`model`, `optimizer`, ...: its stem) is one file, `model.safetensors`, or several, `model-00001-of-00002.safetensors`,
with an index in JSON that Hugging Face's readers know: `weight_map` says which file holds a tensor. Where processes that hold a
part of each tensor wrote their own files, `slices` says of what is cut which rows lie where:

    {"weight_map": {NAME: FILE, ...}, "slices": {NAME: {"shape": [4096, 2048], "first_rows": {FILE: 0, FILE: 2048}}}}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirasol_cli.errors import CheckpointError
from mirasol_cli.files import read_json

PIECE_BYTES = 16 << 20
"""Written and hashed at once; other threads run meanwhile."""
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Rows `first` and on of a tensor of `shape`, whose other rows other processes hold."""

    tensor: Tensor
    first: int
    shape: tuple[int, ...]


def tensor_of(part: Tensor | Rows) -> Tensor:
    return part.tensor if isinstance(part, Rows) else part


# ---------------------------------------------------------------------------------------------------------------- writing


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file, flushed to disk; returns its entry of a manifest. Its bytes follow from names and values alone.

    Args:
        tensors: on the CPU.

    Raises:
        OSError: no space, or no permission.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that every number is aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": _TYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for piece in _pieces(len(text).to_bytes(8, "little") + text, [tensors[name] for name in names]):
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _pieces(head: bytes, tensors: Sequence[Tensor]) -> Iterator[bytes | memoryview]:
    yield head
    for tensor in tensors:
        content: memoryview = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]


def file_names(stem: str, count: int) -> list[str]:
    """As Hugging Face names them."""
    return [f"{stem}.safetensors"] if count == 1 else [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def index_name(stem: str) -> str:
    return f"{stem}.safetensors.index.json"


def index_of(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The index of a stem's files; of each, `tensors`: name -> None, or `first` row and `shape` of what is cut."""
    weight_map: dict[str, str] = {}
    slices: dict[str, dict[str, Any]] = {}
    for file, entry in files.items():
        for name, cut in entry["tensors"].items():
            if cut is None:
                weight_map[name] = file
            else:
                slices.setdefault(name, {"shape": cut["shape"], "first_rows": {}})["first_rows"][file] = cut["first"]
    index: dict[str, Any] = {"metadata": {"total_size": sum(entry["tensor_bytes"] for entry in files.values())}, "weight_map": weight_map}
    return {**index, "slices": slices} if slices else index


# ---------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Part:
    """Where rows of a tensor lie, from `first` on."""

    file: str
    first: int


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of some stems of a checkpoint, read (mapped into memory) when they are asked for.

    Attributes:
        shapes: of whole tensors, by name.

    Raises:
        CheckpointError: a file is missing or not readable as safetensors, or the index does not describe the files.
    """

    def __init__(self, checkpoint: Path, *stems: str):
        self.checkpoint = checkpoint
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, list[_Part]] = {}
        self._files: dict[str, Any] = {}
        self.stems = [stem for stem in stems if self._add(stem)]

    def _add(self, stem: str) -> bool:
        """Whether the checkpoint has anything of this stem."""
        if not (self.checkpoint / index_name(stem)).is_file():
            (name,) = file_names(stem, 1)
            if not (self.checkpoint / name).is_file():
                return False
            for tensor in self._open(name).keys():  # noqa: SIM118 (safetensors has no iteration)
                self._parts[tensor] = [_Part(name, 0)]
                self.shapes[tensor] = self._shape(name, tensor)
            return True
        index = read_json(self.checkpoint / index_name(stem))
        try:
            for tensor, file in index["weight_map"].items():
                self._parts[tensor] = [_Part(_plain(file), 0)]
                self.shapes[tensor] = self._shape(_plain(file), tensor)
            for tensor, cut in index.get("slices", {}).items():
                parts = [_Part(_plain(file), int(first)) for file, first in cut["first_rows"].items()]
                self._parts[tensor] = sorted(parts, key=lambda part: part.first)
                self.shapes[tensor] = tuple(int(length) for length in cut["shape"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"'{self.checkpoint / index_name(stem)}' is damaged", "use another checkpoint") from None
        return True

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """Rows `first` to `first + count` of a tensor; of no other rows are any bytes read."""
        parts, found = self._parts[name], []
        borders = [*(part.first for part in parts[1:]), self.shapes[name][0]]
        for part, border in zip(parts, borders, strict=True):
            start, end = max(first, part.first), min(first + count, border)
            if start < end:
                found.append(self._slice(part.file, name)[start - part.first : end - part.first])
        if not found:
            return self._slice(parts[0].file, name)[0:0]
        rows = found[0] if len(found) == 1 else torch.cat(found)
        if len(rows) != count:
            raise CheckpointError(f"'{self.checkpoint}' does not hold all rows of '{name}'", "use another checkpoint")
        return rows

    def __getitem__(self, name: str) -> Tensor:
        part, *others = self._parts[name]
        if not others and self._shape(part.file, name) == self.shapes[name]:
            try:
                return self._open(part.file).get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise self._unreadable(part.file, error) from None
        return self.rows(name, 0, self.shapes[name][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _shape(self, file: str, name: str) -> tuple[int, ...]:
        return tuple(self._slice(file, name).get_shape())

    def _slice(self, file: str, name: str) -> Any:
        try:
            return self._open(file).get_slice(name)
        except (SafetensorError, OSError) as error:
            raise self._unreadable(file, error) from None

    def _open(self, file: str) -> Any:
        if file not in self._files:
            try:
                self._files[file] = safe_open(self.checkpoint / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise self._unreadable(file, error) from None
        return self._files[file]

    def _unreadable(self, file: str, error: Exception) -> CheckpointError:
        return CheckpointError(f"'{self.checkpoint / file}' cannot be read: {error}", "use another checkpoint")


def _plain(name: Any) -> str:
    """A file name, which leads to no other folder."""
    return os.path.basename(str(name))


def rows_of(tensors: Mapping[str, Tensor], name: str, first: int, count: int) -> Tensor:
    """Rows of a tensor that is stored, or at hand."""
    return tensors.rows(name, first, count) if isinstance(tensors, StoredTensors) else tensors[name][first : first + count]


def shapes_of(tensors: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...]]:
    return tensors.shapes if isinstance(tensors, StoredTensors) else {name: tuple(tensor.shape) for name, tensor in tensors.items()}
