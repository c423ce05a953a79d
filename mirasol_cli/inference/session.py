"""A loaded checkpoint that answers questions about videos, each encoded once. Implements `mirasol.load`."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirasol_cli.checkpoints.runs import resolve_checkpoint
from mirasol_cli.config.schema import EvalRecipe
from mirasol_cli.errors import UsageError
from mirasol_cli.inference.answerer import Answerer, Question
from mirasol_cli.inference.attribution import LEAST, NOT_KEPT, UNTRAINED, UNUSED, Why, measure
from mirasol_cli.inference.video import OpenClip, find_video, is_of_demo_world, open_clip
from mirasol_cli.text.tokenizer import StreamDecoder

Say = Callable[[str], None]
DEMO_WARNING = "this model only knows the demo world of drawn instruments; it knows nothing of real videos"
CAVEAT = (
    "what follows is not an answer: this model was trained on the demo world of drawn instruments and knows nothing of real videos; "
    "train one on your own videos (`mirasol prepare`, `mirasol finetune`) and name its run with --checkpoint"
)
"""Said of every video that is not one of the demo world."""


@dataclass
class Reply:
    """An answer. `str(reply)` is its text."""

    answer: str
    logprob: float  # natural log-probability of the answer and its end
    question: str
    clip: OpenClip
    checkpoint: str
    warnings: list[str]
    timings_s: dict[str, float]
    why: Why | None = None

    def __str__(self) -> str:
        return self.answer

    @property
    def caveat(self) -> str | None:
        """Why the answer must not be taken for one; None where it may."""
        return CAVEAT if CAVEAT in self.warnings else None

    @property
    def probability(self) -> float:
        """That the model gives exactly this answer; long answers have small ones."""
        return math.exp(self.logprob)

    @property
    def confidence(self) -> str:
        """`probability 0.93`, in as many digits as it takes."""
        return f"probability {self.probability:.2f}" if self.probability >= 0.1 else f"probability {self.probability:.1g}"

    def to_plain(self) -> dict[str, Any]:
        """The fields of `mirasol ask --json`."""
        clip = self.clip
        return {
            "answer": self.answer, "caveat": self.caveat, "logprob": round(self.logprob, 4), "probability": round(self.probability, 4),
            "question": self.question,
            "video": {"path": clip.path, "seconds": round(clip.seconds, 3), "start_s": round(clip.start_s, 3), "frames": clip.frames,
                      "chunks": clip.chunks, "audio": clip.audio, "sampled": clip.sampled},
            "timings_s": {name: round(value, 3) for name, value in self.timings_s.items()},
            "checkpoint": self.checkpoint, "warnings": self.warnings, "why": self.why.to_plain() if self.why else None,
        }  # fmt: skip


@dataclass
class Model:
    """A loaded checkpoint. A video is encoded once and the last one is kept, so further questions are quick."""

    answerer: Answerer
    checkpoint: Path
    demo_world: bool = False  # trained on the demo world alone
    load_s: float = 0.0
    usual_clip_s: float | None = None  # about the longest clip it was trained on; longer ones are long
    trained_with_masks: bool = True  # on clips that lost sound, picture or chunks: what `why` shows it again
    _last: tuple[tuple, OpenClip] | None = None

    def warnings_about(self, path: Path) -> list[str]:
        """What to know before anything is asked about this video."""
        return [] if not self.demo_world else [DEMO_WARNING] if is_of_demo_world(path) else [CAVEAT]

    def open(self, video: str | Path, start_s: float | None = None, end_s: float | None = None, say: Say = lambda _: None) -> OpenClip:
        """The encoded video, or a span of it in seconds. Raises MediaError or UsageError that names the file."""
        path = find_video(str(video))
        key = (path.resolve(), path.stat().st_mtime_ns, start_s, end_s)
        if self._last is None or self._last[0] != key:
            clip = open_clip(self.answerer, path, start_s, end_s, usual_s=self.usual_clip_s, say=say)
            clip.warnings[:0] = self.warnings_about(path)
            self._last = (key, clip)
        return self._last[1]

    def ask(
        self, video: str | Path, question: str, context: str = "", *, start_s: float | None = None, end_s: float | None = None,
        why: bool = False,
    ) -> Reply:  # fmt: skip
        """Answer one question about a video.

        Args:
            video: path of a video file.
            question: in the words the model was trained with.
            context: title, description or subtitles.
            start_s, end_s: seconds; look at this span only.
            why: also measure which chunks and which modality the answer rests on (`reply.why`); a long video that was read
                piece by piece keeps None there, and a warning says so.

        Raises:
            UsageError: an empty question or span, or a URL.
            MediaError: the video cannot be used.
        """
        clip = self.open(video, start_s, end_s)
        if CAVEAT in clip.warnings:
            warnings.warn(CAVEAT, stacklevel=2)
        return self.answer(clip, question, context, why=why)

    def answer(
        self, clip: OpenClip, question: str, context: str = "", *, why: bool = False, show: Callable[[str], None] | None = None
    ) -> Reply:  # fmt: skip
        """Answer about an open clip; `show` gets the answer's text piece by piece as it comes."""
        for name, given in (("question", question), ("context", context)):
            if not isinstance(given, str):
                raise UsageError(f"the {name} must be text, not {given!r}")
        if not question.strip():
            raise UsageError("the question is empty")
        began = time.perf_counter()
        asked = Question(question, context)
        text = StreamDecoder(self.answerer.vocabulary)
        told = 0
        for decoded in self.answerer.stream(clip.text_kv, asked):
            for token in decoded.ids[told:]:
                piece = text.push(token)
                if show and piece:
                    show(piece)
            told = len(decoded.ids)
        rest = text.finish()
        if show and rest:
            show(rest)
        answered = time.perf_counter()
        answer = self.answerer.vocabulary.decode(decoded.ids)
        reply = Reply(answer, decoded.logprob, question, clip, str(self.checkpoint), [*clip.warnings],
                      {"load": self.load_s, **clip.timings_s, "answer": answered - began})  # fmt: skip
        cut = self.answerer.prompt(asked).cut
        if cut:
            reply.warnings.append(f"the context or question is too long: {cut} tokens were cut")
        if why:
            reply.why = measure(self.answerer, clip, asked, answer)
            reply.timings_s["why"] = time.perf_counter() - answered
            if reply.why is None:
                reply.warnings.append(NOT_KEPT)
                return reply
            if not self.trained_with_masks:
                reply.warnings.append(UNTRAINED)
            if reply.why.largest < LEAST:
                reply.warnings.append(UNUSED)
        return reply


def load(checkpoint: str | Path, *, device: str = "auto") -> Model:
    """A model from a checkpoint folder or a run folder (its best checkpoint); `demo` is the one in the package.

    Raises:
        CheckpointError: it is missing, incomplete or damaged.
        EnvironmentProblem: the device is not there.
    """
    from mirasol_cli.checkpoints.load import load_model
    from mirasol_cli.runtime.device import resolve_device

    began = time.perf_counter()
    folder = resolve_checkpoint(checkpoint)
    loaded = load_model(folder)
    settings = EvalRecipe(decode="greedy", max_tokens=loaded.recipe.eval.max_tokens)
    recipe, place = loaded.recipe, resolve_device(device)
    answerer = Answerer(loaded.model, loaded.vocabulary, settings, place, **recipe.data.modalities, precision=recipe.train.precision)
    datasets = {source.dataset for source in recipe.data.sources or (recipe.data,)}
    augment = recipe.train.augment
    with_masks = augment.drop_modality > 0 or augment.drop_chunks > 0
    return Model(answerer, folder, datasets <= {"demo", "demo-long"}, time.perf_counter() - began, loaded.usual_clip_s, with_masks)
