"""Clips out of a video file: the one way into the decoders. It runs inside a supervised child process (`decode_worker`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import decord_reader, pyav_reader
from mirasol_cli.media.audio import Window, audio_windows
from mirasol_cli.media.container import decoded_frames, open_media
from mirasol_cli.media.probe import MediaInfo, probe
from mirasol_cli.media.pyav_reader import TOLERANCE_S, Picked
from mirasol_cli.media.sampling import ClipRequest, Framing, clip_span, framing, sample_times

__all__ = ["DecodedClip", "MediaInfo", "decode_clips", "probe"]

MISSING_S, MISSING_SHARE = 0.5, 0.1
"""A clip that lacks more than this much of its span at the end is truncated: headers are wrong by a little, often."""


@dataclass
class DecodedClip:
    """One clip as frames and windows of sound. Times are seconds on the file's timeline (`MediaInfo`)."""

    span_s: tuple[float, float]
    frames: np.ndarray  # uint8 [frames, size, size, 3] RGB: the frame on screen at the centre of each segment of the span
    frame_valid: np.ndarray  # bool [frames]: False where there is no frame, or only the one shown before
    frame_times_s: np.ndarray  # float64 [frames]: when the frame comes on screen; NaN where none is there to be shown
    windows: Iterator[Window]  # the sound of each chunk, decoded while it is consumed


def decode_clips(
    path: Path | str,
    requests: Sequence[ClipRequest],
    geometry: ClipGeometry,
    *,
    keep_truncated: bool = False,
    allow_audio_only: bool = False,
    use_decord: bool = True,
    progress: Callable[[str], None] = lambda stage: None,
) -> Iterator[DecodedClip | MediaError]:
    """The clips of one file, in the order of `requests`; a clip that cannot be had is a `MediaError` in its place.

    The file is opened once for all of them. A decord that raises is followed by PyAV; one that kills the process is the
    caller's to notice: `progress` is called with "decord" before it starts, and with "pyav" or "audio" as work goes on.

    Raises:
        MediaError: the file as a whole cannot be used.
    """
    info = probe(path, allow_audio_only=allow_audio_only)
    plans: list[_Plan | MediaError] = [_plan(info, request, geometry) for request in requests]
    good = [plan for plan in plans if isinstance(plan, _Plan)]
    images = _picked_frames(path, info, good, use_decord, progress)
    for plan in plans:
        if isinstance(plan, MediaError):
            yield plan
            continue
        try:
            yield _clip(path, info, plan, next(images), geometry, keep_truncated, progress)
        except MediaError as error:
            yield error


@dataclass(frozen=True)
class _Plan:
    span_s: tuple[float, float]
    times_s: np.ndarray
    framing: Framing


def _plan(info: MediaInfo, request: ClipRequest, geometry: ClipGeometry) -> _Plan | MediaError:
    try:
        span = clip_span(info, request, geometry)
    except MediaError as error:
        return error
    return _Plan(span, sample_times(span, geometry.frames), framing(info, request, geometry))


def _picked_frames(
    path: Path | str, info: MediaInfo, plans: list[_Plan], use_decord: bool, progress: Callable[[str], None]
) -> Iterator[Picked | None]:
    """What each plan's times show; None for each where the file has no picture."""
    if info.video_index is None:
        yield from (None for _ in plans)
        return
    wanted, framings = [plan.times_s for plan in plans], [plan.framing for plan in plans]
    if plans and use_decord and (table := decord_reader.decord_table(path, info, wanted)) is not None:
        progress("decord")
        try:
            picked = list(decord_reader.read_frames(path, info, table, wanted, framings))
        except MemoryError:
            raise
        except Exception:  # MediaError, RuntimeError, IndexError, DECORDError, ImportError: this file is PyAV's
            picked = None
        progress("pyav")
        if picked is not None:
            yield from picked
            return
    yield from pyav_reader.read_frames(path, info, wanted, framings, progress)


def _clip(
    path: Path | str,
    info: MediaInfo,
    plan: _Plan,
    picked: Picked | None,
    geometry: ClipGeometry,
    keep_truncated: bool,
    progress: Callable[[str], None],
) -> DecodedClip:
    edges_s = np.linspace(*plan.span_s, geometry.chunks + 1)
    windows = _reported(audio_windows(path, info, edges_s, geometry.audio.sample_rate), progress)
    if picked is None:
        frames = np.zeros((geometry.frames, geometry.size, geometry.size, 3), np.uint8)
        valid, times_s = np.zeros(geometry.frames, bool), np.full(geometry.frames, np.nan)
    else:
        frames = picked.frames_KHWC[picked.which]
        there = ~picked.lost & (picked.starts_s <= plan.times_s + TOLERANCE_S)
        if picked.end_s is not None and _ends_early(path, info, plan.span_s, picked.end_s):
            if not keep_truncated:
                start_s, end_s = plan.span_s
                decoded_s = max(0.0, picked.end_s - start_s)
                reason = f"truncated: decoded {decoded_s:.1f} of {end_s - start_s:.1f} s"
                raise MediaError(reason, "download it again, or use --keep-truncated")
            there &= plan.times_s < picked.end_s
        if not there.any():
            raise MediaError("no frame in this span", "the video begins after it or ends before it")
        valid = there & (np.diff(picked.which, prepend=-1) != 0)  # a frame shown again is no further frame
        times_s = np.where(there, picked.starts_s, np.nan)
    return DecodedClip(plan.span_s, frames, valid, times_s, windows)


def _reported(windows: Iterator[Window], progress: Callable[[str], None]) -> Iterator[Window]:
    for window in windows:
        progress("audio")
        yield window


def _ends_early(path: Path | str, info: MediaInfo, span_s: tuple[float, float], video_end_s: float) -> bool:
    """Whether the file lacks the end of the span: the picture ends far before it, and so does the sound."""
    start_s, end_s = span_s
    far = end_s - video_end_s > max(MISSING_S, MISSING_SHARE * (end_s - start_s))
    return far and not _audio_reaches(path, info, end_s)


def _audio_reaches(path: Path | str, info: MediaInfo, end_s: float) -> bool:
    """Whether sound can be decoded up to `end_s`: then the file is whole, and its last picture just stays on screen."""
    if info.audio_index is None:
        return False
    with open_media(path) as container:
        stream = container.streams[info.audio_index]
        try:
            if not info.splices:
                container.seek(int((max(0.0, end_s - 2.0) + info.zero_s) / stream.time_base), stream=stream, backward=True)
        except (OSError, OverflowError):
            return False
        for frame in decoded_frames(container, stream, info.splices):
            if frame.time is not None and frame.time - info.zero_s + frame.samples / frame.sample_rate >= end_s - MISSING_S:
                return True
    return False
