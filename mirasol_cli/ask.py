"""What `mirasol ask` does, and the same as a library: load a checkpoint, look at a video once, answer questions about it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mirasol_cli import console
from mirasol_cli.ask_clip import OpenClip, find_video, open_clip
from mirasol_cli.errors import CheckpointError, DataError, UsageError
from mirasol_cli.evaluation.answerer import Answerer, Question
from mirasol_cli.files import read_json
from mirasol_cli.recipe_schema import EvalRecipe
from mirasol_cli.training.checkpoint import DEMO_CHECKPOINT, demo_checkpoint, resolve_checkpoint
from mirasol_cli.vocabulary import StreamDecoder
from mirasol_cli.why import NOT_KEPT, UNTRAINED, Why, draw, measure, time_line

Say = Callable[[str], None]
DEMO_WARNING = "the demo checkpoint only knows the demo world of simple instruments; it knows nothing of real videos"


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
    def probability(self) -> float:
        """That the model gives exactly this answer; long answers have small ones."""
        return math.exp(self.logprob)

    @property
    def confidence(self) -> str:
        """`probability 0.93`, in as many digits as it takes."""
        return f"probability {self.probability:.2f}" if self.probability >= 0.005 else f"probability {self.probability:.1g}"

    def to_plain(self) -> dict[str, Any]:
        """The fields of `mirasol ask --json`."""
        clip = self.clip
        return {
            "answer": self.answer, "logprob": round(self.logprob, 4), "probability": round(self.probability, 4), "question": self.question,
            "video": {"path": clip.path, "seconds": round(clip.seconds, 3), "start_s": round(clip.start_s, 3), "frames": clip.frames,
                      "chunks": clip.chunks, "audio": clip.audio, "sampled": clip.sampled},
            "timings_s": {name: round(value, 3) for name, value in self.timings_s.items()},
            "checkpoint": self.checkpoint, "warnings": self.warnings, "why": self.why.to_plain() if self.why else None,
        }  # fmt: skip


@dataclass
class Model:
    """A checkpoint, ready to answer. Videos are encoded once and the last one is kept, so further questions are quick."""

    answerer: Answerer
    checkpoint: Path
    warnings: list[str] = field(default_factory=list)
    load_s: float = 0.0
    usual_clip_s: float | None = None  # about the longest clip it was trained on; longer ones are long
    trained_with_masks: bool = True  # on clips that lost sound, picture or chunks: what `why` shows it again
    _last: tuple[tuple, OpenClip] | None = None

    def open(self, video: str | Path, start_s: float | None = None, end_s: float | None = None, say: Say = lambda _: None) -> OpenClip:
        """The encoded video, or a span of it in seconds. Raises MediaError or UsageError that names the file."""
        path = find_video(str(video))
        key = (path.resolve(), path.stat().st_mtime_ns, start_s, end_s)
        if self._last is None or self._last[0] != key:
            self._last = (key, open_clip(self.answerer, path, start_s, end_s, usual_s=self.usual_clip_s, say=say))
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
        return self.answer(clip, question, context, why=why)

    def answer(
        self, clip: OpenClip, question: str, context: str = "", *, why: bool = False, show: Callable[[str], None] | None = None
    ) -> Reply:  # fmt: skip
        """Answer about an open clip; `show` gets the answer's text piece by piece as it comes."""
        for name, given in (("question", question), ("context", context)):
            if not isinstance(given, str):
                raise UsageError(f"the {name} is {given!r}, which is no text")
        if not question.strip():
            raise UsageError("the question is empty")
        began = time.perf_counter()
        asked = Question(question, context)
        text = StreamDecoder(self.answerer.vocabulary)
        told = 0
        for decoded in self.answerer.stream(clip.memory, asked):
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
        reply = Reply(answer, decoded.logprob, question, clip, str(self.checkpoint), [*self.warnings, *clip.warnings],
                      {"load": self.load_s, **clip.timings_s, "answer": answered - began})  # fmt: skip
        cut = self.answerer.prompt(asked).cut
        if cut:
            reply.warnings.append(f"the context or question is too long: {cut} tokens were left out")
        if why:
            reply.why = measure(self.answerer, clip, asked, answer)
            reply.timings_s["why"] = time.perf_counter() - answered
            if reply.why is None:
                reply.warnings.append(NOT_KEPT)
            elif not self.trained_with_masks:
                reply.warnings.append(UNTRAINED)
        return reply


def load(checkpoint: str | Path, *, device: str = "auto") -> Model:
    """A model from a checkpoint folder or a run folder (its best checkpoint); `demo` is the one in the package.

    Raises:
        CheckpointError: it is missing, incomplete or damaged.
        EnvironmentProblem: the device is not there.
    """
    from mirasol_cli.training.checkpoint import load_model
    from mirasol_cli.training.distributed import resolve_device

    began = time.perf_counter()
    folder = resolve_checkpoint(checkpoint)
    loaded = load_model(folder)
    settings = EvalRecipe(decode="greedy", max_tokens=loaded.recipe.eval.max_tokens)
    recipe, place = loaded.recipe, resolve_device(device)
    answerer = Answerer(loaded.model, loaded.vocabulary, settings, place, sound=recipe.data.sound, precision=recipe.train.precision)
    warnings = [DEMO_WARNING] if folder.resolve() == DEMO_CHECKPOINT.resolve() else []
    augment = recipe.train.augment
    with_masks = augment.drop_modality > 0 or augment.drop_chunks > 0
    return Model(answerer, folder, warnings, time.perf_counter() - began, loaded.usual_clip_s, with_masks)


def choose_checkpoint(given: str | None, runs: Path = Path("runs")) -> tuple[str, str]:
    """(checkpoint, why this one): the given one, else the best of the newest finished run, else the demo's.

    Raises CheckpointError, which says how to train one, if there is none at all.
    """
    if given:
        return given, "as named"
    finished = []
    for state in runs.glob("*/run.json"):
        try:
            run = read_json(state)
        except DataError:
            continue
        if isinstance(run, dict) and run.get("status") == "finished":
            finished.append((str(run.get("ended") or ""), state.stat().st_mtime, state.parent, run.get("stage")))
    for *_, folder, stage in sorted(finished, key=lambda run: run[:3], reverse=True):
        doubt = "; it was pretrained only and has learned no questions: name another with --checkpoint" if stage == "pretrain" else ""
        try:
            return str(resolve_checkpoint("best", folder)), f"of the newest finished run, '{folder}'{doubt}"
        except CheckpointError:
            continue
    return str(demo_checkpoint()), "the demo checkpoint of the package"


def ask(
    video: str,
    question: str | None = None,
    *,
    questions: Path | None = None,
    context: str = "",
    checkpoint: str | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    why: bool = False,
    limit: int | None = None,
    device: str = "auto",
    stream: TextIO | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """The command. Answers go to `stream` (nowhere with None), talk to `say`; returns what `--json` prints.

    With `questions` the result holds one entry of `answers` per line of the file, and the warnings of all of them. Without
    any question a session starts, if both ends are a terminal.

    Raises:
        UsageError: no question, or contradicting options.
        MediaError, CheckpointError, DataError: video, checkpoint or questions cannot be used.
    """
    if question is not None and questions is not None:
        raise UsageError("a question and --questions were both given", "leave one of the two out")
    asked = _questions(questions, limit) if questions is not None else [question] if question is not None else []
    terminal = stream if stream is not None and stream.isatty() and sys.stdin.isatty() else None
    if not asked and terminal is None:
        raise UsageError("there is no question", 'give one after the video, as in `mirasol ask clip.mp4 "what is playing?"`')
    find_video(video)  # a wrong name is told before the model is loaded
    chosen, reason = choose_checkpoint(checkpoint)
    model = load(chosen, device=device)
    say(f"checkpoint '{model.checkpoint}' ({reason})")
    clip = model.open(video, start_s, end_s, say)
    say(f"looked at {clip.sampled}")
    told: set[str] = set()
    tell((*model.warnings, *clip.warnings), told, say)
    if not asked and terminal is not None:
        from mirasol_cli.ask_session import Session

        return Session(model, clip, context, terminal, say, why=why).run()

    replies = [answer_aloud(model, clip, one, context, stream, say, told, why=why, repeat=questions is not None) for one in asked]
    plain = [_with_picture(reply, number, len(replies), say) for number, reply in enumerate(replies, 1)]
    if questions is None:
        return plain[0]
    shared = {key: plain[0][key] for key in ("video", "checkpoint")}
    shared["warnings"] = list(dict.fromkeys(warning for one in plain for warning in one["warnings"]))
    each = ("question", "answer", "logprob", "probability", "timings_s", "why")
    return {"answers": [{key: one[key] for key in each} for one in plain], **shared}


def tell(warnings: Iterable[str], told: set[str], say: Say) -> None:
    """Say the warnings that are not in `told`, and put them there."""
    for warning in warnings:
        if warning not in told:
            say(f"note: {warning}")
            told.add(warning)


def answer_aloud(
    model: Model, clip: OpenClip, question: str, context: str, stream: TextIO | None, say: Say, told: set[str],
    *, why: bool, repeat: bool = False,
) -> Reply:  # fmt: skip
    """Answer one question; on a terminal the text appears as it comes.

    Args:
        stream: where the answer goes (nowhere with None).
        say: hears the warnings of this answer that are not in `told`, which then holds them too.
        repeat: write the question before its answer.
    """
    live = stream is not None and stream.isatty()

    def show(piece: str) -> None:
        console.write(_visible(piece), stream, end="")

    if repeat and stream is not None:
        console.write(f"{_visible(question)}  ", stream, end="")
    reply = model.answer(clip, question, context, show=show if live else None, why=why)
    if stream is not None:
        beside = f"  ({reply.confidence})" if live or repeat else ""
        console.write(("" if live else _visible(reply.answer)) + beside, stream)
        if reply.why:
            from rich.console import Console

            painter = Console(file=stream)
            with painter.capture() as painted:
                painter.print(time_line(reply.why))
            console.write(painted.get(), stream, end="")
    if not (live or repeat):
        say(reply.confidence)  # not on stdout, which a script reads as the answer
    tell(reply.warnings, told, say)
    return reply


def _with_picture(reply: Reply, number: int, count: int, say: Say) -> dict[str, Any]:
    """The reply's JSON; with `--why` its picture is drawn beside, named after the video, in the current folder."""
    plain = reply.to_plain()
    if reply.why:
        suffix = f"-{number}" if count > 1 else ""
        path = draw(reply.why, Path(f"{Path(reply.clip.path).stem}-why{suffix}.png"), reply.question, reply.answer)
        plain["why"]["picture_file"] = str(path)
        say(f"drawn as '{path}'")
    return plain


def _questions(path: Path, limit: int | None) -> Sequence[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise DataError(f"the file of questions '{path}' is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: {error}", "it must be text in UTF-8, one question per line") from None
    found = [line for line in lines if line][:limit]
    if not found:
        raise UsageError(f"'{path}' holds no question", "write one question per line")
    return found


def _visible(text: str) -> str:
    """Without control characters: a model trained on strangers' text must not steer the terminal."""
    return "".join(_printable(text))


def _printable(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() or character == "\n" else "\ufffd"
