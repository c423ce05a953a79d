"""What `prepare` has to do for one split: which clips, from which files, into which shards, and what is there already."""

from __future__ import annotations

import hashlib
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mirasol_cli.datasets.example import Candidate, ClipSpan, Split
from mirasol_cli.datasets.resolver import Found, VideoIndex
from mirasol_cli.datasets.row_tables import ClipTable
from mirasol_cli.errors import EnvironmentProblem, ShardError, UsageError
from mirasol_cli.files import sha256_of
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.sample import bytes_per_clip
from mirasol_cli.shards.index import (
    CLIPS,
    FAILURES,
    INDEX,
    ClipFailure,
    ShardRecord,
    SplitIndex,
    check_geometry,
    clips_per_shard,
    views_of,
)
from mirasol_cli.shards.lines import read_lines
from mirasol_cli.shards.reader import clip_columns
from mirasol_cli.shards.writer import ShardSlot

Candidates = Callable[[ClipSpan], Sequence[str | Candidate]]


@dataclass(frozen=True)
class Origin:
    """Which manifest texts come from; both fields are empty for a data set."""

    manifest: str = ""
    place: str = ""

    @staticmethod
    def of(manifest: Path | None, out: Path | None) -> Origin:
        """`out`: the folder that is named after the manifest; None: the user named it, and means this manifest by it."""
        if manifest is None:
            return Origin()
        if out is None:
            return Origin(manifest.name)
        seen_from_shards = Path(os.path.relpath(manifest.resolve(), out.resolve())).as_posix()
        return Origin(manifest.name, hashlib.sha256(os.fsencode(seen_from_shards)).hexdigest()[:16])

    def fits(self, other: Origin) -> bool:
        """Whether both may be the same manifest."""
        return self.manifest == other.manifest and (not self.place or not other.place or self.place == other.place)


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How sources are decoded; small enough to be sent to another machine."""

    workers: int
    keep_truncated: bool = False
    allow_audio_only: bool = False


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """All that is needed to write one shard, here or on another machine that sees the same folders."""

    slot: ShardSlot
    root: Path
    sources: tuple[Found | None, ...]  # per clip of the slot; None: missing
    given_up: tuple[ClipFailure, ...]  # failed before, and not to be tried again
    options: DecodeOptions


@dataclass(kw_only=True)
class SplitPlan:
    """One split of one run."""

    folder: Path
    root: Path
    geometry: ClipGeometry
    views: int
    splits: list[Split]  # the tasks of this run
    clips: ClipTable  # of all tasks ever prepared here; only appended to
    expected: np.ndarray  # bool, the clips of this run
    sources: dict[int, Found]  # of the clips that have a file
    records: dict[int, ShardRecord]  # finished shards
    earlier: dict[int, ShardRecord]  # what is known of shards that have to be written again
    index: SplitIndex | None  # of an earlier run
    duplicates: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outside: tuple[str, ...] = ()  # links that lead out of the root; they are not followed
    unreadable: tuple[str, ...] = ()  # folders below the root without permission
    written: bool = False  # a shard was written in this run

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def shards(self) -> int:
        return -(-len(self.clips) // clips_per_shard(self.geometry))

    @property
    def to_do(self) -> list[int]:
        return [number for number in range(self.shards) if number not in self.records]

    def part(self, part: tuple[int, int]) -> list[int]:
        """The shards to do of part (I, N)."""
        return [number for number in self.to_do if number % part[1] == part[0]]

    def slot(self, number: int) -> ShardSlot:
        n = clips_per_shard(self.geometry)
        clips = self.clips[number * n : (number + 1) * n]
        return ShardSlot(folder=self.folder, number=number, clips=clips, geometry=self.geometry, views=self.views)

    def work(self, number: int, options: DecodeOptions, *, retry_failed: bool) -> ShardWork:
        slot = self.slot(number)
        sources = tuple(self.sources.get(slot.first + position) for position in range(len(slot.clips)))
        earlier = self.earlier.get(number)
        given_up = tuple(earlier.failed) if earlier and not retry_failed else ()
        return ShardWork(slot=slot, root=self.root, sources=sources, given_up=given_up, options=options)

    def clips_to_decode(self, *, retry_failed: bool, part: tuple[int, int] = (0, 1)) -> list[int]:
        """Clips with a file of which no row can be taken over (as far as the records tell) and that were not given up."""
        clips = []
        for number in self.part(part):
            slot, earlier = self.slot(number), self.earlier.get(number)
            done = set(earlier.kept) if earlier and (self.folder / earlier.name).exists() else set()
            if earlier and not retry_failed:
                done |= {failure.clip for failure in earlier.failed}
            numbers = range(slot.first, slot.first + len(slot.clips))
            clips += [clip for clip in numbers if clip not in done and clip in self.sources]
        return clips


class PlannedWorks(Sequence[ShardWork]):
    """The works of some shards, each put together when it is asked for: together they would hold every clip of the plans."""

    def __init__(self, plans: Iterable[SplitPlan], part: tuple[int, int], options: DecodeOptions, *, retry_failed: bool):
        self._shards = [(plan, number) for plan in plans for number in plan.part(part)]
        self._options, self._retry_failed = options, retry_failed

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        plan, number = self._shards[place]
        return plan.work(number, self._options, retry_failed=self._retry_failed)


def plan_split(
    folder: Path,
    splits: Sequence[Split],
    geometry: ClipGeometry,
    videos: VideoIndex,
    candidates: Candidates,
    *,
    retry_failed: bool,
    repair: bool,
) -> SplitPlan:
    """Compare what the annotation expects with what lies in `folder`. Reads, but writes nothing.

    Raises:
        ShardError: what lies there is damaged (unless `repair`), or was made with another geometry.
    """
    index = _read_index(folder, geometry, repair)
    clips = _known_clips(folder, index, repair)
    wanted = array("q", (clips.put(clip) for split in splits for clip in split.clips))
    expected = np.zeros(len(clips), bool)
    expected[np.frombuffer(wanted, np.int64)] = True
    duplicates_before = set(videos.duplicates)
    located = ((number, videos.locate([_candidate(name) for name in candidates(clip)])) for number, clip in enumerate(clips))
    sources = {number: found for number, found in located if found is not None}
    plan = SplitPlan(
        folder=folder, root=videos.root, geometry=geometry, views=views_of(folder.name, geometry), splits=list(splits), clips=clips,
        expected=expected, sources=sources, records={}, earlier={}, index=index,
        duplicates={name: paths for name, paths in videos.duplicates.items() if name not in duplicates_before},
        outside=tuple(sorted(videos.outside)), unreadable=tuple(sorted(videos.unreadable)),
    )  # fmt: skip
    known = _known_records(folder, index, repair)
    for number in range(plan.shards):
        _judge_shard(plan, number, known.get(number), retry_failed, repair)
    return plan


def _candidate(name: str | Candidate) -> Candidate:
    return name if isinstance(name, Candidate) else Candidate(name)


def _read_index(folder: Path, geometry: ClipGeometry, repair: bool) -> SplitIndex | None:
    if not (folder / INDEX).exists():
        return None
    try:
        index = SplitIndex.read(folder / INDEX)
    except ShardError:
        if repair:
            return None
        raise
    check_geometry(geometry, index.geometry, folder / INDEX)
    return index


def _known_clips(folder: Path, index: SplitIndex | None, repair: bool) -> ClipTable:
    if index is None:
        return ClipTable()
    try:
        rows = read_lines(folder / CLIPS, index.files[CLIPS])
        return ClipTable(ClipSpan(video=row["video"], start_s=row["start_s"], end_s=row["end_s"]) for row in rows)
    except ShardError:
        if repair:
            return ClipTable()
        raise


def _known_records(folder: Path, index: SplitIndex | None, repair: bool) -> dict[int, ShardRecord]:
    """What the index and its columns tell of each shard."""
    if index is None:
        return {}
    if index.inline:
        return {record.number: record for record in index.inline}
    try:
        columns, failures = clip_columns(folder, index), _failures(folder, index)
    except ShardError:
        if repair:  # the shards themselves tell what they hold
            return {}
        raise
    first, records = 0, {}
    for entry in index.shards:
        records[entry.number] = columns.record(entry, first, failures)
        first += entry.clips
    return records


def _failures(folder: Path, index: SplitIndex) -> dict[int, ClipFailure]:
    rows = read_lines(folder / FAILURES, index.files[FAILURES])
    return {row["clip"]: ClipFailure(**row) for row in rows}


def _judge_shard(plan: SplitPlan, number: int, known: ShardRecord | None, retry_failed: bool, repair: bool) -> None:
    """Put the shard's record among the finished ones, or among those that have to be written again.

    `known`: what the index tells of it; a record beside the shard is newer.
    """
    slot = plan.slot(number)
    record = slot.read_record(repair=repair) or known
    if record is None:
        return
    plan.earlier[number] = record
    whole = record.clips_digest == slot.digest and _size(slot.path) == record.bytes
    found_now = any(clip in plan.sources for clip in record.missing)
    if not whole or found_now or (retry_failed and record.failed):
        return
    if repair and record.bytes and sha256_of(slot.path) != record.sha256:
        return
    plan.records[number] = record


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_existing(out: Path, geometry: ClipGeometry, *, repair: bool) -> None:
    """Raises ShardError if any split that lies in `out` was prepared with another geometry, or its index is damaged."""
    for path, index in _indexes(out, repair):
        check_geometry(geometry, index.geometry, path)


def check_texts(out: Path, found: Sequence[Split], dataset: str, origin: Origin, *, repair: bool) -> None:
    """Raises ShardError if texts that lie in `out` would be written over by those of another manifest or data set."""
    tasks = {split.task for split in found}
    for _, index in _indexes(out, repair):
        for task, entry in index.tasks.items():
            theirs = Origin(entry.manifest, entry.place)
            if task not in tasks or (entry.dataset == dataset and theirs.fits(origin)):
                continue
            first = f"the manifest '{theirs.manifest}'" if theirs.manifest else entry.dataset
            if theirs.manifest and theirs.manifest == origin.manifest:
                raise ShardError(
                    f"'{out}' holds the texts of another manifest '{theirs.manifest}', which is in another folder",
                    f"give this one a folder of its own with --out; if it is the same one and was moved, say so with --out {out}",
                )
            second = f"the manifest '{origin.manifest}'" if origin.manifest else dataset
            raise ShardError(f"'{out}' holds the texts of {first}, not of {second}", "give this one a folder of its own with --out")


def _indexes(out: Path, repair: bool) -> Iterator[tuple[Path, SplitIndex]]:
    """(file, index) of every split that lies in `out`. Raises ShardError for a damaged one, unless it is to be repaired."""
    for path in sorted(out.glob(f"*/{INDEX}")):
        try:
            yield path, SplitIndex.read(path)
        except ShardError:
            if not repair:
                raise


def check_disk(out: Path, needed: int) -> None:
    """Raises EnvironmentProblem if the disk of `out` has less than `needed` bytes free."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise EnvironmentProblem(
            f"the shards need {needed:,} bytes, and the disk of '{out}' has {free:,} free",
            "free some space, give another disk with --out, or make clips smaller (clip.frames, clip.size)",
        )


def bytes_needed(plans: Iterable[SplitPlan], *, retry_failed: bool, part: tuple[int, int] = (0, 1)) -> int:
    """Bytes that the clips to decode take, and one more shard while an old one is replaced."""
    decoded = replaced = 0
    for plan in plans:
        decoded += len(plan.clips_to_decode(retry_failed=retry_failed, part=part)) * plan.views * bytes_per_clip(plan.geometry)
        replaced = max([replaced, *(plan.earlier[number].bytes for number in plan.part(part) if number in plan.earlier)])
    return decoded + replaced


def group_by_split(splits: Iterable[Split], wanted: Sequence[str]) -> dict[str, list[Split]]:
    """The tasks of each wanted split (none named: of all). Raises UsageError for a split that is not there."""
    tasks: dict[str, list[Split]] = {}
    for split in splits:
        tasks.setdefault(split.name, []).append(split)
    for name in wanted:
        if name not in tasks:
            raise UsageError(f"unknown split '{name}'", f"the annotations have {', '.join(tasks) or 'none'}")
    return {name: tasks[name] for name in tasks if not wanted or name in wanted}


def take_first(splits: Sequence[Split], limit: int | None) -> list[Split]:
    """The splits with only the first `limit` clips, and the texts about those."""
    if limit is None:
        return list(splits)
    short = []
    for split in splits:
        clips = split.clips[:limit]
        keys = {clip.key for clip in clips}
        short.append(replace(split, clips=clips, texts=tuple(text for text in split.texts if text.clip.key in keys)))
    return short


def part_of(part: str | None) -> tuple[int, int] | None:
    """(I, N) of `--part I/N`. Raises UsageError if it is not 0 <= I < N."""
    if part is None:
        return None
    first, slash, second = part.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and int(first) < int(second):
        return int(first), int(second)
    raise UsageError(f"--part {part}: expected I/N with 0 <= I < N, such as 0/4", "part I takes the shards I, I + N, I + 2 N, ...")


def text_rows(split: Split, clips: ClipTable) -> Iterator[dict]:
    """The lines of `<task>.jsonl`."""
    numbered = ((text, clips.number_of(text.clip.key)) for text in split.texts)
    return (text.to_json(number) for text, number in numbered if number is not None)
