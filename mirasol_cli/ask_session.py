"""Questions one after the other about a video that is encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

from mirasol_cli.ask_clip import OpenClip
from mirasol_cli.errors import MirasolError

if TYPE_CHECKING:
    from mirasol_cli.ask import Model, Reply, Say

HELP = (
    "Ask a question, or: /video FILE   /context TEXT   /clear (forget the context)   /help   /quit.   Ctrl-C stops an answer, twice leaves."
)


class Session:
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
                self.say("stopped; Ctrl-C again leaves")
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
                self.say("context forgotten")
            elif command == "/help":
                self.say(HELP)
            elif command.startswith("/"):
                self.say(f"'{command}' is no command. {HELP}")
            else:
                self._answer(line)
        except MirasolError as error:
            self.say(error.message + (f"; {error.hint}" if error.hint else ""))

    def _look_at(self, video: str) -> None:
        if not video:
            self.say(f"the video is '{self.clip.path}'; /video FILE takes another")
            return
        self.clip = self.model.open(video, say=self.say)
        self.say(f"looked at {self.clip.sampled}")
        for warning in self.clip.warnings:
            self.say(f"note: {warning}")

    def _answer(self, question: str) -> None:
        from mirasol_cli.ask import answer_aloud

        told = {*self.model.warnings, *self.clip.warnings}  # when they were opened
        self.replies.append(answer_aloud(self.model, self.clip, question, self.context, self.stream, self.say, told, why=self.why))
