"""What every command says and how it ends: talk on stderr, one result on stdout, errors in one form, exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mirasol_cli.errors import EnvironmentProblem, MirasolError
from mirasol_cli.files import disk_problem, finite

PLAIN_EVERY_S = 10.0
"""Seconds between two lines of progress where there is no terminal."""


class Progress(Protocol):
    def __call__(self, done: int, total: int, /) -> None: ...


def is_first_process() -> bool:
    """False in the further processes of a distributed run, which keep quiet."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Talk: to stderr, so that stdout holds only the result."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def print_result(text: str) -> None:
    """The result of a command, in words."""
    if is_first_process():
        print(text, flush=True)


def print_json(value: Any) -> None:
    """The result of a command as the one JSON object on stdout; numbers that are not finite become null."""
    if is_first_process():
        print(json.dumps(finite(value), ensure_ascii=False, default=str), flush=True)


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
            self._bar.set_postfix_str(extra, refresh=False)
            self._bar.update(done - self._bar.n)
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
    if as_json:
        print_json({**(summary or {}), "error": {"kind": kind, "message": message, "hint": hint}})
        return
    print(f"error: {message}" + (f"\nhint:  {hint}" if hint else ""), file=sys.stderr, flush=True)


def report_expected(error: MirasolError, *, as_json: bool) -> int:
    """Report a failure that has a class of its own; returns its exit code."""
    if error.kind != "stopped":  # in the further processes of a run: the first one has told why
        report_error(error.kind, error.message, error.hint, as_json=as_json, summary=error.summary)
    return error.exit_code


def environment_problem(error: Exception) -> EnvironmentProblem | None:
    """What is the machine's fault and not ours: a full disk, a forbidden file, too little memory."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return disk_problem(error, Path(os.fsdecode(error.filename or "a temporary file")))
    if isinstance(error, PermissionError) and error.filename:
        return EnvironmentProblem(f"no permission for '{os.fsdecode(error.filename)}'", "check the permissions of the file and its folder")
    if isinstance(error, MemoryError):
        return EnvironmentProblem("out of memory", "lower train.batch_clips, eval.batch_clips or --workers")
    return None


def report_bug(error: Exception, *, as_json: bool) -> int:
    """Report a failure nobody foresaw: the traceback goes to a file that one line names. Returns exit code 1."""
    text = "".join(traceback.format_exception(error))
    where = f"the traceback is in '{_save_traceback(text)}'"
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    report_error("bug", f"unexpected {message}; {where}", "this is a bug of ours: please report it with that file", as_json=as_json)
    return 1


def _save_traceback(text: str) -> Path:
    handle, name = tempfile.mkstemp(prefix=time.strftime("mirasol-%Y%m%d-%H%M%S-"), suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


# ------------------------------------------------------------------------------------------------ results in words


def metrics_table(results: dict[str, Any]) -> str:
    """The result of `eval` for a reader: one line per metric, with its interval where there is one, and per type."""
    intervals = results.get("intervals") or {}
    lines = [f"{results['dataset']} {results['split']}: {results['n']} questions, {results['missing']} about missing clips"]
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
            lines.append(f"  {'type ' + (kind or 'not given'):28} {exact:.4f}  of {scores['n']}")
    for group, scores in (results.get("groups") or {}).items():
        lines.append(f"  {'group ' + group:28} {scores['exact_match']:.4f}  of {scores['n']}")
    for control, scores in (results.get("controls") or {}).items():
        if control != "none" and "exact_match" in scores:
            follows = scores.get("follows_media")
            text = f"  follows the media shown in {follows['follows']} of {follows['n']}" if follows else ""
            lines.append(f"  {'control ' + control:28} {scores['exact_match']:.4f}{text}")
    return "\n".join([*lines, *_controls_by_type(results.get("controls") or {})])


def _controls_by_type(controls: dict[str, Any]) -> list[str]:
    """Rows of question types, columns of controls: what each type rests on."""
    by_type = {name: scores["by_type"] for name, scores in controls.items() if scores.get("by_type")}
    kinds = by_type.get("none", {})
    if len(kinds) < 2:
        return []
    head = "".join(f"{'everything' if name == 'none' else name:>16}" for name in by_type)
    body = [f"  {kind or 'not given':14}" + "".join(f"{scores[kind]:16.4f}" for scores in by_type.values()) for kind in kinds]
    return [f"  {'exact match':14}{head}", *body]
