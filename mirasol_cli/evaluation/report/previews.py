"""What a clip of the report shows and sounds like, as small JPEGs inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from mirasol_cli.geometry import THUMBNAIL_FRAMES, ClipGeometry
from mirasol_cli.media import preview
from mirasol_cli.media.tubes import thumbnail_frames

STRIP_CHUNKS = 8
"""Most chunks of a strip; longer clips show every k-th."""
STRIP_SIDE, SPECTROGRAM_WIDTH, SPECTROGRAM_HEIGHT = 112, 640, 64
"""Most px of a picture in the strip, and of a spectrogram: 200 clips of real video then take about 10 MB."""


def frame_strip(sample: Mapping[str, np.ndarray], geometry: ClipGeometry) -> list[tuple[str, str]]:
    """For at most STRIP_CHUNKS chunks with real frames, when the frame shown is on screen and the `src` of its picture."""
    full = preview.fullest_frame(geometry)
    frames_TFHWC = preview.tube_frames(sample, geometry) if full else None
    valid_TF = sample["frame_valid"] > 0
    chunks = np.flatnonzero(valid_TF.any(axis=1))
    shown = min(STRIP_CHUNKS, len(chunks))
    strip = []
    for chunk in (int(chunks[i * len(chunks) // shown]) for i in range(shown)):
        if full and frames_TFHWC is not None and valid_TF[chunk, full[0]]:
            frame, image_HWC = full[0], frames_TFHWC[chunk, full[0]][full[1]]
        else:  # a thumbnail, of which several share a chunk
            k = THUMBNAIL_FRAMES // 2
            frame, image_HWC = int(thumbnail_frames(geometry.frames_per_chunk)[k]), sample["thumbnails"][chunk, k]
        image = Image.fromarray(np.ascontiguousarray(image_HWC))
        scale = STRIP_SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        time = preview.seconds_text(float(sample["frame_times"][chunk, frame]))
        strip.append((time, _jpeg(image.resize(size, Image.Resampling.LANCZOS))))
    return strip


def spectrogram(mel_TZS: np.ndarray, valid_TS: np.ndarray) -> str | None:
    """The spectrogram of all chunks in a row, as the `src` of an image; None without sound.

    Columns that no chunk uses (windows shorter than the spectrogram) are left out.
    """
    if not valid_TS.any():
        return None
    used_S = valid_TS.any(axis=0)
    image = Image.fromarray(preview.spectrogram(np.concatenate(list(mel_TZS[:, :, used_S]), axis=1), valid_TS[:, used_S].reshape(-1)))
    return _jpeg(image.resize((min(image.width, SPECTROGRAM_WIDTH), min(image.height, SPECTROGRAM_HEIGHT)), Image.Resampling.BOX))


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
