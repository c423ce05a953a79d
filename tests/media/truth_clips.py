"""Barcode clips in the ways that files come in: coded, cut, muxed, turned and damaged, all with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.media import barcode

UPRIGHT = (1, 0, 0, 1)
ORIENTATIONS = {
    "upright": UPRIGHT, "rot180": (-1, 0, 0, -1), "hflip": (-1, 0, 0, 1), "vflip": (1, 0, 0, -1),
    "rot90": (0, 1, -1, 0), "rot270": (0, -1, 1, 0), "transpose": (0, 1, 1, 0), "transverse": (0, -1, -1, 0),
}  # fmt: skip
"""a, b, c, d of the display matrix: the stored point (x, y) is shown at (a x + c y, b x + d y)."""


def regular(seconds: float = 10.0, fps: float = barcode.FPS) -> list[float]:
    return [k / fps for k in range(round(seconds * fps))]


def stored_picture(number: int, matrix: tuple[int, int, int, int] = UPRIGHT, squeeze: int = 1) -> np.ndarray:
    """What a file must store so that the barcode is shown upright once matrix and pixel aspect are applied."""
    a, b, c, d = matrix
    shown = barcode.coded_picture(number)[:, ::squeeze] if a else barcode.coded_picture(number)[::squeeze]
    height, width = shown.shape[:2] if a else shown.shape[1::-1]
    y, x = np.mgrid[:height, :width]
    rows, columns = b * x + d * y, a * x + c * y  # negative where mirrored: then -1 is the last row, not 0
    return np.ascontiguousarray(shown[rows - (b + d < 0), columns - (a + c < 0)])


def encode(
    path: Path,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    gop: int = 25,
    b_frames: int = 0,
    pix_fmt: str = "yuv420p",
    times_s: Sequence[float] | None = None,
    numbers: Sequence[int] | None = None,
    sound: str | None = "aac",
    sound_starts_s: float = 0.0,
    start_s: float = 0.0,
    matrix: tuple[int, int, int, int] = UPRIGHT,
    squeeze: int = 1,
    mux: dict[str, str] | None = None,
    form: str | None = None,
) -> Path:
    """A clip that shows `numbers[k]` from `times_s[k]` on; `start_s` moves picture and sound, `sound_starts_s` cuts the sound's head."""
    times_s = regular() if times_s is None else times_s
    numbers = range(len(times_s)) if numbers is None else numbers
    with av.open(str(path), "w", format=form, options=mux or {}) as container:
        own = {"preset": "ultrafast"} if codec == "libx264" else {}
        video: Any = container.add_stream(codec, rate=barcode.FPS, options=own | (options or {}))
        first = stored_picture(numbers[0], matrix, squeeze)
        video.height, video.width = first.shape[:2]
        video.pix_fmt = pix_fmt
        base = Fraction(1, barcode.FPS) if times_s == regular(len(times_s) / barcode.FPS) else Fraction(1, 1000)
        video.codec_context.time_base = base
        video.codec_context.gop_size = gop
        video.codec_context.max_b_frames = b_frames
        if codec not in ("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1"):
            video.codec_context.bit_rate = 3_000_000
        if squeeze != 1:
            video.codec_context.sample_aspect_ratio = Fraction(squeeze)
        if matrix != UPRIGHT:
            a, b, c, d = (value << 16 for value in matrix)
            video.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        audio: Any = container.add_stream(sound, rate=barcode.SAMPLE_RATE, layout="mono") if sound else None
        packets: list[Any] = []
        for number, time_s in zip(numbers, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(stored_picture(number, matrix, squeeze), format="rgb24")
            frame.pts, frame.time_base = round((time_s + start_s) / base), base
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None:
            packets += _coded_sound(audio, times_s[-1] + 1 / barcode.FPS, start_s, sound_starts_s)
        _mux_in_order(container, packets)
    return path


def _coded_sound(audio: Any, seconds: float, start_s: float, cut_s: float) -> list[Any]:
    rate = barcode.SAMPLE_RATE
    sound = barcode.beeps(seconds)
    step = audio.codec_context.frame_size or 1024
    resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=audio.codec_context.sample_rate, frame_size=step)
    packets = []
    for first in range(round(cut_s * rate), len(sound), step):
        frame = av.AudioFrame.from_ndarray(sound[None, first : first + step], format="flt", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + round(start_s * rate)
        for piece in resampler.resample(frame):
            packets += audio.encode(piece)
    return packets + audio.encode(None)


def _mux_in_order(container: Any, packets: list[Any]) -> None:
    """Sound and picture as they follow one another in time: formats without an index are read that way."""
    for packet in sorted((p for p in packets if p.size), key=lambda p: float((p.dts if p.dts is not None else p.pts) * p.time_base)):
        container.mux(packet)


def copy(
    source: Path, path: Path, *, start_s: float = 0.0, seconds: float = 1e9, from_key: bool = True, move_s: float | None = None,
    hole_s: tuple[float, float] | None = None, mux: dict[str, str] | None = None, form: str | None = None,
) -> Path:  # fmt: skip
    """A part of a file, its packets as they are: what `ffmpeg -ss start_s -i source -t seconds -c copy` makes.

    With `from_key` the picture begins at the key frame before `start_s`, which an edit list hides where the format has one; else at
    the next packet, key or not (`-copyinkf`). `hole_s` leaves the packets of a stretch out.
    """
    move_s = -start_s if move_s is None else move_s
    with av.open(str(source)) as original, av.open(str(path), "w", format=form, options=mux or {}) as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in original.streams}
        packets = [packet for packet in original.demux() if packet.size and packet.dts is not None]
        pictures = [packet for packet in packets if packet.stream.type == "video"]
        if from_key:
            first = max(k for k, packet in enumerate(pictures) if packet.is_keyframe and _seconds(packet) <= max(start_s, 1e-6))
        else:
            first = min(k for k, packet in enumerate(pictures) if _seconds(packet) >= start_s)
        begun = {id(packet) for packet in pictures[first:]}
        for packet in packets:
            time_s = _seconds(packet)
            if packet.stream.type == "video":
                kept = id(packet) in begun and packet.dts * packet.time_base < start_s + seconds
            else:
                kept = start_s <= time_s < start_s + seconds
            if not kept or (hole_s and hole_s[0] <= time_s < hole_s[1]):
                continue
            packet.pts += round(move_s / packet.time_base)
            packet.dts += round(move_s / packet.time_base)
            packet.stream = streams[packet.stream.index]
            container.mux(packet)
    return path


def _seconds(packet: Any) -> float:
    return float(packet.pts * packet.time_base)


def join(path: Path, parts: Sequence[Path]) -> Path:
    """The bytes of one file after those of the other, as recorders and `cat` do."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path
