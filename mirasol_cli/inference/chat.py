"""Answers on a terminal: printed as they are generated, or a chat about a video that is encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from mirasol_cli.errors import MirasolError
from mirasol_cli.inference.attribution import HEADING, time_line
from mirasol_cli.inference.session import Model, Reply, Say
from mirasol_cli.inference.video import OpenClip
from mirasol_cli.runtime import console

NO_ANSWER = "not an answer: this model knows only the demo world"
"""Beside every answer of a model of the demo world about another video."""


def print_warnings(warnings: Iterable[str], told: set[str], say: Say) -> None:
    """Say the warnings that are not in `told`, and put them there."""
    for warning in warnings:
        if warning not in told:
            say(f"note: {warning}")
            told.add(warning)


def print_answer(
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
        notes = [NO_ANSWER] * bool(reply.caveat) + [reply.confidence] * (live or repeat)
        beside = f"  ({'; '.join(notes)})" if notes else ""
        console.write(("" if live else _visible(reply.answer)) + beside, stream)
        if reply.why:
            from rich.console import Console

            painter = Console(file=stream)
            with painter.capture() as painted:
                painter.print(HEADING, time_line(reply.why), sep="\n", soft_wrap=True)
            console.write(painted.get(), stream, end="")
    if not (live or repeat):
        say(reply.confidence)  # not on stdout, which a script reads as the answer
    print_warnings(reply.warnings, told, say)
    return reply


def _visible(text: str) -> str:
    """Without control characters: a model trained on strangers' text must not steer the terminal."""
    return "".join(_printable(text))


def _printable(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() or character == "\n" else "\ufffd"


HELP = "Type a question, or /video FILE, /context TEXT, /clear (the context), /help, /quit. Ctrl-C stops an answer, twice leaves."


class Chat:
    """`run` reads lines until /quit, the end of input, or two Ctrl-C in a row."""

    def __init__(self, model: Model, clip: OpenClip, context: str, stream: TextIO, say: Say, *, why: bool = False):
        self.model, self.clip, self.context = model, clip, context
        self.stream, self.say, self.why = stream, say, why
        self.replies: list[Reply] = []

    def run(self) -> dict[str, Any]:
        """Returns all questions and answers of the session."""
        self.say(HELP)
        interrupted = False
        while True:
            try:
                line = input("> ").strip()
                if line == "/quit":
                    break
                if line:
                    self.take(line)
                interrupted = False
            except EOFError:
                break
            except KeyboardInterrupt:
                print(file=self.stream)
                if interrupted:
                    break
                self.say("stopped; press Ctrl-C again to leave")
                interrupted = True
        plain = [reply.to_plain() for reply in self.replies]
        return {"answers": [{key: one[key] for key in ("question", "answer", "logprob", "probability")} for one in plain]}

    def take(self, line: str) -> None:
        """One line: a command or a question. What goes wrong is told, and the session goes on."""
        try:
            command, _, rest = line.partition(" ")
            if command == "/video":
                self._look_at(rest.strip())
            elif command == "/context":
                self.context = rest.strip()
                self.say(f"context: {self.context or '(none)'}")
            elif command == "/clear":
                self.context = ""
                self.say("context cleared")
            elif command == "/help":
                self.say(HELP)
            elif command.startswith("/"):
                self.say(f"unknown command '{command}'. {HELP}")
            else:
                self._answer(line)
        except MirasolError as error:
            self.say(error.message + (f"; {error.hint}" if error.hint else ""))

    def _look_at(self, video: str) -> None:
        if not video:
            self.say(f"current video: '{self.clip.path}'; use /video FILE to switch")
            return
        self.clip = self.model.open(video, say=self.say)
        self.say(f"read {self.clip.sampled}")
        for warning in self.clip.warnings:
            self.say(f"note: {warning}")

    def _answer(self, question: str) -> None:
        told = set(self.clip.warnings)  # when they were opened
        self.replies.append(print_answer(self.model, self.clip, question, self.context, self.stream, self.say, told, why=self.why))
