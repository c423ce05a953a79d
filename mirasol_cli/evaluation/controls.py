"""Controls: the same questions with something taken away or exchanged, which tell whether a model looks and listens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from mirasol_cli.errors import UsageError

CONTROLS = ("no-sound", "no-picture", "text-only", "shuffle-chunks", "swap-media")
PER_CHUNK = ("mel", "mel_valid", "thumbnails", "frame_valid")


def altered(sample: dict[str, Any], control: str | None, clip: int, seed: int) -> dict[str, Any]:
    """The sample as the control shows it. `swap-media` exchanges whole samples and so changes nothing here."""
    if control == "no-sound":
        return without_sound(sample)
    if control == "no-picture":
        return without_picture(sample)
    if control == "text-only":
        return without_sound(without_picture(sample))
    if control == "shuffle-chunks":
        return _reordered(sample, chunk_order(len(sample["mel"]), clip, seed))
    return sample


def without_sound(sample: dict[str, Any], chunks: Sequence[int] | None = None) -> dict[str, Any]:
    """Sound masked as where there is none, in all chunks or in some. The state stays unless all of it is gone."""
    changed = _cleared(sample, ("mel", "mel_valid"), chunks)
    if chunks is None:
        changed["audio_state"] = sample["audio_state"] * 0
    return changed


def without_picture(sample: dict[str, Any], chunks: Sequence[int] | None = None) -> dict[str, Any]:
    """Picture masked as where there is no frame, in all chunks or in some."""
    return _cleared(sample, ("frame_valid", "thumbnails", *_tube_fields(sample)), chunks)


def chunk_order(chunks: int, clip: int, seed: int) -> list[int]:
    """A random order of the chunks that is not the true one (with a single chunk there is no other)."""
    rng = random.Random(f"shuffle-chunks/{seed}/{clip}")
    order = list(range(chunks))
    while chunks > 1 and order == sorted(order):
        rng.shuffle(order)
    return order


def derangement(clips: Sequence[int], seed: int) -> dict[int, int]:
    """Clip -> the clip whose media it is shown: one random cycle, so that no clip keeps its own. Raises UsageError for one clip."""
    if len(clips) < 2:
        raise UsageError(
            f"--control swap-media needs at least two clips with media, and of these {len(clips)} can be shown", "evaluate more clips"
        )
    ring = list(clips)
    random.Random(f"swap-media/{seed}").shuffle(ring)
    return dict(zip(ring, ring[1:] + ring[:1], strict=True))


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


def _reordered(sample: dict[str, Any], order: list[int]) -> dict[str, Any]:
    """Sound and picture of a chunk stay together; the times stay, since they say when, not what."""
    return {name: value[order] if name in PER_CHUNK or name.startswith("tubes.") else value for name, value in sample.items()}
