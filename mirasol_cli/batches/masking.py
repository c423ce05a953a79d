"""A stored clip with its audio, its video or some of its chunks masked, as where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mirasol_cli.sample import AUDIO, VIDEO, fields_under, names_of


def without_audio(sample: dict[str, Any], chunks: Sequence[int] | None = None) -> dict[str, Any]:
    """Sound masked as where there is none, in all chunks or in some. The state stays unless all of it is gone."""
    return _cleared(sample, AUDIO, chunks)


def without_video(sample: dict[str, Any], chunks: Sequence[int] | None = None) -> dict[str, Any]:
    """Picture masked as where there is no frame, in all chunks or in some."""
    return _cleared(sample, VIDEO, chunks)


def with_chunks_in_order(sample: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Sound and picture of a chunk stay together; the times stay, since they say when, not what."""
    moved = names_of([field for field in fields_under(VIDEO, AUDIO) if field.per_chunk], sample)
    return sample | {name: sample[name][list(order)] for name in moved}


def _cleared(sample: dict[str, Any], mask: str, chunks: Sequence[int] | None) -> dict[str, Any]:
    changed = dict(sample)
    for name in names_of([field for field in fields_under(mask) if chunks is None or field.per_chunk], sample):
        value = sample[name] * 0 if chunks is None else sample[name] + 0  # a copy, array or tensor alike
        if chunks is not None:
            value[list(chunks)] = 0
        changed[name] = value
    return changed
