"""Frames at given times with decord, for the one kind of file that it reads right. It may kill its process on a damaged file.

Elsewhere decord returns other frames than asked, and says nothing: it makes one table of packets sorted by time, seeks by number and
counts the pictures that come out, which is wrong wherever packets and pictures are not one to one. Hence a whitelist, and all else is
PyAV's.

What it gains is little: over twelve real clips that it may read (32 frames each, one thread) 2.21 s of CPU against PyAV's 2.25 s, and
from 0.78 to 1.2 of PyAV's speed by clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mirasol_cli.errors import MediaError
from mirasol_cli.media.container import open_media
from mirasol_cli.media.packets import PictureTable, closed_table
from mirasol_cli.media.probe import MediaInfo
from mirasol_cli.media.pyav_reader import TOLERANCE_S, Picked
from mirasol_cli.media.sampling import Framing

LONGEST_S = 60.0
"""Longer sources are sought in with PyAV, and their packets are not walked over."""
LATE_START_S = 0.1
MOST_FRAMES = 2048
"""One batch holds all wanted frames: more than this are read with PyAV, clip by clip."""
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
PROGRESSIVE = 1
"""FFmpeg's AV_FIELD_PROGRESSIVE."""


def decord_table(path: Path | str, info: MediaInfo, wanted: list[np.ndarray]) -> PictureTable | None:
    """The picture packets of a file that decord reads right: H.264 in MP4 or MOV, progressive, 8 bit, short, every key packet
    a true entry; None for any other. Only the packets of a file that passes everything else are walked over."""
    fits = (
        info.format.startswith("mov")
        and info.video_codec == "h264"
        and info.video_streams == 1
        and info.pixel_aspect == 1
        and not info.orientation.mirrored
        and info.seconds <= LONGEST_S
        and info.start_s <= LATE_START_S
        and sum(len(times) for times in wanted) <= MOST_FRAMES
    )
    if not fits:
        return None
    with open_media(path) as container:
        stream = container.streams[info.video_index]
        codec = stream.codec_context
        if codec.field_order != PROGRESSIVE or codec.pix_fmt not in PIXEL_FORMATS:
            return None
        return closed_table(container, stream)


def read_frames(
    path: Path | str, info: MediaInfo, table: PictureTable, wanted: list[np.ndarray], framings: list[Framing]
) -> Iterator[Picked]:
    """As `pyav_reader.read_frames`, for a file whose packets are in `table`.

    Raises:
        MediaError: decord counts other pictures than the file holds.
        RuntimeError, IndexError, DECORDError: decord cannot read the file.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # num_threads=1: with more, VP9 and AV1 fail at random. The size is given at the opening: readers decode ahead at it.
    size = framings[0].width, framings[0].height
    reader = decord.VideoReader(os.path.abspath(path), ctx=decord.cpu(0), num_threads=1, width=size[0], height=size[1])
    shown = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), dtype=np.float64)
    _check(shown, reader.get_key_indices(), table)
    shown += info.start_s - shown[0, 0]  # decord lets every video start at 0
    starts_s, end_s = shown[:, 0], float(shown[:, 1].max())
    indices = [np.clip(np.searchsorted(starts_s, times + TOLERANCE_S, side="right") - 1, 0, None) for times in wanted]
    needed = np.unique(np.concatenate(indices))
    batch_KHWC = reader.get_batch(needed).asnumpy()
    del reader  # a reader that lives goes on decoding in the background
    for index, framing in zip(indices, framings, strict=True):
        distinct, which = np.unique(index, return_inverse=True)
        rows = np.searchsorted(needed, distinct)
        yield Picked(framing.crop(batch_KHWC[rows]), which, starts_s[index], np.zeros(len(index), bool), end_s)


def _check(shown: np.ndarray, keys: list[int], table: PictureTable) -> None:
    """Raise `MediaError` unless decord's own count, times and key pictures are those of the packets."""
    times = np.array(table.times_s)
    alike = (
        len(shown) == len(times)
        and list(keys) == list(table.keys)
        and np.allclose(shown[:, 0] - shown[0, 0], times - times[0], rtol=0, atol=TOLERANCE_S)
    )
    if not alike:
        raise MediaError("decord counts other pictures than the file holds")
