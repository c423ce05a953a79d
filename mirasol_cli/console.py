"""What every command says and how it ends: talk on stderr, one result on stdout, errors in one form, exit codes."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from mirasol_cli.errors import EnvironmentProblem, MirasolError
from mirasol_cli.files import disk_problem, finite

PLAIN_EVERY_S = 10.0
"""Seconds between two lines of progress where there is no terminal."""


class Progress(Protocol):
    def __call__(self, done: int, total: int, /) -> None: ...


_alone = False
_lost: set[TextIO] = set()
"""Streams that could not be written to; an error is then told elsewhere."""


def run_alone(alone: bool) -> None:
    """Tell whether the command is one that forms no distributed run: then RANK, which a cluster may set anywhere, means nothing."""
    global _alone
    _alone = alone


def is_first_process() -> bool:
    """False in the further processes of a distributed run, which keep quiet."""
    return _alone or os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def say(line: str) -> None:
    """Talk: to stderr, so that stdout holds only the result."""
    if is_first_process():
        _talk(line)


def print_result(text: str) -> None:
    """The result of a command, in words."""
    if is_first_process():
        write(text)


def print_json(value: Any) -> None:
    """The result of a command as the one JSON object on stdout; numbers that are not finite become null."""
    if is_first_process():
        write(json.dumps(finite(value), ensure_ascii=not _writes_unicode(), default=str))


def _talk(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody listens any more, which is no reason to end the work
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
            _lost.add(stream)
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


class _Talk(io.TextIOWrapper):
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
    """Work never ends because talk cannot be written, whoever talks: this package, progress bars, warnings of libraries."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        sys.stderr = sys.__stderr__ = _Talk(sys.stderr.detach(), encoding=encoding, errors=errors, line_buffering=True)  # type: ignore[misc]


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


# ------------------------------------------------------------------------------------------------ errors


def report_error(kind: str, message: str, hint: str | None, *, as_json: bool, summary: dict[str, Any] | None = None) -> None:
    """One error in its one form: a line (and a hint) on stderr, or a JSON object on stdout, after what was reached before it."""
    if as_json and sys.stdout not in _lost:
        print_json({**(summary or {}), "error": {"kind": kind, "message": message, "hint": hint}})
        return
    _talk(f"error: {message}" + (f"\nhint:  {hint}" if hint else ""))


def report_expected(error: MirasolError, *, as_json: bool) -> int:
    """Report a failure that has a class of its own; returns its exit code."""
    # Every process of a run meets a usage error and a signal alike; "stopped" are the further ones whose first one has told why.
    if is_first_process() or error.kind not in ("usage", "recipe", "interrupted", "stopped"):
        report_error(error.kind, error.message, error.hint, as_json=as_json, summary=error.summary)
    return error.exit_code


def environment_problem(error: Exception) -> EnvironmentProblem | None:
    """What is the machine's fault and not ours: a full disk, a forbidden file, too little memory."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return disk_problem(error, Path(os.fsdecode(error.filename or "a temporary file or the output")))
    if isinstance(error, PermissionError) and error.filename:
        return EnvironmentProblem(f"no permission for '{os.fsdecode(error.filename)}'", "check the permissions of the file and its folder")
    if isinstance(error, MemoryError):
        return EnvironmentProblem("out of memory", "lower train.batch_clips, eval.batch_clips or --workers")
    return None


def report_bug(error: Exception, *, as_json: bool) -> int:
    """Report a failure nobody foresaw: the traceback goes to a file that one line names. Returns exit code 1."""
    text = "".join(traceback.format_exception(error))
    message = f"internal error {type(error).__name__}: {error}".splitlines()[0]
    report_error("bug", f"{message}; traceback in '{_save_traceback(text)}'", "please report this and attach the file", as_json=as_json)
    return 1


def _save_traceback(text: str) -> Path:
    handle, name = tempfile.mkstemp(prefix=time.strftime("mirasol-%Y%m%d-%H%M%S-"), suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


# ------------------------------------------------------------------------------------------------ results in words


WIDTH = 80
"""Columns that the tables keep to."""
NAME_WIDTH, FIGURE_WIDTH = 16, 9


def metrics_table(results: dict[str, Any]) -> str:
    """The result of `eval` for a reader: one line per metric, with its interval where there is one, and per type."""
    intervals = results.get("intervals") or {}
    lines = [f"{results['dataset']} {results['split']}: {_how_many(results)}"]
    for name, value in results["metrics"].items():
        if isinstance(value, (int, float)):
            between = intervals.get(name)
            text = f"  [{between[0]:.4f}, {between[1]:.4f}]" if isinstance(between, (list, tuple)) and len(between) == 2 else ""
            counts = results.get("counts") or {}
            count = f"  of {counts[name]}" if name in counts else ""
            lines.append(f"  {name:28} {value:.4f}{count}{text}")
    by_type = results.get("by_type") or {}
    for kind, scores in by_type.items():
        exact = scores.get("exact_match")
        if isinstance(exact, (int, float)) and (kind or len(by_type) > 1):  # no type at all: the whole again
            lines.append(f"  {_shortened('type ' + (kind or 'not given'), 28):28} {exact:.4f}  of {scores['n']}")
    for group, scores in (results.get("groups") or {}).items():
        lines.append(f"  {_shortened('group ' + group, 28):28} {scores['exact_match']:.4f}  of {scores['n']}")
    for control, scores in (results.get("controls") or {}).items():
        if control != "none" and "exact_match" in scores:
            follows = scores.get("follows_media")
            text = f"  follows the media shown in {follows['follows']} of {follows['n']}" if follows else ""
            lines.append(f"  {'control ' + control:28} {scores['exact_match']:.4f}{text}")
    return "\n".join([*lines, *_controls_by_type(results.get("controls") or {})])


def _how_many(results: dict[str, Any]) -> str:
    parts = [f"{results['n']} questions"]
    if results["missing"]:
        parts.append(f"{results['missing']} about missing clips")
    if results.get("unanswered"):
        parts.append(f"{results['unanswered']} not answered")
    return ", ".join(parts)


def _controls_by_type(controls: dict[str, Any]) -> list[str]:
    """Rows of question types, columns of controls: what each type rests on. As many tables below one another as 80 columns ask for."""
    by_type = {name: scores["by_type"] for name, scores in controls.items() if scores.get("by_type")}
    kinds = by_type.get("none", {})
    if len(kinds) < 2:
        return []
    names, at_once = list(by_type), (WIDTH - 2 - NAME_WIDTH) // FIGURE_WIDTH
    lines = []
    for first in range(0, len(names), at_once):
        part = names[first : first + at_once]
        heads = [("", "all") if name == "none" else tuple(name.rpartition("-")[::2]) for name in part]  # in two lines: no-, sound
        upper = [f"{before}-" if before else "" for before, _ in heads]
        lines += ["", "  " + f"{'exact match':{NAME_WIDTH}}" + "".join(f"{word:>{FIGURE_WIDTH}}" for word in upper)]
        lines += ["  " + " " * NAME_WIDTH + "".join(f"{word:>{FIGURE_WIDTH}}" for _, word in heads)]
        for kind in kinds:
            name = _shortened(kind or "not given", NAME_WIDTH)
            lines.append(f"  {name:{NAME_WIDTH}}" + "".join(f"{by_type[control][kind]:{FIGURE_WIDTH}.4f}" for control in part))
    return lines


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
