"""A clip that tells its own time: every picture carries its number and four coloured corners, every second a beep of its own pitch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.media.made_clips import write_audio

FPS = 25
BEEP_AT_S, BEEP_S = 0.25, 0.04  # beep k starts at k + 0.25 s
RATE = 48000
TICKS = 90000
CORNERS = {(0, 0): (230, 30, 30), (0, 3): (30, 200, 30), (3, 0): (40, 40, 230), (3, 3): (230, 220, 30)}
BITS = [(row, column) for row in range(4) for column in range(4) if (row, column) not in CORNERS]


def image(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: 4 x 4 cells over the centre square; the corners say what is up and what is left, the rest are 12 bits."""
    side = min(width, height) // 4 * 4
    cell = side // 4
    image = np.full((height, width, 3), 90, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    for row in range(4):
        for column in range(4):
            colour = CORNERS.get((row, column)) or ((240,) * 3 if number >> BITS.index((row, column)) & 1 else (16,) * 3)
            image[top + row * cell : top + (row + 1) * cell, left + column * cell : left + (column + 1) * cell] = colour
    return image


def read_frame(square: np.ndarray) -> tuple[int, bool]:
    """(number, whether each corner is where it belongs) of a square picture of any size."""
    cell = square.shape[0] / 4

    def colour(row: int, column: int) -> np.ndarray:
        rows, columns = (slice(int((k + 0.3) * cell), int((k + 0.7) * cell) + 1) for k in (row, column))
        return square[rows, columns].reshape(-1, 3).astype(float).mean(axis=0)

    def nearest(seen: np.ndarray) -> tuple[int, int]:
        return min(CORNERS, key=lambda place: float(np.abs(np.array(CORNERS[place]) - seen).sum()))

    number = sum(1 << bit for bit, place in enumerate(BITS) if colour(*place).mean() > 128)
    return number, all(nearest(colour(*place)) == place for place in CORNERS)


def beeps(seconds: float, rate: int = RATE) -> np.ndarray:
    """float32 [samples]: the sound of the clock."""
    time = np.arange(round(seconds * rate)) / rate
    into = (time % 1.0) - BEEP_AT_S
    tone = 0.7 * np.sin(2 * np.pi * _pitch(np.floor(time)) * into)
    return np.where((into >= 0) & (into < BEEP_S), tone, 0.0).astype(np.float32)


def beep_offsets_s(waveform: np.ndarray, start_s: float, seconds: range, rate: int = 16000) -> list[float]:
    """How much later than on the clock each beep of `seconds` is heard in a waveform that begins at `start_s` of the clock."""
    window, hop = 160, 16
    offsets = []
    for second in seconds:
        begin = round((second + BEEP_AT_S - 0.2 - start_s) * rate)
        if begin < 0 or begin + round(0.45 * rate) > len(waveform):
            continue
        piece = waveform[begin : begin + round(0.45 * rate)]
        frames = np.lib.stride_tricks.sliding_window_view(piece, window)[::hop]
        level = np.abs(frames @ np.exp(-2j * np.pi * _pitch(second) * np.arange(window) / rate)) / window
        if level.max() < 0.05:
            continue
        first = int(np.argmax(level > 0.5 * level.max()))  # half of the window is inside the beep
        offsets.append((first * hop + window / 2) / rate - 0.2)
    return offsets


def _pitch(second):
    return 600 + 300 * (second % 10)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How a clip of the clock is coded and muxed."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    gop: int = 50
    seconds: float = 10.0
    times_s: Sequence[float] | None = None  # None: 25 pictures a second; else when each picture is shown
    size: tuple[int, int] = (160, 96)  # as displayed
    lay: str = "upright"  # a key of LAYS: how the stored picture lies, and the display matrix that puts it right
    pixel_aspect: Fraction = Fraction(1)
    audio: str | None = "aac"
    mux: dict[str, str] = field(default_factory=dict)
    start_s: float = 0.0  # presentation time of the first picture and sound

    def frame_times_s(self) -> np.ndarray:
        return np.arange(round(self.seconds * FPS)) / FPS if self.times_s is None else np.asarray(self.times_s)


# Name -> (matrix a, b, c, d; stored picture of a displayed one).
LAYS = {
    "upright": ((1, 0, 0, 1), lambda image: image),
    "turned 90": ((0, 1, -1, 0), lambda image: np.rot90(image, 1)),
    "turned 180": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "turned 270": ((0, -1, 1, 0), lambda image: np.rot90(image, 3)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transversed": ((0, -1, -1, 0), lambda image: image[::-1, ::-1].swapaxes(0, 1)),
}


def write_clock(path: Path, clock: Clock) -> Path:
    """The clip, encoded and muxed with PyAV."""
    matrix, store = LAYS[clock.lay]
    width, height = clock.size
    sample = _stored(image(0, width, height), store, clock.pixel_aspect)
    with av.open(str(path), "w", options=clock.mux) as container:
        video = container.add_stream(clock.codec, rate=FPS, options=clock.options)
        video.height, video.width = sample.shape[:2]
        video.pix_fmt = clock.pix_fmt
        video.codec_context.gop_size = clock.gop
        variable = clock.times_s is not None or clock.start_s
        video.codec_context.time_base = Fraction(1, TICKS) if variable else Fraction(1, FPS)
        if clock.pixel_aspect != 1:
            video.codec_context.sample_aspect_ratio = clock.pixel_aspect
        if clock.lay != "upright":
            a, b, c, d = matrix
            video.set_display_matrix([v << 16 for v in (a, b)] + [0] + [v << 16 for v in (c, d)] + [0, 0, 0, 1 << 30])
        audio = container.add_stream(clock.audio, rate=RATE, layout="mono") if clock.audio else None
        for number, time_s in enumerate(clock.frame_times_s()):
            frame = av.VideoFrame.from_ndarray(_stored(image(number, width, height), store, clock.pixel_aspect), format="rgb24")
            base = video.codec_context.time_base
            frame.pts, frame.time_base = round((time_s + clock.start_s) / base), base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            write_audio(container, audio, beeps(clock.seconds), RATE, clock.start_s)
    return path


def copy_span(source: Path, path: Path, start_s: float, end_s: float, *, mux: dict[str, str] | None = None, from_key: bool = True) -> Path:
    """What `ffmpeg -ss START -i SOURCE -to END -c copy PATH` makes: packets from the key picture before `start_s` on. In MP4 their times
    before zero are hidden by an edit list. Without `from_key`, packets begin at `start_s` itself, as with -copyinkf."""
    hides = path.suffix in (".mp4", ".mov")
    with av.open(str(source)) as origin, av.open(str(path), "w", options=mux or {}) as target:
        kept = [stream for stream in origin.streams if stream.type in ("video", "audio")]
        copies = {stream.index: target.add_stream_from_template(stream) for stream in kept}
        origin.seek(round(start_s * av.time_base), backward=True)
        for packet in origin.demux(kept):
            if packet.dts is None or packet.pts is None:
                continue
            time_s = float(packet.pts * packet.time_base)
            early = time_s < start_s and (packet.stream.type == "audio" or not from_key)
            if early or time_s >= end_s:
                continue
            shift = round(start_s / packet.time_base) if hides else 0
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copies[packet.stream.index]
            target.mux(packet)
    return path


def _stored(image: np.ndarray, store, pixel_aspect: Fraction) -> np.ndarray:
    """The displayed picture as it lies in the file: laid by `store`, squeezed where pixels are not square."""
    image = store(image)
    if pixel_aspect > 1:
        image = image[:, :: int(pixel_aspect)]
    elif pixel_aspect < 1:
        image = image[:: int(1 / pixel_aspect)]
    return np.ascontiguousarray(image)
