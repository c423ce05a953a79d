"""What every command says and how it ends: talk on stderr, one result on stdout, errors in one form, exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
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


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """A callback for (done, total): a bar on a terminal, a plain line now and then elsewhere."""
    bar: Any = None
    said = time.monotonic()

    def show(done: int, total: int, /) -> None:
        nonlocal bar, said
        if sys.stderr.isatty() and is_first_process():
            if bar is None:
                from tqdm import tqdm

                bar = tqdm(total=total, unit=unit, file=sys.stderr, dynamic_ncols=True)
            bar.update(done - bar.n)
        elif time.monotonic() - said >= PLAIN_EVERY_S:
            said = time.monotonic()
            say(f"{done} of {total} {unit}s")

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


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
