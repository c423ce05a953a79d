"""What a clip of the report shows and sounds like, as small JPEGs inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import preview

STRIP_CHUNKS = 8
"""Most chunks of a strip; longer clips show every k-th."""
STRIP_SIDE, SPECTROGRAM_WIDTH, SPECTROGRAM_HEIGHT = 112, 640, 64
"""Most px of a picture in the strip, and of a spectrogram: 200 clips of real video then take about 10 MB."""


def frame_strip(sample: Mapping[str, np.ndarray], geometry: ClipGeometry) -> list[tuple[str, str]]:
    """For at most STRIP_CHUNKS chunks with real frames, when the frame shown is on screen and the `src` of its picture."""
    chunks = np.flatnonzero((sample["frame_valid"] > 0).any(axis=1))
    shown = min(STRIP_CHUNKS, len(chunks))
    strip = []
    for chunk in (int(chunks[i * len(chunks) // shown]) for i in range(shown)):
        time, image_HWC = preview.chunk_picture(sample, geometry, chunk)
        image = Image.fromarray(np.ascontiguousarray(image_HWC))
        scale = STRIP_SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        strip.append((preview.seconds_text(time), _jpeg(image.resize(size, Image.Resampling.LANCZOS))))
    return strip


def spectrogram(mel_TZS: np.ndarray, valid_TS: np.ndarray) -> str | None:
    """The spectrogram of all chunks in a row, as the `src` of an image; None without audio."""
    pixels = preview.clip_spectrogram(mel_TZS, valid_TS)
    if pixels is None:
        return None
    image = Image.fromarray(pixels)
    return _jpeg(image.resize((min(image.width, SPECTROGRAM_WIDTH), min(image.height, SPECTROGRAM_HEIGHT)), Image.Resampling.BOX))


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
