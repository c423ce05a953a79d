"""Which span of a video, which instants of it, and which part of the picture make a clip. Pure arithmetic."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry

if TYPE_CHECKING:  # the parent of the decoding processes needs requests, not decoders
    from mirasol_cli.media.probe import MediaInfo

LEAST_VIEW = 0.8
"""OURS: a training view keeps at least this share of its span, so that most answers stay visible."""


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """One clip to be cut from a file: a span in seconds (None: from the start, to the end) and the number of its view."""

    key: str = ""  # `ClipSpan.key`; views are drawn from it
    start_s: float | None = None
    end_s: float | None = None
    view: int = 0  # 0: the whole span and the centre crop


@dataclass(frozen=True)
class Framing:
    """The frame is scaled to `width` x `height` px, then a square of `size` px is kept, at `place` along the long side (0 to 1)."""

    width: int
    height: int
    size: int
    place: float = 0.5

    @classmethod
    def of(cls, width: int, height: int, size: int, place: float) -> Framing:
        """Short side of a picture of `width` x `height` px to `size` px."""
        short = max(1, min(width, height))  # 0 px: there is no picture to frame
        return cls(max(size, round(width * size / short)), max(size, round(height * size / short)), size, place)

    def resized(self, width: int, height: int) -> Framing:
        """The same for a picture of another shape."""
        return Framing.of(width, height, self.size, self.place)

    def crop(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """The square of each frame; the last three dimensions are rows, columns and colours."""
        left, top = int((self.width - self.size) * self.place), int((self.height - self.size) * self.place)
        return frames_FHWC[..., top : top + self.size, left : left + self.size, :]


def clip_span(info: MediaInfo, request: ClipRequest, geometry: ClipGeometry) -> tuple[float, float]:
    """(start, end) in seconds on the file's timeline, inside the video.

    A span shorter than `min_span_s` is widened around its middle; one that runs past the end is cut there.

    Raises:
        MediaError: the span is empty or lies outside the video.
    """
    start = info.start_s if request.start_s is None else float(request.start_s)
    end = info.end_s if request.end_s is None else float(request.end_s)
    if not (np.isfinite(start) and np.isfinite(end) and start < end):
        if request.end_s is None and start >= info.end_s:
            raise MediaError(f"span starts at {start:.2f} s, after the end of the video at {info.end_s:.2f} s", stage="span")
        raise MediaError(f"span {start:.2f} to {end:.2f} s is empty", stage="span")
    if start >= info.end_s or end <= 0:
        raise MediaError(f"span {start:.2f} to {end:.2f} s lies outside the video of {info.end_s:.2f} s", stage="span")
    if end - start < geometry.min_span_s:
        middle = (start + end) / 2
        start = max(0.0, min(middle - geometry.min_span_s / 2, info.end_s - geometry.min_span_s))
        end = start + geometry.min_span_s
    start, end = max(start, 0.0), min(end, info.end_s)
    if request.view:
        share, place, _ = _draws(request)
        length = (LEAST_VIEW + (1 - LEAST_VIEW) * share) * (end - start)
        start = start + place * (end - start - length)
        end = start + length
    return start, end


def sample_times(span: tuple[float, float], frames: int) -> np.ndarray:
    """float64 [frames]: the centres of equal segments of the span, in seconds."""
    start, end = span
    return start + (np.arange(frames) + 0.5) * ((end - start) / frames)


def framing(info: MediaInfo, request: ClipRequest, geometry: ClipGeometry) -> Framing:
    """Short side to `size` px, then the centre square; other views take another square along the long side."""
    return Framing.of(info.width, info.height, geometry.size, 0.5 if request.view == 0 else _draws(request)[2])


def _draws(request: ClipRequest) -> tuple[float, float, float]:
    """Three numbers in [0, 1) that depend on the clip's key and the view only."""
    digest = hashlib.sha256(f"{request.key}\n{request.view}".encode()).digest()
    first, second, third = (int.from_bytes(digest[i : i + 8], "big") / 2**64 for i in (0, 8, 16))
    return first, second, third
