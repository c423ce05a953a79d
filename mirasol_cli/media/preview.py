"""A prepared clip as a picture that a person can check: what the model will see and hear, chunk by chunk.

One row per chunk: a few frames with the pixels of the tubes at their places (grey where no tube looks), the thumbnails, the
spectrogram with low notes at the bottom (masked columns are red), and one bar of frames (red: masked). The texts are above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mirasol_cli.geometry import THUMBNAIL_FRAMES, ClipGeometry
from mirasol_cli.media.tubes import thumbnail_frames
from mirasol_cli.sample import tube_field

FRAMES_SHOWN = 4
UNSEEN = 112
"""Grey of pixels under no tube."""
ROW, GAP, BAR = 128, 6, 8
"""px: height of a row, space between things, height of the bar of frame masks."""
MASKED, INK, PAPER = (220, 60, 50), (20, 20, 20), (255, 255, 255)
LETTER, LINE = 12, 17
"""px: size of the letters, height of a line."""
LEGEND = "each row: {frames} of {of} frames as the tubes see them (grey: no tube), thumbnails, spectrogram (low notes below); red: masked"


def contact_sheet(sample: Mapping[str, np.ndarray], geometry: ClipGeometry, heading: Sequence[str]) -> Image.Image:
    """The picture of one clip; the lines of `heading` are wrapped above it."""
    shown = min(FRAMES_SHOWN, geometry.frames_per_chunk)
    spectrogram_width = max(ROW, min(384, geometry.audio.columns))
    width = 2 * GAP + 72 + (shown + 1) * (ROW + GAP) + spectrogram_width
    lines = [line for text in heading for line in wrap(text, width // 6) or [""]]
    lines.append(LEGEND.format(frames=shown, of=geometry.frames_per_chunk))
    top = GAP + LINE * len(lines) + GAP
    sheet = Image.new("RGB", (width, top + geometry.chunks * (ROW + BAR + 2 * GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(LETTER)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + LINE * number), line, INK)
    frames_TFHWC = tube_frames(sample, geometry)
    for chunk in range(geometry.chunks):
        y = top + chunk * (ROW + BAR + 2 * GAP)
        _draw_chunk(sheet, draw, y, chunk, sample, frames_TFHWC[chunk], spectrogram_width)
    return sheet


def tube_frames(sample: Mapping[str, np.ndarray], geometry: ClipGeometry) -> np.ndarray:
    """uint8 [T, F, H, W, 3]: the pixels of all tubes pasted back where they were cut; grey elsewhere."""
    frames = np.full((geometry.chunks, *geometry.chunk_shape, 3), UNSEEN, np.uint8)
    for kind, n, group, place in _kernels(geometry):
        tube = geometry.tubes[kind]
        kernels = sample[tube_field(kind)].reshape(geometry.chunks, -1, tube.kernels_per_token, *tube.kernel, 3)
        frames[:, *place] = kernels[:, n, group]
    return frames


def fullest_frame(geometry: ClipGeometry) -> tuple[int, tuple[slice, slice]] | None:
    """The frame of a chunk that tubes cover without a gap, and which rows and columns they cover; None if they leave gaps in every one."""
    seen_FHW = np.zeros(geometry.chunk_shape, bool)
    for _, _, _, place in _kernels(geometry):
        seen_FHW[place] = True
    frame = int(seen_FHW.sum(axis=(1, 2)).argmax())
    height, width = (int(np.flatnonzero(seen_FHW[frame].any(axis)).max(initial=-1)) + 1 for axis in (1, 0))
    return (frame, (slice(height), slice(width))) if seen_FHW[frame, :height, :width].all() else None


def chunk_picture(sample: Mapping[str, np.ndarray], geometry: ClipGeometry, chunk: int) -> tuple[float, np.ndarray]:
    """When one frame of a chunk was on screen (s; NaN where there is none), and its pixels, uint8 [H, W, 3].

    A frame that the tubes cover without a gap, where there is one; else a thumbnail, which is smaller.
    """
    full = fullest_frame(geometry)
    if full and sample["frame_valid"][chunk, full[0]]:
        frame, image_HWC = full[0], tube_frames(sample, geometry)[chunk, full[0]][full[1]]
    else:
        k = THUMBNAIL_FRAMES // 2
        frame, image_HWC = int(thumbnail_frames(geometry.frames_per_chunk)[k]), sample["thumbnails"][chunk, k]
    return float(sample["frame_times"][chunk, frame]), image_HWC


def clip_spectrogram(mel_TZS: np.ndarray, valid_TS: np.ndarray) -> np.ndarray | None:
    """uint8 [Z, columns, 3]: the spectrograms of all chunks in a row, without the columns that no chunk uses; None without audio."""
    if not valid_TS.any():
        return None
    used_S = valid_TS.any(axis=0)
    return spectrogram(np.concatenate(list(mel_TZS[:, :, used_S]), axis=1), valid_TS[:, used_S].reshape(-1))


def seconds_text(seconds: float, digits: int = 1) -> str:
    """`2.5 s`; `missing` for the NaN that stands in `frame_times` where there is no frame."""
    return "missing" if np.isnan(seconds) else f"{seconds:.{digits}f} s"


def _kernels(geometry: ClipGeometry) -> Iterator[tuple[int, int, int, tuple[slice, slice, slice]]]:
    """Every kernel as (kind of tube, token, place in its space-to-depth group, the frames, rows and columns under it)."""
    for kind, tube in enumerate(geometry.tubes):
        cells = product(*map(range, tube.grid(*geometry.chunk_shape)))
        groups = list(product(*map(range, tube.space_to_depth)))
        for (n, cell), (g, group) in product(enumerate(cells), enumerate(groups)):
            start = [tube.offset[a] + cell[a] * tube.stride[a] + group[a] * tube.step[a] for a in range(3)]
            t, y, x = (slice(start[a], start[a] + tube.kernel[a]) for a in range(3))
            yield kind, n, g, (t, y, x)


def _draw_chunk(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, chunk: int, sample: Mapping[str, np.ndarray], frames_FHWC: np.ndarray,
    spectrogram_width: int,
) -> None:  # fmt: skip
    """One row: label, frames, thumbnails, spectrogram, and the bars of masks below."""
    times, valid = sample["frame_times"][chunk], sample["frame_valid"][chunk]
    draw.text((GAP, y), f"chunk {chunk}\n{seconds_text(times[0], 2)}\n  to\n{seconds_text(times[-1], 2)}", INK)
    x = GAP + 72
    shown = min(FRAMES_SHOWN, len(frames_FHWC))
    for k in range(shown):
        frame = k * len(frames_FHWC) // shown
        _paste(sheet, frames_FHWC[frame], x, y, ROW, ROW)
        if not valid[frame]:
            draw.rectangle((x, y, x + ROW - 1, y + ROW - 1), outline=MASKED, width=2)
        x += ROW + GAP
    _bar(draw, valid, GAP + 72, y + ROW + 2, shown * (ROW + GAP) - GAP)
    a, b, c, d = sample["thumbnails"][chunk]
    _paste(sheet, np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)], 0), x, y, ROW, ROW)
    x += ROW + GAP
    _paste(sheet, spectrogram(sample["mel"][chunk], sample["mel_valid"][chunk]), x, y, spectrogram_width, ROW)
    _bar(draw, sample["mel_valid"][chunk], x, y + ROW + 2, spectrogram_width)


def spectrogram(mel_ZS: np.ndarray, valid_S: np.ndarray) -> np.ndarray:
    """uint8 [Z, S, 3], low notes at the bottom; normalised values of -2 to 2 from black to white, masked columns red."""
    grey = np.clip((mel_ZS[::-1].astype(np.float32) + 2) / 4 * 255, 0, 255).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, -1)
    image[:, valid_S == 0] = MASKED
    return image


def _paste(sheet: Image.Image, image_HWC: np.ndarray, x: int, y: int, width: int, height: int) -> None:
    sheet.paste(Image.fromarray(np.ascontiguousarray(image_HWC)).resize((width, height), Image.Resampling.NEAREST), (x, y))


def _bar(draw: ImageDraw.ImageDraw, valid: np.ndarray, x: int, y: int, width: int) -> None:
    """A bar of cells, dark where valid, red where masked."""
    for k, good in enumerate(valid):
        left, right = x + k * width // len(valid), x + (k + 1) * width // len(valid)
        draw.rectangle((left, y, max(left, right - 2), y + BAR - 3), fill=INK if good else MASKED)
