"""What a clip of the report shows and sounds like, as small JPEGs inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from PIL import Image

from mirasol_cli.geometry import ClipGeometry

SHEET_CHUNKS = 8
"""Most chunks of a contact sheet; longer clips show every k-th."""
SHEET_SIDE, SPECTROGRAM_WIDTH, SPECTROGRAM_HEIGHT = 112, 640, 64
"""Most px of a picture in the sheet, and of a spectrogram: 200 clips of real video then take about 10 MB."""


def contact_sheet(sample: Mapping[str, np.ndarray], geometry: ClipGeometry) -> list[tuple[float, str]]:
    """For at most SHEET_CHUNKS chunks with real frames, the seconds of the frame shown and the `src` of its picture."""
    frames = whole_frames(sample, geometry)
    valid_TF = sample["frame_valid"] > 0
    chunks = np.flatnonzero(valid_TF.any(axis=1))
    picked = [int(chunks[i * len(chunks) // min(SHEET_CHUNKS, len(chunks))]) for i in range(min(SHEET_CHUNKS, len(chunks)))]
    sheet = []
    for chunk in picked:
        if frames is not None and valid_TF[chunk, frames[0]]:
            frame, image = frames[0], frames[1][chunk]
        else:  # a thumbnail, of which four share a chunk
            k = len(sample["thumbnails"][chunk]) // 2
            frame, image = k * valid_TF.shape[1] // len(sample["thumbnails"][chunk]), sample["thumbnails"][chunk, k]
        image = Image.fromarray(np.ascontiguousarray(image))
        scale = SHEET_SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        sheet.append((float(sample["frame_times"][chunk, frame]), _jpeg(image.resize(size, Image.Resampling.LANCZOS))))
    return sheet


def whole_frames(sample: Mapping[str, np.ndarray], geometry: ClipGeometry) -> tuple[int, np.ndarray] | None:
    """A frame number within the chunk, and that frame of every chunk, uint8 [T, H, W, 3], out of tubes that lie side by side.

    None where every kind of tube leaves gaps.
    """
    for kind, tube in enumerate(geometry.tubes):
        rows, columns = tube.grid(*geometry.chunk_shape)[1:]
        if tube.stride[1:] == tube.kernel[1:] and tube.kernels_per_token == 1 and tube.offset[1:] == (0, 0) and rows and columns:
            time, height, width = tube.kernel
            tokens = sample[f"tubes.{kind}"][:, : rows * columns].reshape(geometry.chunks, rows, columns, time, height, width, 3)
            frames = tokens[:, :, :, 0].transpose(0, 1, 3, 2, 4, 5)  # chunks, rows, height, columns, width, colours
            return tube.offset[0], frames.reshape(geometry.chunks, rows * height, columns * width, 3)
    return None


def spectrogram(mel_TZS: np.ndarray, valid_TS: np.ndarray) -> str | None:
    """The log-mel picture of all chunks in a row, low tones below, as the `src` of an image; None without sound.

    Columns that no chunk uses (windows shorter than the spectrogram) are left out, others without sound are black.
    """
    if not valid_TS.any():
        return None
    used_S = valid_TS.any(axis=0)
    valid = valid_TS[:, used_S].reshape(-1) > 0
    mel = np.concatenate(list(mel_TZS[:, :, used_S].astype(np.float32)), axis=1)[::-1]
    low, high = np.percentile(mel[:, valid], [2, 99.5])
    rgb = (255 * matplotlib.colormaps["magma"](((mel - low) / max(high - low, 1e-6)).clip(0, 1))[..., :3]).astype(np.uint8)
    rgb[:, ~valid] = 0
    image = Image.fromarray(rgb)
    return _jpeg(image.resize((min(image.width, SPECTROGRAM_WIDTH), min(image.height, SPECTROGRAM_HEIGHT)), Image.Resampling.BOX))


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
