"""A clip that tells its own time: every picture carries its number, every second of sound a beep of its own pitch.

What a reader shows is read back and compared with the content's own clock, however the file was coded, cut or muxed. The four
coloured corners tell whether the picture lies as it was shown.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WIDTH, HEIGHT, FPS = 192, 112, 25
CELLS = 4  # the centre square has 4 x 4 cells: four coloured corners, and twelve bits in black and white
CORNERS = {(0, 0): (230, 30, 30), (0, 3): (30, 200, 30), (3, 0): (40, 40, 230), (3, 3): (230, 220, 30)}
BITS = [(row, column) for row in range(CELLS) for column in range(CELLS) if (row, column) not in CORNERS]
BLACK, WHITE, AROUND = 16, 240, 90
SAMPLE_RATE = 48000
BEEP_AT_S, BEEP_S = 0.25, 0.04  # in every second


def picture(number: int) -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3], RGB."""
    shown = np.full((HEIGHT, WIDTH, 3), AROUND, np.uint8)
    side = min(WIDTH, HEIGHT)
    top, left, cell = (HEIGHT - side) // 2, (WIDTH - side) // 2, side // CELLS
    colours = CORNERS | {place: (WHITE if number >> bit & 1 else BLACK,) * 3 for bit, place in enumerate(BITS)}
    for (row, column), colour in colours.items():
        shown[top + row * cell : top + (row + 1) * cell, left + column * cell : left + (column + 1) * cell] = colour
    return shown


def read(square: np.ndarray) -> tuple[int, bool]:
    """The number in a square picture of any size, and whether each corner has the colour that belongs there."""
    cell = square.shape[0] / CELLS

    def colour(row: int, column: int) -> np.ndarray:
        rows, columns = (slice(int((k + 0.3) * cell), int((k + 0.7) * cell) + 1) for k in (row, column))
        return square[rows, columns].reshape(-1, 3).astype(float).mean(axis=0)

    def nearest(seen: np.ndarray) -> tuple[int, int]:
        return min(CORNERS, key=lambda place: float(np.abs(np.array(CORNERS[place]) - seen).sum()))

    number = sum(int(colour(*place).mean() > (BLACK + WHITE) / 2) << bit for bit, place in enumerate(BITS))
    return number, all(nearest(colour(*place)) == place for place in CORNERS)


def pitch(second: int) -> float:
    """Hz; far enough apart to be told from each other within a beep, and below the limit of telephone sound."""
    return 400.0 + 150.0 * (second % 20)


def beeps(seconds: float) -> np.ndarray:
    """float32 [samples] at SAMPLE_RATE."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = np.zeros(len(times), np.float32)
    for second in range(int(np.ceil(seconds))):
        on = (times >= second + BEEP_AT_S) & (times < second + BEEP_AT_S + BEEP_S)
        sound[on] = 0.6 * np.sin(2 * np.pi * pitch(second) * (times[on] - second - BEEP_AT_S))
    return sound


def beep_onsets(waveform: np.ndarray, rate: int, seconds: range) -> dict[int, float]:
    """Second -> when its beep begins in `waveform`, s: where a window of 20 ms is half as full of its pitch as the fullest one."""
    width = rate // 50
    found = {}
    for second in seconds:
        turned = waveform * np.exp(-2j * np.pi * pitch(second) * np.arange(len(waveform)) / rate)
        total = np.concatenate([[0], np.cumsum(turned)])
        level = np.abs(total[width:] - total[:-width]) / width
        if len(level) and level.max() > 0.05:
            found[second] = (int(np.argmax(level > level.max() / 2)) + width / 2) / rate
    return found


@lru_cache(maxsize=1024)
def coded_picture(number: int) -> np.ndarray:
    """`picture`, read-only and remembered: many clips show the same numbers."""
    shown = picture(number)
    shown.flags.writeable = False
    return shown
