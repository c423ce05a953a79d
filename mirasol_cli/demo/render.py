"""Draws and plays a scene of the demo world into a real video file (H.264 and AAC in mp4)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mirasol_cli.demo.world import Scene, Sight, Sound

SIZE_PX = 96
SAMPLE_RATE_HZ = 16_000
X264 = {"crf": "24", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
"""With its macroblock tree, x264 gives pictures this small other bytes from one run to the next."""
RGB = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (235, 205, 40)}


def render(scene: Scene, path: Path) -> None:
    """Write `scene` to `path`, complete or not at all; the same scene gives the same bytes with the same FFmpeg."""
    partial = path.with_name(f".{path.stem}.partial.mp4")
    sound = play(scene)
    with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=scene.frames_per_second, options=X264)
        video.width = video.height = SIZE_PX
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        for index, image in enumerate(frames(scene)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, scene.frames_per_second)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for start in range(0, len(sound), 1024):
            piece = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
            piece.sample_rate, piece.pts = SAMPLE_RATE_HZ, start
            container.mux(audio.encode(piece))
        container.mux(audio.encode())
    partial.replace(path)


def _numbers(scene: Scene, purpose: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{scene.name}/{scene.title}/{scene.noise}/{purpose}".encode()))


# ---------------------------------------------------------------------------------------------------------- picture

_ROWS, _COLUMNS = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32) / SIZE_PX


def draw(scene: Scene) -> np.ndarray:
    """All frames of the scene: uint8 [frames, 96, 96, 3], RGB."""
    return np.stack(list(frames(scene)))


def frames(scene: Scene) -> Iterator[np.ndarray]:
    """One frame after the other, each uint8 [96, 96, 3], RGB."""
    numbers = _numbers(scene, "picture")
    count = round(scene.seconds * scene.frames_per_second)
    ground = numbers.uniform(20, 60, size=3).astype(np.float32)
    slope = numbers.uniform(-25, 25)
    greys = [(numbers.uniform(0.1, 0.9), numbers.uniform(0.05, 0.95), numbers.uniform(0.02, 0.05)) for _ in range(scene.distractors)]
    homes = {sight.slot: ((sight.slot + 0.5) / 3 + numbers.uniform(-0.015, 0.015), numbers.uniform(0.48, 0.52)) for sight in scene.sights}
    beats = {sight.slot: (numbers.uniform(0.5, 1.5), numbers.uniform(0, 6.28)) for sight in scene.sights}
    sizes = {sight.slot: numbers.uniform(0.14, 0.165) for sight in scene.sights}

    empty = np.empty((SIZE_PX, SIZE_PX, 3), np.float32)
    empty[:] = ground + slope * _ROWS[..., None]
    for x, y, radius in greys:
        empty[(abs(_COLUMNS - x) < radius) & (abs(_ROWS - y) < radius)] = 128
    for index in range(count):
        moment = (index + 0.5) / count
        image = empty.copy()
        for sight in scene.sights:
            if sight.enter <= moment < sight.leave:
                x, y = homes[sight.slot]
                rate, phase = beats[sight.slot]
                # It bobs whether it plays or not: what is seen must not tell what is heard.
                y += 0.015 * np.sin(6.28 * rate * moment * scene.seconds + phase)
                _paint(image, sight, x, y, sizes[sight.slot])
        image += numbers.normal(0, 1 + 5 * scene.noise, size=image.shape).astype(np.float32)
        yield image.clip(0, 255).astype(np.uint8)


def _paint(image: np.ndarray, sight: Sight, x: float, y: float, radius: float) -> None:
    """Paint one instrument, `radius` being half its height as a share of the picture."""
    across, down = (_COLUMNS - x) / radius, (_ROWS - y) / radius
    shape = _SHAPES[sight.instrument](across, down)
    trim, colour = _TRIMS[sight.instrument]
    image[shape] = RGB[sight.colour]
    image[shape & trim(across, down)] = colour


def _box(across: np.ndarray, down: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return (abs(across) < half_width) & (abs(down) < half_height)


def _disc(across: np.ndarray, down: np.ndarray, radius: float) -> np.ndarray:
    return across**2 + down**2 < radius**2


_SHAPES = {
    "drum": lambda x, y: _box(x, y, 0.95, 0.7),  # a wide box
    # a triangle and its clapper
    "bell": lambda x, y: (y > -0.9) & (y < 0.7) & (abs(x) < 0.15 + 0.5 * (y + 0.9)) | _disc(x, y - 0.85, 0.22),
    "flute": lambda x, y: _box(x, y, 0.25, 1.1),  # a thin upright bar
    "horn": lambda x, y: (abs(x) < 1.0) & (abs(y) < 0.12 + 0.4 * (x + 1.0)),  # a cone that opens to the right
    "guitar": lambda x, y: _disc(x, y - 0.5, 0.6) | _disc(x, y + 0.25, 0.42) | _box(x, y + 0.85, 0.16, 0.5),  # two discs and a neck
    "whistle": lambda x, y: _disc(x, y, 0.85) & ~_disc(x, y, 0.45),  # a ring
}


_TRIMS = {  # part of each instrument has a colour of its own, whatever the colour of the rest
    "drum": (lambda x, y: y < -0.25, (245, 245, 245)),  # a white skin
    "bell": (lambda x, y: y > 0.25, (250, 130, 20)),  # an orange rim
    "flute": (lambda x, y: abs(y) > 0.6, (10, 10, 10)),  # black ends
    "horn": (lambda x, y: x < -0.05, (30, 220, 220)),  # a turquoise mouthpiece
    "guitar": (lambda x, y: y < 0.0, (120, 70, 30)),  # a brown neck
    "whistle": (lambda x, y: y > 0.2, (225, 60, 225)),  # a pink lower half
}


# ------------------------------------------------------------------------------------------------------------ sound


def play(scene: Scene) -> np.ndarray:
    """The sound track: float32 [samples] at 16 kHz, in [-1, 1]; never digital silence."""
    numbers = _numbers(scene, "sound")
    track = numbers.normal(0, 0.001 + 0.004 * scene.noise, size=round(scene.seconds * SAMPLE_RATE_HZ))
    for sound in scene.sounds:
        first, last = (round(part * len(track)) for part in (sound.start, sound.end))
        track[first:last] += numbers.uniform(0.2, 0.35) * _voice(sound, last - first, numbers)
    return track.clip(-1, 1).astype(np.float32)


def _voice(sound: Sound, samples: int, numbers: np.random.Generator) -> np.ndarray:
    """One instrument's sound, about 1 at its peaks, faded in and out over 10 ms."""
    time = np.arange(samples) / SAMPLE_RATE_HZ
    tone = _VOICES[sound.instrument](time, sound.pitch, numbers)
    fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01) if samples else time
    return tone * fade


def _since_strike(time: np.ndarray, strikes_per_second: float) -> np.ndarray:
    """Seconds since the last strike."""
    return np.mod(time, 1 / strikes_per_second)


def _drum(time: np.ndarray, pitch: float, numbers: np.random.Generator) -> np.ndarray:
    since = _since_strike(time, 4)
    return np.exp(-since * 18) * (0.6 * np.sin(6.283 * 80 * pitch * since) + 0.4 * numbers.normal(size=time.shape))


def _bell(time: np.ndarray, pitch: float, numbers: np.random.Generator) -> np.ndarray:
    since = _since_strike(time, 2)
    return np.exp(-since * 5) * sum(np.sin(6.283 * 1900 * ratio * pitch * time) / (1 + i) for i, ratio in enumerate((1, 1.51, 2.07))) / 1.8


def _flute(time: np.ndarray, pitch: float, numbers: np.random.Generator) -> np.ndarray:
    return np.sin(6.283 * 700 * pitch * time + 2.0 * np.sin(6.283 * 5 * time))


def _horn(time: np.ndarray, pitch: float, numbers: np.random.Generator) -> np.ndarray:
    harmonics = np.arange(1, 12)[:, None]
    return (np.sin(6.283 * 180 * harmonics * pitch * time) / harmonics).sum(0) / 1.8


def _guitar(time: np.ndarray, pitch: float, numbers: np.random.Generator) -> np.ndarray:
    since = _since_strike(time, 3)
    return sum(np.exp(-since * (4 + 2 * k)) * np.sin(6.283 * 330 * k * pitch * time) / k for k in range(1, 7)) / 1.6


def _whistle(time: np.ndarray, pitch: float, numbers: np.random.Generator) -> np.ndarray:
    sweep = 2200 + 700 * np.sin(6.283 * 1.5 * time)
    return np.sin(6.283 * np.cumsum(sweep * pitch) / SAMPLE_RATE_HZ)


_VOICES = {"drum": _drum, "bell": _bell, "flute": _flute, "horn": _horn, "guitar": _guitar, "whistle": _whistle}
