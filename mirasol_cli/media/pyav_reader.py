"""Frames at given times with PyAV: any codec, any container, any length, by seeking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from mirasol_cli.errors import MediaError
from mirasol_cli.media.container import AFTER_LOSS, decoded_frames, open_media
from mirasol_cli.media.display import displayed_size
from mirasol_cli.media.probe import MediaInfo
from mirasol_cli.media.sampling import Framing

TOLERANCE_S = 1e-3
"""A frame that begins within this of the wanted time counts as on screen: Matroska rounds times to milliseconds and decord to float32."""
SEEK_GAP_S = 3.0
"""A wanted frame at least this far ahead is sought; nearer ones are reached by decoding on."""
SEEK_BACK_S = (0.0, 2.0, 10.0)
"""How far before the wanted time a seek starts, next try after next, when it lands behind it (open GOPs, poor indexes)."""
REPORT_EVERY = 25
"""Decoded frames between two signs of life: one group of pictures may last as long as the file."""


@dataclass
class Picked:
    """The frames on screen at the wanted times. Each distinct frame is held once."""

    frames_KHWC: np.ndarray  # uint8 [distinct frames, size, size, 3], RGB
    which: np.ndarray  # int [wanted times]: row of `frames_KHWC`
    starts_s: np.ndarray  # float64 [wanted times]: when that frame comes on screen, on the file's timeline
    lost: np.ndarray  # bool [wanted times]: the frame of that time is damaged, and the one before it stands in
    end_s: float | None  # when the last frame leaves the screen, if the reader came to the end of what can be read


def read_frames(
    path: Path | str,
    info: MediaInfo,
    wanted: list[np.ndarray],
    framings: list[Framing],
    progress: Callable[[str], None] = lambda stage: None,
) -> Iterator[Picked]:
    """For each array of ascending times (s, file's timeline) the frames on screen, scaled and cropped by its `Framing`.

    The file is opened once; memory is that of one clip, whatever the source's length. `progress` is called as decoding goes on.

    Raises:
        MediaError: "no readable frame".
    """
    with open_media(path) as container:
        stream = container.streams[info.video_index]
        stream.codec_context.thread_count = 1
        walk = _Walk(container, stream, info, progress)
        for times_s, framing in zip(wanted, framings, strict=True):
            yield _pick(walk, times_s, framing, info)


def _pick(walk: _Walk, times_s: np.ndarray, framing: Framing, info: MediaInfo) -> Picked:
    images: list[np.ndarray] = []
    which, starts, lost = [], [], []
    held: float | None = None  # start of the frame that images[-1] shows
    for time_s in times_s:
        start_s, frame = walk.frame_at(float(time_s))
        if start_s != held:
            images.append(_image(frame, framing, info))
            held = start_s
        which.append(len(images) - 1)
        starts.append(start_s)
        lost.append(walk.has_lost(float(time_s)))
    return Picked(np.stack(images), np.array(which), np.array(starts), np.array(lost), walk.end_s)


@dataclass
class _Walk:
    """A position in the stream: the frame on screen, and the one after it."""

    container: Any
    stream: Any
    info: MediaInfo
    progress: Callable[[str], None]
    frames: Iterator[tuple[float, Any]] | None = None
    shown: tuple[float, Any] | None = None
    coming: tuple[float, Any] | None = None
    first_s: float = -np.inf  # start of the first frame that can be decoded, once it is known: nothing lies further back
    end_s: float | None = None
    seek_gap_s: float = field(default=SEEK_GAP_S)

    def frame_at(self, time_s: float) -> tuple[float, Any]:
        """(start, frame) of the frame on screen at `time_s`; the first frame, if none is on screen yet."""
        if self._must_seek(time_s):
            self._seek_before(time_s)
        while True:
            if self.coming is None:
                self.coming = self._next()
            if self.coming is None or self.coming[0] > time_s + TOLERANCE_S:
                break
            self.shown, self.coming = self.coming, None
        if self.shown is None:
            self.shown = self.coming
        if self.shown is None:
            raise MediaError("no readable frame", "the video is damaged")
        return self.shown

    def has_lost(self, time_s: float) -> bool:
        """Whether the picture of `time_s` was damaged and left out: the one on screen should have gone before it."""
        if self.shown is None or self.coming is None or self.coming[1].opaque != AFTER_LOSS:
            return False
        start_s, frame = self.shown
        return time_s >= start_s + (float(frame.duration * frame.time_base) if frame.duration else self.step_s)

    @property
    def step_s(self) -> float:
        """Time from frame to frame where the file does not say."""
        return 1.0 / self.info.fps if self.info.fps > 0 else 0.04

    def _must_seek(self, time_s: float) -> bool:
        """Whether decoding on from here does not lead to `time_s`, or takes longer than to seek."""
        if self.frames is None:  # nothing read yet
            if self.info.splices or time_s - self.info.start_s < self.seek_gap_s:
                self._start()
                return False
            return True
        here = self.shown or self.coming
        if here is None:
            return False  # not one frame in the whole stream
        if time_s + TOLERANCE_S < here[0]:
            return here[0] > self.first_s
        return time_s - here[0] >= self.seek_gap_s and self.end_s is None and not self.info.splices

    def _seek_before(self, time_s: float) -> None:
        """Go to a frame at or before `time_s`: by a seek as far back as it takes, at last to the start of the file."""
        here = self.shown[0] if self.shown else None
        tries = () if self.info.splices else SEEK_BACK_S
        if not any(self._seek(time_s - back_s) and self.coming is not None and self.coming[0] <= time_s + TOLERANCE_S for back_s in tries):
            self._seek(None)
            self._start()
        if here is not None and self.coming is not None and here < time_s and self.coming[0] <= here:
            self.seek_gap_s *= 2  # key frames lie further apart than the wanted frames: decoding on is cheaper

    def _start(self) -> None:
        """Read from the start of the file, where the position already is."""
        self.frames, self.shown, self.end_s = self._read(), None, None
        self.coming = self._next()
        if self.coming is not None:
            self.first_s = self.coming[0]

    def _seek(self, time_s: float | None) -> bool:
        """Go to the key frame before `time_s` (None: the start of the file) and hold the first frame from there."""
        start = self.stream.start_time or 0
        target = start if time_s is None else max(start, round((time_s + self.info.zero_s) / self.stream.time_base))
        try:
            self.container.seek(int(target), stream=self.stream, backward=True)
        except (FFmpegError, OverflowError):
            return False
        if time_s is not None:
            self.frames, self.shown, self.end_s = self._read(), None, None
            self.coming = self._next()
        return True

    def _next(self) -> tuple[float, Any] | None:
        return next(self.frames, None) if self.frames is not None else None

    def _read(self) -> Iterator[tuple[float, Any]]:
        """(start, frame) in order of presentation; sets `end_s` when nothing more can be read."""
        last_s, length_s = -np.inf, 0.0
        for number, frame in enumerate(decoded_frames(self.container, self.stream, self.info.splices)):
            if number % REPORT_EVERY == 0:
                self.progress("pyav")
            by_decoding = frame.pts is None or self.info.format == "avi"  # which has decoding times only; FFmpeg shows pictures by them
            stamp = frame.dts if by_decoding else frame.pts
            start_s = last_s + self.step_s if stamp is None else float(stamp * frame.time_base) - self.info.zero_s
            if not np.isfinite(start_s):
                start_s = self.info.start_s
            if start_s <= last_s:
                continue  # a time that runs backwards: damage
            last_s = start_s
            length_s = float(frame.duration * frame.time_base) if frame.duration else self.step_s
            yield start_s, frame
        self.end_s = last_s + length_s if np.isfinite(last_s) else self.info.start_s


def _image(frame: Any, framing: Framing, info: MediaInfo) -> np.ndarray:
    """uint8 [size, size, 3]: laid as it is shown, scaled and cropped.

    Transposed before it is scaled, as decord does, so that both readers show the same pixels. A frame of another shape than the first
    (the phone was turned while it filmed) keeps its own proportions.
    """
    framing = framing.resized(*displayed_size(frame, info.pixel_aspect, info.orientation))
    if info.orientation.transpose:
        frame = _transposed(frame)
    image = frame.reformat(width=framing.width, height=framing.height, format="rgb24", interpolation="BILINEAR").to_ndarray()
    return framing.crop(info.orientation.flipped(image)).copy()


def _transposed(frame: Any) -> Any:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    turn, sink = graph.add("transpose", "cclock_flip"), graph.add("buffersink")
    source.link_to(turn)
    turn.link_to(sink)
    graph.configure()
    source.push(frame)
    return sink.pull()
