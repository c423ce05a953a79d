"""What an answer rests on, measured: how its log-probability changes when chunks, the sound or the picture are masked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirasol_cli.batches.masking import without_audio, without_video
from mirasol_cli.files import write_atomic
from mirasol_cli.inference.answerer import Answerer, Question
from mirasol_cli.inference.video import OpenClip

AT_ONCE = 8
"""Masked copies of the clip that are encoded side by side."""
NOT_KEPT = "--why is not available for a video that is read in pieces; ask about a part of it with --start and --end"
UNTRAINED = (
    "this model was trained without masks (train.augment.drop_modality and drop_chunks are 0), so --why measures its behaviour on "
    "inputs it was never trained on"
)


@dataclass(frozen=True)
class Why:
    """Changes of the answer's natural log-probability: above 0, the answer rests on that part.

    `audio` and `video`: how far it falls when that is masked. `chunks`, OURS: the mean of how far it falls when the chunk is
    masked, and how far it rises from nothing when the chunk alone is shown. What is told by two chunks is lost with neither of
    them, so that masking one by one would call both of no use.
    """

    chunks: list[float]
    audio: float
    video: float
    starts_s: list[float]  # of the chunks
    end_s: float

    def to_plain(self) -> dict[str, Any]:
        return {"chunks": self.chunks, "audio": self.audio, "video": self.video, "chunk_starts_s": self.starts_s, "end_s": self.end_s}


def measure(answerer: Answerer, clip: OpenClip, question: Question, answer: str) -> Why | None:
    """Score `answer` again with parts of the clip masked; None for a long video that was read piece by piece (it is not kept).

    A model knows the masks that it was trained with: a clip without its sound or without its picture by
    `train.augment.drop_modality`, a clip without some of its chunks by `drop_chunks`. All else is an extrapolation: the clip
    with nothing to see or hear, which augmentation never makes (it moves the values of all chunks alike), a single chunk left
    of very many, which is seldom drawn, and every mask of a model whose recipe has 0 there.
    """
    if clip.sample is None:
        return None
    chunks = range(clip.chunks)
    masked = [clip.sample, without_audio(clip.sample), without_video(clip.sample), _without(clip.sample, chunks)]
    masked += [_without(clip.sample, [t]) for t in chunks]
    masked += [_without(clip.sample, [other for other in chunks if other != t]) for t in chunks]
    scores: list[float] = []
    for start in range(0, len(masked), AT_ONCE):
        part = masked[start : start + AT_ONCE]
        text_kv = answerer.encode(part)
        scores += [row[0][0] for row in answerer.likelihoods(text_kv, [[question]] * len(part), [[[answer]]] * len(part))]
    whole, no_audio, no_video, nothing, *rest = scores
    without, alone = rest[: clip.chunks], rest[clip.chunks :]
    each = clip.chunk_seconds
    return Why(
        chunks=[round((whole - out + only - nothing) / 2, 4) for out, only in zip(without, alone, strict=True)],
        audio=round(whole - no_audio, 4), video=round(whole - no_video, 4),
        starts_s=[round(clip.start_s + t * each, 3) for t in chunks], end_s=round(clip.start_s + clip.seconds, 3),
    )  # fmt: skip


def _without(sample: dict[str, Any], chunks: Sequence[int]) -> dict[str, Any]:
    return without_audio(without_video(sample, chunks), chunks)


def time_line(why: Why) -> Any:
    """A rich table: one line for sound, picture and every chunk, with a bar as long as the change of log-probability."""
    from rich.table import Table
    from rich.text import Text

    most = max([abs(value) for value in (*why.chunks, why.audio, why.video)] + [1e-6])
    table = Table(title="what the answer rests on (change of its log-probability)", title_justify="left", box=None)
    table.add_column("part")
    table.add_column("", justify="right")
    table.add_column("")
    ends = [*why.starts_s[1:], why.end_s]
    parts = [("audio", why.audio), ("video", why.video)]
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

    title = f"{_line(question, 60)}  {_line(answer, 30)}"
    style: dict[Any, Any] = {"text.parse_math": False, "font.size": 9, "font.family": ["DejaVu Sans", *_fonts_for(title)]}
    with warnings.catch_warnings(), matplotlib.rc_context(style):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # what no font here has is drawn as a box
        figure = Figure(figsize=(7, 2.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        modality, chunks = figure.subplots(1, 2, width_ratios=[1, 4], sharey=True)
        modality.bar(["audio", "video"], [why.audio, why.video], color=["#d5803a", "#3a7bd5"])
        ends = [*why.starts_s[1:], why.end_s]
        widths = [end - start for start, end in zip(why.starts_s, ends, strict=True)]
        chunks.bar(why.starts_s, why.chunks, width=widths, align="edge", color="#4a9d6e", edgecolor="white")
        chunks.set_xlabel("seconds")
        modality.set_ylabel("change of log p")
        for axes in (modality, chunks):
            axes.axhline(0, color="#7f8790", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title, fontsize=10)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    write_atomic(path, content.getvalue())
    return path


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
