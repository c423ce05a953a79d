"""The audio of given time windows: 16 kHz mono, aligned with the video by presentation times, streamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from mirasol_cli.media.container import decoded_frames, open_media
from mirasol_cli.media.probe import MediaInfo

PREROLL_S = (0.5, 10.0)
"""Sound is sought this far before the first window (decoders need a run-up); the next try is for poor indexes."""
GAP_S = 0.05
"""A jump of the presentation times beyond this is a hole or an overlap in the sound; smaller ones are rounding."""
LOUDEST = 4.0
"""Decoded sound overshoots full scale a little; damaged or hostile float tracks by any amount."""


@dataclass
class Window:
    """The sound of one window of time."""

    waveform: np.ndarray  # float32 [samples], full scale is 1; 0 where there is no sound
    valid: np.ndarray  # bool [samples]: False where the track has no sample (it starts late, ends early, has a hole)


def audio_windows(path: Path | str, info: MediaInfo, edges_s: np.ndarray, sample_rate: int) -> Iterator[Window]:
    """The windows between neighbouring `edges_s` (ascending, file's timeline), one after the other.

    Neighbouring windows share no sample and leave none out. Only what the current window needs is in memory, however
    long the track is. A file without sound gives windows without a valid sample.
    """
    edges = np.round(edges_s * sample_rate).astype(np.int64)
    pieces = _pieces(path, info, float(edges_s[0]), float(edges_s[-1]), sample_rate) if info.audio_index is not None else iter(())
    piece = next(pieces, None)
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        window = Window(np.zeros(end - begin, np.float32), np.zeros(end - begin, bool))
        while piece is not None:
            position, samples = piece
            first, last = max(position, begin), min(position + len(samples), end)
            if first < last:
                window.waveform[first - begin : last - begin] = samples[first - position : last - position]
                window.valid[first - begin : last - begin] = True
            if position + len(samples) > end:  # the rest belongs to the next window
                break
            piece = next(pieces, None)
        yield window


def _pieces(path: Path | str, info: MediaInfo, start_s: float, end_s: float, sample_rate: int) -> Iterator[tuple[int, np.ndarray]]:
    """(position on the timeline in samples, float32 samples) from about `start_s` to beyond `end_s`, in ascending order."""
    with open_media(path) as container:
        stream = container.streams[info.audio_index]
        stream.codec_context.thread_count = 1
        run = _Run(sample_rate)
        done = -(2**62)
        for frame in _frames_from(container, stream, info, start_s):
            if frame.pts is None:
                time_s = run.next_s
            else:
                time_s = float(frame.pts * frame.time_base) - info.zero_s
            if time_s > end_s + GAP_S:
                break
            for position, samples in run.add(frame, time_s):
                if position + len(samples) > done:  # overlapping runs: what came first stays
                    skip = max(0, done - position)
                    done = position + len(samples)
                    yield position + skip, samples[skip:]
        for position, samples in run.flush():
            skip = max(0, done - position)
            if len(samples) > skip:
                yield position + skip, samples[skip:]


def _frames_from(container: Any, stream: Any, info: MediaInfo, start_s: float) -> Iterator[Any]:
    """Decoded frames from a little before `start_s` on, by seeking where that is worth it."""
    begin_s = info.audio_start_s or 0.0
    if start_s - begin_s > 2 * PREROLL_S[0] and not info.splices:
        for preroll_s in PREROLL_S:
            target_s = max(begin_s, start_s - preroll_s)
            try:
                container.seek(int((target_s + info.zero_s) / stream.time_base), stream=stream, backward=True)
            except (FFmpegError, OverflowError):
                break
            frames = decoded_frames(container, stream)
            first = next(frames, None)
            if first is not None and first.time is not None and first.time - info.zero_s <= start_s:
                yield first
                yield from frames
                return
        with contextlib.suppress(FFmpegError, OverflowError):
            container.seek(stream.start_time or 0, stream=stream, backward=True)
    yield from decoded_frames(container, stream, info.splices)


class _Run:
    """A stretch of continuous sound that goes through one resampler."""

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.kind: tuple | None = None
        self.resampler: Any = None
        self.position = 0  # of the next sample that the resampler gives, on the timeline
        self.next_s = 0.0  # when the next frame is expected

    def add(self, frame: Any, time_s: float) -> Iterator[tuple[int, np.ndarray]]:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self.kind or abs(time_s - self.next_s) > GAP_S:
            yield from self.flush()
            self.kind = kind
            self.resampler = av.AudioResampler(format="fltp", layout="mono", rate=self.sample_rate)
            self.position, self.next_s = round(time_s * self.sample_rate), time_s
        self.next_s += frame.samples / frame.sample_rate
        frame.pts = None  # the resampler counts samples; positions are ours
        yield from self._resampled(frame)

    def flush(self) -> Iterator[tuple[int, np.ndarray]]:
        if self.resampler is not None:
            yield from self._resampled(None)
            self.resampler = None
            self.kind = None

    def _resampled(self, frame: Any) -> Iterator[tuple[int, np.ndarray]]:
        try:
            resampled = self.resampler.resample(frame)
        except av.error.MemoryError:
            raise MemoryError from None
        except (FFmpegError, ValueError):  # a frame whose header and content disagree
            return
        for piece in resampled:
            samples = np.nan_to_num(piece.to_ndarray()[0], nan=0.0, posinf=LOUDEST, neginf=-LOUDEST)
            yield self.position, np.clip(samples, -LOUDEST, LOUDEST)
            self.position += len(samples)
