"""One decoded clip as a sample: the named arrays that `mirasol_cli.sample` lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.audio import Window
from mirasol_cli.media.decode import DecodedClip
from mirasol_cli.media.spectrogram import log_mel
from mirasol_cli.media.tubes import cut_tubes, thumbnails
from mirasol_cli.sample import AudioState, field_shapes, tube_field

ClipSample = dict[str, np.ndarray]
"""The fields of `mirasol_cli.sample` by name."""
SILENCE = 1e-4
"""Full scale is 1: a span whose every sample lies below this (-80 dBFS) is a broken track, not sound."""


def clip_sample(decoded: DecodedClip, geometry: ClipGeometry) -> ClipSample:
    """The arrays of one decoded clip; its sound is decoded here, window by window."""
    values = _values(decoded, geometry)
    return {name: values[name].astype(dtype, casting="same_kind", copy=False) for name, (dtype, _) in field_shapes(geometry).items()}


def _values(decoded: DecodedClip, geometry: ClipGeometry) -> ClipSample:
    """Name -> value of every field of the table, in a dtype that the table's can hold."""
    chunked = (geometry.chunks, geometry.frames_per_chunk)
    frames_TFHWC = decoded.frames.reshape(*chunked, *decoded.frames.shape[1:])
    level = _Level()
    mel, mel_valid = log_mel(level.watch(decoded.windows), geometry)
    values = {tube_field(kind): tubes for kind, tubes in enumerate(cut_tubes(frames_TFHWC, geometry))}
    values |= {
        "thumbnails": thumbnails(frames_TFHWC),
        "mel": mel,
        "mel_valid": mel_valid,
        "frame_valid": decoded.frame_valid.reshape(chunked),
        "frame_times": decoded.frame_times_s.reshape(chunked),
        "span": np.array(decoded.span_s),
        "audio_state": np.array(level.state, np.uint8),
    }
    return values


class _Level:
    """The loudest sample of the windows that pass by."""

    def __init__(self) -> None:
        self.loudest: float | None = None

    def watch(self, windows: Iterator[Window]) -> Iterator[Window]:
        for window in windows:
            if window.valid.any():
                self.loudest = max(self.loudest or 0.0, float(np.abs(window.waveform).max()))
            yield window

    @property
    def state(self) -> AudioState:
        if self.loudest is None:
            return AudioState.NONE
        return AudioState.AUDIBLE if self.loudest >= SILENCE else AudioState.SILENT


def clip_samples(clips: Iterable[DecodedClip | MediaError], geometry: ClipGeometry) -> Iterator[ClipSample | MediaError]:
    """`clip_sample` of each clip that could be decoded, as `decode_clips` yields them; errors stay in their places."""
    for clip in clips:
        try:
            yield clip if isinstance(clip, MediaError) else clip_sample(clip, geometry)
        except MediaError as error:
            yield error
