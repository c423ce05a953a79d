"""Messages and progress on stderr, results on stdout, from the first process of a run alone."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from mirasol_cli.errors import EnvironmentProblem
from mirasol_cli.files import finite

PLAIN_EVERY_S = 10.0
"""Seconds between two lines of progress where there is no terminal."""


class Progress(Protocol):
    def __call__(self, done: int, total: int, /) -> None: ...


_alone = False
unwritable: set[TextIO] = set()
"""Streams that could not be written to; an error is then told elsewhere."""


def run_alone(alone: bool) -> None:
    """Tell whether the command is one that forms no distributed run: then RANK, which a cluster may set anywhere, means nothing."""
    global _alone
    _alone = alone


def is_first_process() -> bool:
    """False in the further processes of a distributed run, which keep quiet."""
    return _alone or os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def say(line: str) -> None:
    """A message, to stderr, so that stdout holds only the result."""
    if is_first_process():
        tell(line)


def print_result(text: str) -> None:
    """The result of a command, in words."""
    if is_first_process():
        write(text)


def print_json(value: Any) -> None:
    """The result of a command as the one JSON object on stdout; numbers that are not finite become null."""
    if is_first_process():
        write(json.dumps(finite(value), ensure_ascii=not _writes_unicode(), default=str))


def tell(line: str) -> None:
    """A line on stderr from whichever process this is. Where nobody reads it any more (`| head`, a closed terminal), work goes on."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        drop_output(sys.stderr)


def write(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """To stdout, or another stream of results. A reader who has gone (`| head -1`) has seen enough.

    Raises EnvironmentProblem where the text cannot be written.
    """
    stream = stream or sys.stdout
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError as error:
        drop_output(stream)
        if error.errno != errno.EPIPE:
            unwritable.add(stream)
            raise EnvironmentProblem(f"cannot write to stdout: {error.strerror}", "check where the output goes") from error


def drop_output(stream: TextIO) -> None:
    """From now on what is written to this stream goes nowhere, what it still holds included."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # no true file, as in tests and notebooks
        return


def _writes_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


class _LossyStderr(io.TextIOWrapper):
    """stderr to which whatever is written is lost once nobody reads it (`| head`, a closed terminal), and nothing else happens."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            drop_output(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            drop_output(self)


def guard_stderr() -> None:
    """Work never ends because a message cannot be written, whoever sends it: this package, progress bars, warnings of libraries."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        sys.stderr = sys.__stderr__ = _LossyStderr(sys.stderr.detach(), encoding=encoding, errors=errors, line_buffering=True)  # type: ignore[misc]


def use_any_encoding() -> None:
    """Print what the encoding of stdout or stderr lacks as `?`, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class ProgressLine:
    """Work done of a known amount, with its rate and the time left: a bar on a terminal, a plain line now and then elsewhere.

    Args:
        total, unit: how much there is to do, and of what ("clip").
        talk: where plain lines go.
        done: what was done before; it does not count as speed.
        bar: whether there is a terminal; None: look.
    """

    def __init__(self, total: int, unit: str, talk: Callable[[str], None], *, done: int = 0, bar: bool | None = None):
        self._total, self._unit, self._talk, self._first, self._done = total, unit, talk, done, done
        self._start = self._said = time.monotonic()
        self._bar: Any = None
        if total and is_first_process() and (sys.stderr.isatty() if bar is None else bar):
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=unit, file=sys.stderr, dynamic_ncols=True, smoothing=0.05)

    def show(self, done: int, extra: str = "") -> None:
        """So much is done by now; `extra` is a further fact beside it."""
        self._done = done
        if self._bar is not None:
            try:
                self._bar.set_postfix_str(extra, refresh=False)
                self._bar.update(done - self._bar.n)
            except OSError:  # the terminal is gone
                self._bar = None
        elif time.monotonic() - self._said >= PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._talk(self._line(extra))

    def _line(self, extra: str) -> str:
        """`120 of 2000 clips, 0.33 h of video, 14.2 clips/s, 0:02:12 left`"""
        rate = (self._done - self._first) / max(time.monotonic() - self._start, 1e-6)
        left = int((self._total - self._done) / rate) if rate else 0
        facts = [f"{self._done} of {self._total} {self._unit}s", *filter(None, [extra]), f"{rate:.1f} {self._unit}s/s"]
        return ", ".join([*facts, f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_bar(unit: str, talk: Callable[[str], None] = say) -> Iterator[Progress]:
    """A callback for (done, total), whose first call begins a `ProgressLine`."""
    lines: list[ProgressLine] = []

    def show(done: int, total: int, /) -> None:
        if not lines:
            lines.append(ProgressLine(total, unit, talk, done=done))
        lines[0].show(done)

    try:
        yield show
    finally:
        for line in lines:
            line.close()
