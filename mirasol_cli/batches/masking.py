"""A stored clip with its audio, its video or some of its chunks masked, as where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def without_audio(sample: dict[str, Any], chunks: Sequence[int] | None = None) -> dict[str, Any]:
    """Sound masked as where there is none, in all chunks or in some. The state stays unless all of it is gone."""
    changed = _cleared(sample, ("mel", "mel_valid"), chunks)
    if chunks is None:
        changed["audio_state"] = sample["audio_state"] * 0
    return changed


def without_video(sample: dict[str, Any], chunks: Sequence[int] | None = None) -> dict[str, Any]:
    """Picture masked as where there is no frame, in all chunks or in some."""
    return _cleared(sample, ("frame_valid", "thumbnails", *_tube_fields(sample)), chunks)


def _tube_fields(sample: dict[str, Any]) -> list[str]:
    return [name for name in sample if name.startswith("tubes.")]


def _cleared(sample: dict[str, Any], names: Sequence[str], chunks: Sequence[int] | None) -> dict[str, Any]:
    changed = dict(sample)
    for name in names:
        value = sample[name] * 0 if chunks is None else sample[name] + 0  # a copy, array or tensor alike
        if chunks is not None:
            value[list(chunks)] = 0
        changed[name] = value
    return changed
