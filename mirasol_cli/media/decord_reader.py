"""Frames at given times with decord: the fast way for short files. It may kill its process on a damaged file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mirasol_cli.media.probe import MediaInfo
from mirasol_cli.media.pyav_reader import TOLERANCE_S, Picked
from mirasol_cli.media.sampling import Framing

LONGEST_S = 60.0
"""Longer sources are sought in with PyAV."""
LATE_START_S = 0.1
MOST_FRAMES = 2048
"""One batch holds all wanted frames: more than this are read with PyAV, clip by clip."""


CONTAINERS = ("mov", "matroska", "avi")
"""Formats with an index. In MPEG transport and program streams decord seeks to wrong frames, dozens off, and says nothing."""
UNKNOWN_CODECS = (None, "av1", "libdav1d", "libaom-av1")


def decord_suits(info: MediaInfo, wanted: list[np.ndarray]) -> bool:
    """Whether decord reads this file right: it knows no AV1, picks the stream itself and forgets when a video starts."""
    return (
        info.video_codec not in UNKNOWN_CODECS
        and info.format.startswith(CONTAINERS)
        and info.video_streams == 1
        and info.seconds <= LONGEST_S
        and info.start_s <= LATE_START_S
        and sum(len(times) for times in wanted) <= MOST_FRAMES
    )


def read_frames(path: Path | str, info: MediaInfo, wanted: list[np.ndarray], framings: list[Framing]) -> Iterator[Picked]:
    """As `pyav_reader.read_frames`. Raises RuntimeError, IndexError or DECORDError where decord cannot read the file."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # num_threads=1: with more, VP9 and AV1 fail at random. The size is given at the opening: readers decode ahead at it.
    size = framings[0].width, framings[0].height
    reader = decord.VideoReader(os.path.abspath(path), ctx=decord.cpu(0), num_threads=1, width=size[0], height=size[1])
    shown = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), dtype=np.float64)
    shown += info.start_s - shown[0, 0]  # decord lets every video start at 0
    starts_s, end_s = shown[:, 0], float(shown[:, 1].max())
    indices = [np.clip(np.searchsorted(starts_s, times + TOLERANCE_S, side="right") - 1, 0, None) for times in wanted]
    needed = np.unique(np.concatenate(indices))
    batch_KHWC = reader.get_batch(needed).asnumpy()
    del reader  # a reader that lives goes on decoding in the background
    for index, framing in zip(indices, framings, strict=True):
        distinct, which = np.unique(index, return_inverse=True)
        rows = np.searchsorted(needed, distinct)
        yield Picked(framing.crop(batch_KHWC[rows]), which, starts_s[index], end_s)
