"""What an answer rests on, measured: how much its log-probability falls when a chunk, the sound or the picture is masked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirasol_cli.ask_clip import OpenClip
from mirasol_cli.errors import UsageError
from mirasol_cli.evaluation.answerer import Answerer, Question
from mirasol_cli.evaluation.controls import without_picture, without_sound
from mirasol_cli.files import write_atomic

AT_ONCE = 8
"""Masked copies of the clip that are encoded side by side."""


@dataclass(frozen=True)
class Why:
    """Each figure is (log-probability of the answer) minus (the same with that part masked): above 0, the answer rests on it."""

    chunks: list[float]
    sound: float
    picture: float
    starts_s: list[float]  # of the chunks
    end_s: float

    def to_plain(self) -> dict[str, Any]:
        return {"chunks": self.chunks, "sound": self.sound, "picture": self.picture, "chunk_starts_s": self.starts_s, "end_s": self.end_s}


def measure(answerer: Answerer, clip: OpenClip, question: Question, answer: str) -> Why:
    """Mask one part after the other and score `answer` again. All masks were seen in training (dropout of modalities and chunks).

    Raises UsageError for a long video that was read piece by piece: its parts are not kept.
    """
    if clip.sample is None:
        raise UsageError("--why needs a shorter clip: this one was read piece by piece", "name a part of it with --start and --end")
    masked = [clip.sample, without_sound(clip.sample), without_picture(clip.sample)]
    masked += [without_sound(without_picture(clip.sample, [t]), [t]) for t in range(clip.chunks)]
    scores: list[float] = []
    for start in range(0, len(masked), AT_ONCE):
        part = masked[start : start + AT_ONCE]
        memory = answerer.encode(part)
        scores += [row[0][0] for row in answerer.likelihoods(memory, [[question]] * len(part), [[[answer]]] * len(part))]
    whole, sound, picture, *chunks = scores
    each = clip.chunk_seconds
    return Why(
        chunks=[round(whole - score, 4) for score in chunks], sound=round(whole - sound, 4), picture=round(whole - picture, 4),
        starts_s=[round(clip.start_s + t * each, 3) for t in range(clip.chunks)], end_s=round(clip.start_s + clip.seconds, 3),
    )  # fmt: skip


def time_line(why: Why) -> Any:
    """A rich table: one line for sound, picture and every chunk, with a bar as long as the fall in log-probability."""
    from rich.table import Table
    from rich.text import Text

    most = max([abs(value) for value in (*why.chunks, why.sound, why.picture)] + [1e-6])
    table = Table(title="what the answer rests on (fall of its log-probability when masked)", title_justify="left", box=None)
    table.add_column("part")
    table.add_column("", justify="right")
    table.add_column("")
    ends = [*why.starts_s[1:], why.end_s]
    parts = [("sound", why.sound), ("picture", why.picture)]
    parts += [(f"{start:.1f}-{end:.1f} s", value) for start, end, value in zip(why.starts_s, ends, why.chunks, strict=True)]
    for name, value in parts:
        bar = "█" * round(30 * abs(value) / most) or "·"
        table.add_row(name, f"{value:+.2f}", Text(bar, style="green" if value >= 0 else "red"))
    return table


def draw(why: Why, path: Path, question: str, answer: str) -> Path:
    """The same as a PNG."""
    import io

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(7, 2.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        modality, chunks = figure.subplots(1, 2, width_ratios=[1, 4], sharey=True)
        modality.bar(["sound", "picture"], [why.sound, why.picture], color=["#d5803a", "#3a7bd5"])
        ends = [*why.starts_s[1:], why.end_s]
        widths = [end - start for start, end in zip(why.starts_s, ends, strict=True)]
        chunks.bar(why.starts_s, why.chunks, width=widths, align="edge", color="#4a9d6e", edgecolor="white")
        chunks.set_xlabel("seconds")
        modality.set_ylabel("fall of log p when masked")
        for axes in (modality, chunks):
            axes.axhline(0, color="#7f8790", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{_line(question, 60)}  {_line(answer, 30)}", fontsize=10)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    write_atomic(path, content.getvalue())
    return path


def _line(text: str, length: int) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= length else line[: length - 1] + "…"
