"""How a command ends: errors in one form with their exit codes, and the figures of `eval` in words."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from mirasol_cli.errors import EnvironmentProblem, MirasolError
from mirasol_cli.files import disk_problem
from mirasol_cli.runtime.console import is_first_process, print_json, tell, unwritable

# ------------------------------------------------------------------------------------------------ errors


def report_error(kind: str, message: str, hint: str | None, *, as_json: bool, summary: dict[str, Any] | None = None) -> None:
    """One error in its one form: a line (and a hint) on stderr, or a JSON object on stdout, after what was reached before it."""
    if as_json and sys.stdout not in unwritable:
        print_json({**(summary or {}), "error": {"kind": kind, "message": message, "hint": hint}})
        return
    tell(f"error: {message}" + (f"\nhint:  {hint}" if hint else ""))


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
        return EnvironmentProblem("out of memory", "lower train.global_batch_size, eval.batch_size or --workers")
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
        parts.append(f"{results['missing']} with missing clips")
    if results.get("unanswered"):
        parts.append(f"{results['unanswered']} without a prediction")
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
        heads = [("", "all") if name == "none" else tuple(name.rpartition("-")[::2]) for name in part]  # in two lines: no-, audio
        upper = [f"{before}-" if before else "" for before, _ in heads]
        lines += ["", "  " + f"{'exact match':{NAME_WIDTH}}" + "".join(f"{word:>{FIGURE_WIDTH}}" for word in upper)]
        lines += ["  " + " " * NAME_WIDTH + "".join(f"{word:>{FIGURE_WIDTH}}" for _, word in heads)]
        for kind in kinds:
            name = _shortened(kind or "not given", NAME_WIDTH)
            lines.append(f"  {name:{NAME_WIDTH}}" + "".join(f"{by_type[control][kind]:{FIGURE_WIDTH}.4f}" for control in part))
    return lines


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
