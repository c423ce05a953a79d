"""Tiny videos in the place of a data set's own: every picture tells which video it is and at which second it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mirasol_cli.prepare.command import prepare
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from tests.media.made_clips import barcode, read_barcode

FPS = 4
CODECS = {".webm": "libvpx", ".avi": "mpeg4"}
SMALL = ("clip.frames=8", "clip.chunks=2", "clip.size=64", "clip.audio.n_mels=16", "clip.audio.columns=16")
SMALL_TUBES = "clip.tubes=[{kernel: [1, 16, 16], stride: [4, 16, 16]}]"


def stand_in(path: Path, number: int, seconds: float = 10.0, *, audio: bool = False) -> Path:
    """Picture at time t: the barcode of 100 * `number` + whole seconds of t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    containers = {".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
    with av.open(str(path), "w", format=containers.get(path.suffix.lower(), "mp4")) as container:
        video: Any = container.add_stream(CODECS.get(path.suffix.lower(), "libx264"), rate=FPS)
        video.width = video.height = 64
        video.pix_fmt, video.codec_context.gop_size = "yuv420p", FPS
        audio_stream: Any = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        for frame_number in range(round(seconds * FPS)):
            image = av.VideoFrame.from_ndarray(barcode(100 * number + frame_number // FPS, 64, 64), format="rgb24")
            image.pts, image.time_base = frame_number, Fraction(1, FPS)
            container.mux(video.encode(image))
        container.mux(video.encode(None))
        if audio_stream is not None:
            track = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16000)) / 16000).astype(np.float32)
            for first in range(0, len(track), 1024):
                piece = av.AudioFrame.from_ndarray(track[None, first : first + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.time_base, piece.pts = 16000, Fraction(1, 16000), first
                container.mux(audio_stream.encode(piece))
            container.mux(audio_stream.encode(None))
    return path


def shown(split: ShardSplit, clip: int) -> tuple[int, int, int]:
    """(number of the video, first second, last second) that the prepared clip shows."""
    thumbnails = split.media(clip)["thumbnails"].numpy()
    first, last = read_barcode(thumbnails[0, 0]), read_barcode(thumbnails[-1, -1])
    assert first // 100 == last // 100
    return first // 100, first % 100, last % 100


def prepared(dataset: str, root: Path, out: Path, *, overrides: Sequence[str] = (), **options: Any) -> tuple[dict[str, Any], ShardFolder]:
    """`prepare` at a small geometry: its summary and the shards."""
    summary = prepare(dataset, root=root, out=out, overrides=(*SMALL, SMALL_TUBES, *overrides), workers=1, say=lambda line: None, **options)
    return summary["splits"], ShardFolder(out)
