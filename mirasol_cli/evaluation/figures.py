"""Drawings of the report: SVG for curves and tables of numbers, small JPEGs for what a clip shows and sounds like."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")  # no window, whatever the user's settings say
import numpy as np
from matplotlib.figure import Figure

# Colours that read on light and on dark ground; the ground itself stays transparent, text takes the page's own.
INK, ACCENT, OTHER = "#7f8790", "#3a7bd5", "#d5803a"
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "mirasol", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
                         "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "text.parse_math": False}  # fmt: skip
SHEET_CHUNKS = 8
"""Most chunks of a contact sheet; longer clips show every k-th."""


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without the XML header; the same figure gives the same text."""
    with matplotlib.rc_context(STYLE):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def bars(parts: Sequence[tuple[str, float, tuple[float, float] | None]]) -> str:
    """One bar per (name, fraction, interval), with whiskers where there is an interval."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 0.34 * len(parts) + 0.6))
        axes = figure.add_subplot()
        for y, (_, value, interval) in enumerate(parts):
            axes.barh(y, 100 * value, color=ACCENT, height=0.62)
            if interval:
                axes.plot([100 * interval[0], 100 * interval[1]], [y, y], color=OTHER, linewidth=2.2)
            axes.text(101.5, y, f"{100 * value:.1f}", va="center")
        axes.set_yticks(range(len(parts)), [_short(name, 28) for name, _, _ in parts])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("exact match, %")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        return svg(figure)


def curves(log: Sequence[dict[str, Any]]) -> str | None:
    """The losses of metrics.jsonl over the steps; None without any."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        for name, value in _flat(line):
            if "loss" in name and isinstance(value, (int, float)) and "step" in line and np.isfinite(value):
                series.setdefault(name, []).append((float(line["step"]), float(value)))
    series = {name: points for name, points in sorted(series.items()) if len(points) > 1}
    if not series:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 3))
        axes = figure.add_subplot()
        for name, points in list(series.items())[:8]:
            axes.plot(*zip(*points, strict=True), label=_short(name, 28), linewidth=1.3)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        return svg(figure)


def confusion(rows: Sequence[dict[str, Any]], classes: int = 15) -> str | None:
    """Gold against predicted answer for the commonest gold answers; all other predictions share the last column."""
    counted = [(str(row["answer"]), str(row["prediction"]).strip()) for row in rows if row["answer"] is not None and not row.get("missing")]
    common = [name for name, count in Counter(gold for gold, _ in counted).most_common(classes) if count > 1]
    if len(common) < 2:
        return None
    column = {name: i for i, name in enumerate(common)}
    table = np.zeros((len(common), len(common) + 1))
    for gold, predicted in counted:
        if gold in column:
            table[column[gold], column.get(predicted, len(common))] += 1
    share = table / table.sum(axis=1, keepdims=True)
    with matplotlib.rc_context(STYLE):
        side = 0.32 * len(common) + 1.6
        figure = Figure(figsize=(side + 0.6, side))
        axes = figure.add_subplot()
        axes.imshow(np.ma.masked_equal(share, 0), cmap="Blues", vmin=-0.25, vmax=1)  # nothing stays transparent
        axes.set_xticks(range(len(common) + 1), [*(_short(name, 16) for name in common), "(other)"], rotation=60, ha="right")
        axes.set_yticks(range(len(common)), [_short(name, 16) for name in common])
        axes.set_xlabel("predicted")
        axes.set_ylabel("gold")
        for (y, x), count in np.ndenumerate(table):
            if count:
                axes.text(x, y, f"{int(count)}", ha="center", va="center", fontsize=7, color="white" if share[y, x] > 0.4 else "#26323f")
        return svg(figure)


def contact_sheet(thumbnails_TKHWC: np.ndarray, frame_valid_TF: np.ndarray) -> str | None:
    """One thumbnail per chunk side by side, as the `src` of an image; None without a real frame."""
    chunks = [t for t in range(len(thumbnails_TKHWC)) if frame_valid_TF[t].any()]
    if not chunks:
        return None
    picked = [chunks[i * len(chunks) // min(SHEET_CHUNKS, len(chunks))] for i in range(min(SHEET_CHUNKS, len(chunks)))]
    return _jpeg(np.concatenate([thumbnails_TKHWC[t, thumbnails_TKHWC.shape[1] // 2] for t in picked], axis=1), scale=3)


def spectrogram(mel_TZS: np.ndarray, valid_TS: np.ndarray) -> str | None:
    """The log-mel picture of all chunks in a row, low tones below; None without sound."""
    if not valid_TS.any():
        return None
    mel = np.concatenate(list(np.where(valid_TS[:, None] > 0, mel_TZS.astype(np.float32), np.nan)), axis=1)
    low, high = np.nanpercentile(mel, [2, 99.5])
    grey = np.nan_to_num((mel - low) / max(high - low, 1e-6), nan=0.0).clip(0, 1)[::-1]
    width = min(grey.shape[1], 512)
    columns = np.arange(width) * grey.shape[1] // width
    rgb = matplotlib.colormaps["magma"](grey[:: max(1, grey.shape[0] // 64)][:, columns])[..., :3]
    return _jpeg((255 * rgb).astype(np.uint8), scale=1)


def _jpeg(image_HWC: np.ndarray, scale: int) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image_HWC))
    file = io.BytesIO()
    picture.resize((picture.width * scale, picture.height * scale)).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _flat(line: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in line.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def _short(text: str, length: int) -> str:
    """One printable line of at most `length` characters."""
    line = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    return line if len(line) <= length else line[: length - 1] + "…"
