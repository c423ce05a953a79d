"""From a video file to the arrays of a shard. Decoders run only here, and only inside supervised child processes (`decode_pool`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirasol_cli.media.clip import ClipSample

READER_VERSION = 2
"""Raised whenever the same file may give other frames or other sound: shards of an earlier reader are made anew."""


def valid_share(sample: ClipSample) -> float:
    """Share of a clip's frames that the file really has, 0 to 1. Frames before the picture begins, after it ends and those that are
    damaged lack; a frame that stays on screen counts each time, though `frame_valid` counts it once."""
    times_TF = sample["frame_times"]
    return float((times_TF == times_TF).mean())  # NaN marks a frame that is not there
