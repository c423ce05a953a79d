"""The picture of `mirasol ask --why`: how much the answer rests on each modality and each chunk, above what was seen and heard."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from mirasol_cli.files import write_atomic
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.inference.attribution import LEAST, Why
from mirasol_cli.media import preview
from mirasol_cli.sample import AudioState

MOST_PICTURES = 8
"""Most chunks of which a frame is shown; of more, every k-th."""


def draw(why: Why, path: Path, title: str, sample: dict[str, Any] | None = None, geometry: ClipGeometry | None = None) -> Path:
    """Write the picture as a PNG.

    Args:
        title: one line, such as question and answer.
        sample, geometry: the clip, for its frames and its spectrogram; without them only the bars are drawn.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = _line(title, 110)
    heights = [3] if sample is None else [3, 1.6, 1]
    style: dict[Any, Any] = {"text.parse_math": False, "font.size": 9, "font.family": ["DejaVu Sans", *_fonts_for(title)]}
    with warnings.catch_warnings(), matplotlib.rc_context(style):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # what no font here has is drawn as a box
        figure = Figure(figsize=(7, 0.6 + 0.7 * sum(heights)), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(len(heights), 2, width_ratios=[1, 4], height_ratios=heights)
        modality = figure.add_subplot(grid[0, 0])
        chunks = figure.add_subplot(grid[0, 1], sharey=modality)
        modality.bar(["audio", "video"], [why.audio, why.video], color=["#d5803a", "#3a7bd5"])
        modality.set_ylabel("support (change of log p)")
        ends = [*why.starts_s[1:], why.end_s]
        widths = [end - start for start, end in zip(why.starts_s, ends, strict=True)]
        chunks.bar(why.starts_s, why.chunks, width=widths, align="edge", color="#4a9d6e", edgecolor="white")
        chunks.set_xlim(why.starts_s[0], why.end_s)
        chunks.tick_params(labelleft=False)
        if why.largest < 10 * LEAST:
            chunks.set_ylim(-10 * LEAST, 10 * LEAST)
        chunks.set_xlabel("seconds")
        for axes in (modality, chunks):
            axes.axhline(0, color="#7f8790", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        if sample is not None and geometry is not None:
            _draw_clip(figure.add_subplot(grid[1, 1]), figure.add_subplot(grid[2, 1]), sample, geometry)
        figure.suptitle(title, fontsize=10)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    write_atomic(path, content.getvalue())
    return path


def _draw_clip(frames: Any, sound: Any, sample: dict[str, Any], geometry: ClipGeometry) -> None:
    """A frame of each chunk into the axes `frames`, the spectrogram below it; both span the clip from left to right."""
    shown = min(MOST_PICTURES, geometry.chunks)
    for k in range(shown):
        _, image_HWC = preview.chunk_picture(sample, geometry, k * geometry.chunks // shown)
        place = frames.inset_axes((k / shown, 0, 1 / shown, 1))
        place.imshow(image_HWC, interpolation="lanczos")
        place.axis("off")
    pixels = preview.clip_spectrogram(sample["mel"], sample["mel_valid"])
    if pixels is not None and int(sample["audio_state"]) == AudioState.AUDIBLE:
        sound.imshow(pixels, aspect="auto")
    frames.axis("off")
    sound.axis("off")


def _fonts_for(text: str) -> list[str]:
    """Families of installed fonts for the characters that matplotlib's own font lacks; each takes what those before it have not."""
    from matplotlib.font_manager import findfont, fontManager
    from matplotlib.ft2font import FT2Font

    lacking = {ord(character) for character in text} - FT2Font(findfont("DejaVu Sans")).get_charmap().keys()
    families = []
    for entry in fontManager.ttflist if lacking else ():
        try:
            found = lacking & FT2Font(entry.fname).get_charmap().keys()
        except (OSError, RuntimeError):  # a font that was removed, or of pictures that cannot be scaled
            continue
        if found:
            families.append(entry.name)
            lacking -= found
    return families


def _line(text: str, length: int) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= length else line[: length - 1] + "…"
