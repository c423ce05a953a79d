"""Small videos whose every frame tells its number and whose sound tells its time, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CELLS = 4  # the number is written as 4 x 4 black and white cells over the centre square
TICKS = 48000


def barcode(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]; bit k of `number` is the cell in row k // 4, column k % 4 of the centre square."""
    side = min(width, height)
    bits = np.array([(number >> k) & 1 for k in range(CELLS * CELLS)], np.uint8).reshape(CELLS, CELLS)
    square = np.kron(bits, np.ones((side // CELLS, side // CELLS), np.uint8)) * 200 + 28
    image = np.full((height, width), 128, np.uint8)
    top, left = (height - square.shape[0]) // 2, (width - square.shape[1]) // 2
    image[top : top + square.shape[0], left : left + square.shape[1]] = square
    return np.repeat(image[:, :, None], 3, axis=2)


def read_barcode(image: np.ndarray) -> int:
    """The number in a square picture of any size."""
    side = image.shape[0]
    grey = image.astype(float).mean(axis=2)
    number = 0
    for k in range(CELLS * CELLS):
        row, column = (int((i + 0.5) * side / CELLS) for i in divmod(k, CELLS))
        patch = grey[row - side // 16 : row + side // 16, column - side // 16 : column + side // 16]
        number |= int(patch.mean() > 128) << k
    return number


def clicks(times_s: Sequence[float], seconds: float, rate: int = 48000, *, frequencies: Sequence[float] | None = None) -> np.ndarray:
    """float32 [samples]: short bursts centred on `times_s`."""
    track = np.zeros(round(seconds * rate), np.float32)
    for k, time_s in enumerate(times_s):
        length = rate // 50
        tone = np.sin(2 * np.pi * (frequencies[k] if frequencies else 1000.0) * np.arange(length) / rate) * np.hanning(length)
        first = round(time_s * rate) - length // 2
        track[first : first + length] += 0.8 * tone[: max(0, len(track) - first)].astype(np.float32)
    return track


def write_clip(
    path: Path,
    times_s: Sequence[float] | None,
    *,
    size: tuple[int, int] = (192, 128),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    keyframe_every: int = 25,
    audio: np.ndarray | None = None,
    audio_rate: int = 48000,
    audio_codec: str = "aac",
    audio_start_s: float = 0.0,
    rotation: int = 0,
    mux_options: dict[str, str] | None = None,
) -> Path:
    """A clip with a frame at each of `times_s`, showing its number upright once the rotation tag (counter-clockwise) is applied."""
    with av.open(str(path), "w", options=mux_options or {}) as container:
        if times_s is not None:
            width, height = size
            turned = rotation % 180 != 0
            rate = Fraction(round(1000 * (len(times_s) - 1) / (times_s[-1] - times_s[0])), 1000) if len(times_s) > 1 else Fraction(25)
            video = container.add_stream(codec, rate=rate, options=options or {})
            video.width, video.height = (height, width) if turned else (width, height)
            video.pix_fmt = pix_fmt
            video.codec_context.time_base = Fraction(1, TICKS) if codec not in ("mpeg4", "mpeg2video", "gif", "libsvtav1") else 1 / rate
            video.codec_context.gop_size = keyframe_every
            if rotation:
                video.set_display_rotation(float(rotation))
        if audio is not None:
            audio_stream = container.add_stream(audio_codec, rate=audio_rate, layout="mono")
        if times_s is not None:
            base = video.codec_context.time_base
            for number, time_s in enumerate(times_s):
                image = np.rot90(barcode(number, width, height), -rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = round(time_s / base), base
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None:
            write_audio(container, audio_stream, audio, audio_rate, audio_start_s)
    return path


def write_audio(container, audio_stream, audio: np.ndarray, rate: int, start_s: float) -> None:
    """Encode float32 [samples] as a mono track that begins at `start_s`."""
    resampler = av.AudioResampler(format=audio_stream.codec_context.format, layout="mono", rate=rate)
    step = audio_stream.codec_context.frame_size or 1024
    for first in range(0, len(audio), step):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None, first : first + step]), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + round(start_s * rate)
        for piece in resampler.resample(frame):
            container.mux(audio_stream.encode(piece))
    container.mux(audio_stream.encode(None))


def regular(frames: int, fps: float, start_s: float = 0.0) -> list[float]:
    return [start_s + k / fps for k in range(frames)]
