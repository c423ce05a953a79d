"""One clip as the named arrays of a shard (schema version 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.audio import Window
from mirasol_cli.media.decode import DecodedClip, decode_clips
from mirasol_cli.media.sampling import ClipRequest
from mirasol_cli.media.spectrogram import log_mel
from mirasol_cli.media.tubes import cut_tubes, thumbnails

ClipSample = dict[str, np.ndarray]
"""tubes.<k> uint8 [T, N_k, P_k] | thumbnails uint8 [T, 4, 32, 32, 3] | mel float16 [T, Z, S] | mel_valid uint8 [T, S] |
frame_valid uint8 [T, F] | frame_times float64 [T, F], s, NaN where there is no frame | span float64 [2], s | audio_state uint8 []"""

NO_AUDIO, SILENT, AUDIBLE = 0, 1, 2
"""`audio_state`: no sound in this span; a track that is silent all through it; sound."""
SILENCE = 1e-4
"""Full scale is 1: a span whose every sample lies below this (-80 dBFS) is a broken track, not sound."""


def clip_sample(decoded: DecodedClip, geometry: ClipGeometry) -> ClipSample:
    """The arrays of one decoded clip; its sound is decoded here, window by window."""
    chunked = (geometry.chunks, geometry.frames_per_chunk)
    frames_TFHWC = decoded.frames.reshape(*chunked, *decoded.frames.shape[1:])
    level = _Level()
    mel, mel_valid = log_mel(level.watch(decoded.windows), geometry)
    sample = {f"tubes.{k}": tubes for k, tubes in enumerate(cut_tubes(frames_TFHWC, geometry))}
    sample |= {
        "thumbnails": thumbnails(frames_TFHWC),
        "mel": mel,
        "mel_valid": mel_valid.astype(np.uint8),
        "frame_valid": decoded.frame_valid.reshape(chunked).astype(np.uint8),
        "frame_times": decoded.frame_times_s.reshape(chunked),
        "span": np.array(decoded.span_s, np.float64),
        "audio_state": np.array(level.state, np.uint8),
    }
    return sample


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
    def state(self) -> int:
        if self.loudest is None:
            return NO_AUDIO
        return AUDIBLE if self.loudest >= SILENCE else SILENT


def read_samples(
    path: Path | str,
    requests: Sequence[ClipRequest],
    geometry: ClipGeometry,
    *,
    keep_truncated: bool = False,
    allow_audio_only: bool = False,
    use_decord: bool = True,
    progress: Callable[[str], None] = lambda stage: None,
) -> Iterator[ClipSample | MediaError]:
    """`decode_clips` and `clip_sample` in one pass: what the child process runs for one file."""
    clips = decode_clips(
        path, requests, geometry,
        keep_truncated=keep_truncated, allow_audio_only=allow_audio_only, use_decord=use_decord, progress=progress,
    )  # fmt: skip
    for decoded in clips:
        if isinstance(decoded, MediaError):
            yield decoded
            continue
        try:
            yield clip_sample(decoded, geometry)
        except MediaError as error:
            yield error
