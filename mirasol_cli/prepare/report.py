"""What `prepare` reports and writes: the index and lists of a split, counts, progress, the table at the end."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from mirasol_cli.prepare.plan import Origin, SplitPlan, text_rows
from mirasol_cli.runtime.console import ProgressLine
from mirasol_cli.sample import AudioState
from mirasol_cli.shards.columns import ClipColumns, write_texts
from mirasol_cli.shards.index import (
    CLIP_COLUMNS,
    CLIPS,
    FAILURES,
    INCOMPLETE,
    INDEX,
    PROBLEMS,
    ShardRecord,
    SplitIndex,
    TaskEntry,
    clips_per_shard,
    text_columns_name,
    texts_name,
)
from mirasol_cli.shards.lines import write_lines

Say = Callable[[str], None]
SAID = 8
"""Notes, and kinds of failures, that are said of a split; the files hold all."""


# ------------------------------------------------------------------------------------------------ files of a split


def finish_split(plan: SplitPlan, dataset: ModuleType, origin: Origin) -> None:
    """Everything of a split but its media; the index last. Needs a record of every shard. Files whose content stays are left alone."""
    records = [plan.records[number] for number in range(plan.shards)]
    rows = ({"key": clip.key, "video": clip.video, "start_s": clip.start_s, "end_s": clip.end_s} for clip in plan.clips)
    lines = write_lines(plan.folder / CLIPS, rows)
    columns = ClipColumns.of(records, len(plan.clips), plan.views, lines)
    files = {CLIPS: lines.sha256, CLIP_COLUMNS: columns.write(plan.folder / CLIP_COLUMNS)}
    tasks = dict(plan.index.tasks) if plan.index else {}
    for split in plan.splits:
        sha256, text_columns = write_texts(plan.folder / texts_name(split.task), text_rows(split, plan.clips))
        tasks[split.task] = TaskEntry(
            columns=text_columns.write(plan.folder / text_columns_name(split.task)),
            dataset=dataset.NAME,
            licence=dataset.LICENCE,
            texts=len(split.texts),
            sha256=sha256,
            labels=list(split.labels),
            notes=list(split.notes),
            manifest=origin.manifest,
            place=origin.place or (tasks[split.task].place if split.task in tasks else ""),
        )
    failures = (
        {"video": f.video, "stage": f.stage, "reason": f.reason, "hint": f.hint, "clip": f.clip, "key": f.key}
        for r in records
        for f in r.failed
    )
    files[FAILURES] = write_lines(plan.folder / FAILURES, failures).sha256
    incomplete = (
        {"video": plan.clips[clip].video, "missing": share, "clip": clip, "key": plan.clips[clip].key}
        for r in records
        for clip, share in r.incomplete
        if share < 1  # a clip of sound alone lacks none; `problems` has those
    )
    files[INCOMPLETE] = write_lines(plan.folder / INCOMPLETE, incomplete).sha256
    files[PROBLEMS] = write_lines(plan.folder / PROBLEMS, [problems(plan, records)]).sha256
    made_by = plan.index.versions if plan.index and not plan.written else versions()
    index = SplitIndex(
        split=plan.name, geometry=plan.geometry, views=plan.views, clips_per_shard=clips_per_shard(plan.geometry), versions=made_by,
        counts=counts(records, None), tasks={task: tasks[task] for task in sorted(tasks)}, files=files,
        shards=[record.entry for record in records],
    )  # fmt: skip
    if index != plan.index:
        index.write(plan.folder / INDEX)
    for number in range(plan.shards):
        plan.slot(number).record_path.unlink(missing_ok=True)


def problems(plan: SplitPlan, records: Sequence[ShardRecord]) -> dict[str, Any]:
    """The clips, by key, that deserve a look; names that several files fit (the first was taken); what was not looked into."""

    def keys(clips: Iterable[int]) -> list[str]:
        return [plan.clips[clip].key for clip in clips]

    def with_audio_state(state: AudioState) -> list[str]:
        return keys(clip for r in records for clip, audio in zip(r.kept, r.audio, strict=True) if audio == state)

    return {
        "missing": keys(clip for record in records for clip in record.missing),
        "failed": keys(failure.clip for record in records for failure in record.failed),
        "without_audio": with_audio_state(AudioState.NONE),
        "silent": with_audio_state(AudioState.SILENT),
        "short": keys(clip for record in records for clip in record.short),
        "without_video": keys(clip for record in records for clip, share in record.incomplete if share == 1),
        "duplicates": {name: list(paths) for name, paths in sorted(plan.duplicates.items())},
        "links_outside": list(plan.outside),
        "unreadable_folders": list(plan.unreadable),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of everything that may change the content of a shard."""
    found = {}
    for package in ("mirasol", "av", "decord", "decord2", "numpy", "torch", "torchaudio"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


# ------------------------------------------------------------------------------------------------ counts


def counts(records: Iterable[ShardRecord], only: np.ndarray | None) -> dict[str, Any]:
    """Counts over the clips of the shards that `only` (bool, by clip) picks; None: all of them."""

    def wanted(clip: int) -> bool:
        return only is None or bool(only[clip])

    kept = missing = failed = expected = size = short = incomplete = without_video = 0
    seconds, audio = 0.0, Counter({state.word: 0 for state in AudioState})
    reasons: Counter[str] = Counter()
    for record in records:
        size += record.bytes
        for clip, state, length in zip(record.kept, record.audio, record.seconds, strict=True):
            if wanted(clip):
                kept += 1
                audio[AudioState(state).word] += 1
                seconds += length
        missing += sum(map(wanted, record.missing))
        short += sum(map(wanted, record.short))
        incomplete += sum(wanted(clip) and share < 1 for clip, share in record.incomplete)
        without_video += sum(wanted(clip) and share == 1 for clip, share in record.incomplete)
        reasons.update(kind_of_reason(failure.reason) for failure in record.failed if wanted(failure.clip))
    failed = reasons.total()
    expected = kept + missing + failed
    share = round(kept / expected, 4) if expected else 0.0
    return {
        "expected": expected, "kept": kept, "failed": failed, "missing": missing, "audio": dict(audio), "short": short,
        "incomplete": incomplete, "without_video": without_video,
        "share": share, "seconds": round(seconds, 3), "bytes": size, "reasons": dict(reasons.most_common()),
    }  # fmt: skip


def kind_of_reason(reason: str) -> str:
    """A reason without its numbers and names, so that equal ones can be counted."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"'[^']*'", "'...'", reason))


def split_summary(plan: SplitPlan) -> dict[str, Any]:
    """The `--json` fields of one split: of the clips and texts of this run, as far as their shards are written."""
    found = counts(plan.records.values(), plan.expected)
    questions = sum(len(split.texts) for split in plan.splits)
    first = {key: found.pop(key) for key in ("expected", "kept", "failed", "missing")}
    return {
        **first, "questions": questions, "tasks": {split.task: len(split.texts) for split in plan.splits}, **found,
        "duplicates": len(plan.duplicates), "notes": [note for split in plan.splits for note in split.notes],
    }  # fmt: skip


def say_table(splits: dict[str, dict[str, Any]], say: Say, terminal: bool | None = None) -> None:
    """The counts of every split: a table on a terminal, a line for each split elsewhere. Then what deserves a look."""
    columns = ("split", "expected", "kept", "failed", "missing", "questions", "no audio", "silent", "audible", "present", "hours", "MB")
    rows = [
        (name, c["expected"], c["kept"], c["failed"], c["missing"], c["questions"], *(c["audio"][state.word] for state in AudioState),
         f"{c['share']:.1%}", f"{c['seconds'] / 3600:.2f}", f"{c['bytes'] / 1e6:.0f}")
        for name, c in splits.items()
    ]  # fmt: skip
    table = [columns, *(tuple(map(str, row)) for row in rows)]
    for line in _drawn(table) if (sys.stderr.isatty() if terminal is None else terminal) else _aligned(table):
        say(line)
    for name, c in splits.items():
        reasons = [f"{number} failed: {reason}" for reason, number in c["reasons"].items()]
        _say_some(name, reasons, f"kinds of failures, all in {name}/{FAILURES}", say)
        if c["incomplete"]:
            say(f"  {name}: {c['incomplete']} kept with frames missing, listed in {name}/{INCOMPLETE}")
        if 0 < c["without_video"] < c["kept"]:  # of a set of sound alone there is nothing to say
            say(f"  {name}: {c['without_video']} kept with audio only, listed in {name}/{PROBLEMS}")
        _say_some(name, c["notes"], f"notes, all in {name}/{INDEX}", say)
        if c["duplicates"]:
            say(f"  {name}: {c['duplicates']} names match several files; the choice is listed in {name}/{PROBLEMS}")


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(width) if k == 0 else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]


def _drawn(table: Sequence[Sequence[str]]) -> list[str]:
    """A column for each split: there are few of them, and twelve columns do not fit into 80 characters."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.ROUNDED)
    for k, row in enumerate(table):
        drawn.add_column(Text(row[0]), justify="right" if k else "left")  # Text: the name of a split is never read as markup
    for cells in list(zip(*table, strict=True))[1:]:
        drawn.add_row(*map(Text, cells))
    console = Console(file=io.StringIO(), force_terminal=True, width=max(shutil.get_terminal_size().columns, 40))
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n").split("\n")


def _say_some(name: str, lines: Sequence[str], rest: str, say: Say) -> None:
    """The first lines; how many more there are, and where."""
    for line in lines[:SAID]:
        say(f"  {name}: {line}")
    if len(lines) > SAID:
        say(f"  {name}: {len(lines) - SAID} more {rest}")


# ------------------------------------------------------------------------------------------------ progress


class DecodingProgress:
    """Clips and hours of video that were decoded (a `prepare.decode.Watch`)."""

    def __init__(self, clips: int, say: Say, bar: bool | None = None):
        self._line = ProgressLine(clips, "clip", say, bar=bar)
        self._clips, self._seconds = 0, 0.0

    def __call__(self, clips: int, seconds: float) -> None:
        self._clips += clips
        self._seconds += seconds
        self._line.show(self._clips, f"{self._seconds / 3600:.2f} h of media")

    def close(self) -> None:
        self._line.close()
