"""What an answer rests on, measured: how its log-probability changes when chunks, the audio or the video are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirasol_cli.batches.masking import without_audio, without_video
from mirasol_cli.inference.answerer import Answerer, Question
from mirasol_cli.inference.video import OpenClip

AT_ONCE = 8
"""Masked copies of the clip that are encoded side by side."""
NOT_KEPT = "--why is not available for videos processed in pieces; choose a span with --start and --end"
UNTRAINED = (
    "this model was trained without masks (train.augment.drop_modality and drop_chunks are 0), so --why measures its behaviour on "
    "inputs it was never trained on"
)


LEAST = 0.05
"""Changes of log p below this (5 % of the probability) say nothing: bars are not drawn larger to make them visible."""
UNUSED = (
    "no part of the clip changes the probability of this answer by 5 % or more: the model may be answering from the question alone, or "
    "from any part alike"
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

    @property
    def largest(self) -> float:
        """The largest change, whatever its sign."""
        return max(abs(value) for value in (*self.chunks, self.audio, self.video))

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


HEADING = "support for the answer: change of its log-probability by each modality and each span of time"


def time_line(why: Why) -> Any:
    """A rich table: one line for the audio, the video and every chunk, with a bar as long as the change of log-probability."""
    from rich.table import Table
    from rich.text import Text

    most = max(why.largest, 10 * LEAST)
    table = Table(box=None)
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
