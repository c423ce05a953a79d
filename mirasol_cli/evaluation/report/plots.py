"""Drawings of the report as SVG: bars with intervals, training curves, confusion of answers."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")  # no window, whatever the user's settings say
import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure

# Colours that read on light and on dark ground; the ground itself stays transparent, and `svg` gives INK the page's own colour.
INK, ACCENT, OTHER = "#7f8790", "#3a7bd5", "#d5803a"
LINES = (ACCENT, OTHER, "#3f9b6c", "#a066c4", "#c24f5a", "#8d8a2f", "#4aa5b5", "#9a7358")
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "mirasol", "font.size": 9, "text.color": INK, "axes.labelcolor": INK,
                         "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "text.parse_math": False}  # fmt: skip


def svg(figure: Figure) -> str:
    """The figure as an SVG element, without the XML header, its ink in the colour of the text around it.

    The same figure gives the same text.
    """
    with matplotlib.rc_context(STYLE):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def bars(parts: Sequence[tuple[str, float, tuple[float, float] | None]]) -> str:
    """One bar per (name, fraction, interval), with whiskers where there is an interval."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 0.3 * len(parts) + 0.6))
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
    """The losses of metrics.jsonl over the steps, below them the exact match of validation; None without any loss."""
    losses = {name.removeprefix("loss_"): points for name, points in _series(log, "loss").items() if len(points) > 1}
    validation = _series(log, "exact_match").get("exact_match", [])
    if not losses:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 4.4 if validation else 2.8))
        axes = figure.subplots(2 if validation else 1, sharex=True, height_ratios=(2.4, 1) if validation else (1,), squeeze=False)[:, 0]
        for (name, points), colour in zip(losses.items(), LINES, strict=False):
            label = "total loss" if name == "loss" else _short(name, 28)
            axes[0].plot(*zip(*points, strict=True), label=label, color=colour, linewidth=1.3)
        if all(value > 0 for points in losses.values() for _, value in points):
            axes[0].set_yscale("log")  # the total is many times its parts
            axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=1.2)
        if validation:
            axes[1].plot(*zip(*((step, 100 * value) for step, value in validation), strict=True), "o-", color=ACCENT, markersize=3)
            axes[1].set_ylim(0, None)
            axes[1].set_ylabel("exact match in\nvalidation, %")
        axes[-1].set_xlabel("step")
        for panel in axes:
            panel.spines[["top", "right"]].set_visible(False)
        return svg(figure)


def _series(log: Sequence[dict[str, Any]], start: str) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of every number whose name starts so, in the order of names."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        step = line.get("step")
        for name, value in line.items():
            if name.startswith(start) and isinstance(step, int) and isinstance(value, (int, float)) and np.isfinite(value):
                series.setdefault(name, []).append((float(step), float(value)))
    return dict(sorted(series.items()))


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
        side = 0.26 * len(common) + 1.2
        figure = Figure(figsize=(side + 0.4, side))
        axes = figure.add_subplot()
        shade = np.zeros((*share.shape, 4))  # none is transparent, all is the full colour, on light ground and on dark
        shade[:] = matplotlib.colors.to_rgba(ACCENT)
        shade[..., 3] = np.where(share > 0, 0.15 + 0.85 * share, 0)
        axes.imshow(shade, aspect="equal")
        never = [i for i in range(len(common)) if not table[i, i]]
        axes.plot(never, never, ".", color=INK, markersize=1.5)  # where right answers would lie
        axes.set_xticks(range(len(common) + 1), [*(_short(name, 16) for name in common), "(other)"], rotation=60, ha="right")
        axes.set_yticks(range(len(common)), [_short(name, 16) for name in common])
        axes.set_xlabel("predicted")
        axes.set_ylabel("gold")
        for (y, x), count in np.ndenumerate(table):
            if count:
                axes.text(x, y, f"{int(count)}", ha="center", va="center", fontsize=7, color="white" if share[y, x] > 0.5 else INK)
        return svg(figure)


def _short(text: str, length: int) -> str:
    """One printable line of at most `length` characters."""
    line = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    return line if len(line) <= length else line[: length - 1] + "…"
