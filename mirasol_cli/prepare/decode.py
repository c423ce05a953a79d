"""Decoding sources into shards: the one function that every engine calls.

A source is opened once per shard for all of its spans there. While a shard is written, the sources of the next are decoded.
"""

from __future__ import annotations

import errno
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mirasol_cli.datasets.resolver import Found, span_to_read, unpack
from mirasol_cli.errors import DataError, MediaError
from mirasol_cli.files import disk_problem
from mirasol_cli.media import valid_share
from mirasol_cli.media.decode_pool import DecodePool
from mirasol_cli.media.sampling import ClipRequest
from mirasol_cli.prepare.plan import ShardWork
from mirasol_cli.sample import AudioState
from mirasol_cli.shards.index import ShardRecord
from mirasol_cli.shards.writer import ShardDraft

OPEN_DRAFTS = 2
"""Shards filled at a time: the one that is finished next, and the one whose sources keep the workers busy meanwhile."""

NO_FRAME = MediaError(
    "no frame of it can be read: the video begins later, ends earlier or is damaged there",
    "play the file at that time, then fix the span or download the file again; --allow-audio-only keeps the audio",
    stage="decode",
)
NOTHING = MediaError("neither a frame nor audio can be read", "the file is empty or damaged: fetch it again", stage="decode")
Watch = Callable[[int, float], None]
"""Called after each source with its number of clips and their seconds of video."""


@dataclass(eq=False)
class ShardInProgress:
    """A shard on its way, and how many of its jobs are not done."""

    work: ShardWork
    draft: ShardDraft
    jobs: int = 0


@dataclass(eq=False)
class Job:
    """All open spans of one source in one shard."""

    filling: ShardInProgress
    source: Found
    positions: list[int] = field(default_factory=list)
    unpacked: Path | None = None  # where a tar member lies meanwhile
    probing: bool = False  # the answer that is waited for is the file's length, not its clips

    @property
    def path(self) -> Path:
        return self.unpacked or self.source.path


def write_shards(
    works: Iterable[ShardWork], pool: DecodePool, watch: Watch | None = None
) -> Generator[tuple[Path, ShardRecord], None, None]:
    """Write each shard and its record; yields (folder, record) as they are finished. A source that fails costs its own clips only.

    Memory: at most OPEN_DRAFTS shards that are filled, and one that is written, for which it is held twice.

    Raises EnvironmentProblem where the disk is full; shards that are finished stay.
    """
    with ExitStack() as scratch, ThreadPoolExecutor(1) as writer:
        decoding = _Decoding(works, pool, scratch, watch)
        writing: tuple[ShardInProgress, Future[ShardRecord]] | None = None
        for filling in decoding.filled():
            if writing is not None:
                yield writing[0].work.slot.folder, writing[1].result()
            writing = filling, writer.submit(filling.draft.write)
        if writing is not None:
            yield writing[0].work.slot.folder, writing[1].result()


class _Decoding:
    """Keeps the pool busy with the sources of the shards that are next, and puts the results where they belong."""

    def __init__(self, works: Iterable[ShardWork], pool: DecodePool, scratch: ExitStack, watch: Watch | None):
        self._works, self._pool, self._scratch, self._watch = iter(works), pool, scratch, watch
        self._unpacked: Path | None = None  # where tar members lie meanwhile; made when the first is needed
        self._results = pool.results()
        self._open: list[ShardInProgress] = []
        self._waiting: deque[Job] = deque()
        self._in_flight: dict[Hashable, Job] = {}
        self._tag = 0
        self._ahead = 2

    def filled(self) -> Iterator[ShardInProgress]:
        """The shards, each as soon as nothing of it is open any more."""
        self._feed()
        while self._open:
            ready = [filling for filling in self._open if not filling.jobs]
            for filling in ready:
                self._open.remove(filling)
                self._feed()
                yield filling
            if not ready:
                self._take_result()
                self._feed()

    def _feed(self) -> None:
        """Open the next shards and submit jobs, as long as there is room; a few jobs more than there are workers wait in the pool."""
        while True:
            while self._waiting and len(self._in_flight) < self._ahead:
                self._submit(self._waiting.popleft())
            if self._waiting or len(self._open) >= OPEN_DRAFTS or (work := next(self._works, None)) is None:
                return
            self._ahead = 2 * work.options.workers
            filling = open_shard_work(work)
            self._open.append(filling)
            jobs = jobs_of(filling)
            filling.jobs = len(jobs)
            self._waiting.extend(jobs)

    def _submit(self, job: Job) -> None:
        try:
            if job.source.member is not None:
                self._unpacked = self._unpacked or Path(self._scratch.enter_context(tempfile.TemporaryDirectory(prefix="mirasol-")))
                job.unpacked = unpack(job.source, self._unpacked)
        except (DataError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_problem(error, self._unpacked or Path(tempfile.gettempdir())) from error
            self._finish(job, [MediaError(str(error), "fetch the tar again", stage="unpack")] * len(job.positions))
            return
        job.probing = _length_matters(job)
        if job.probing:
            self._pool.submit_probe(self._tagged(job), job.path)
        else:
            self._pool.submit(self._tagged(job), job.path, requests_of(job, None))

    def _tagged(self, job: Job) -> int:
        """A new id under which the pool answers for this job."""
        self._tag += 1
        self._in_flight[self._tag] = job
        return self._tag

    def _take_result(self) -> None:
        tag, results = next(self._results)
        job = self._in_flight.pop(tag)
        if job.probing and not isinstance(results[0], MediaError):
            job.probing = False
            self._pool.submit(self._tagged(job), job.path, requests_of(job, results[0].seconds))
        else:
            self._finish(job, results)

    def _finish(self, job: Job, results: list[Any]) -> None:
        """Put a job's samples or failures into its shard."""
        draft, views, options, seconds = job.filling.draft, job.filling.work.slot.views, job.filling.work.options, 0.0
        if len(results) == 1 and isinstance(results[0], MediaError):
            results = results * (len(job.positions) * views)
        for k, position in enumerate(job.positions):
            samples = results[k * views : (k + 1) * views]
            error = next((sample for sample in samples if isinstance(sample, MediaError)), None)
            if error is None and not any(map(valid_share, samples)):
                if not options.allow_audio_only:
                    error = NO_FRAME
                elif all(sample["audio_state"] == AudioState.NONE for sample in samples):
                    error = NOTHING
            if error is None:
                draft.add(position, samples)
                seconds += float(samples[0]["span"][1] - samples[0]["span"][0])
            else:
                draft.fail(position, error.stage, without_paths(error.reason, job), error.hint)
        if job.unpacked is not None:
            job.unpacked.unlink(missing_ok=True)
        job.filling.jobs -= 1
        if self._watch:
            self._watch(len(job.positions), seconds)


def open_shard_work(work: ShardWork) -> ShardInProgress:
    """A draft that already holds what needs no decoding: intact rows of an earlier shard, old failures, missing files."""
    draft = ShardDraft(work.slot)
    draft.reuse_rows()
    unknown = set(draft.open_positions)
    for failure in work.given_up:
        position = failure.clip - work.slot.first
        if position in unknown:
            draft.fail(position, failure.stage, failure.reason, failure.hint)
    for position in draft.open_positions:
        if work.sources[position] is None:
            draft.mark_missing(position)
    return ShardInProgress(work, draft)


def jobs_of(filling: ShardInProgress) -> list[Job]:
    """One job per source."""
    jobs: dict[tuple, Job] = {}
    for position in filling.draft.open_positions:
        source = filling.work.sources[position]
        if source is not None:
            jobs.setdefault((source.path, source.member, source.whole), Job(filling, source)).positions.append(position)
    return list(jobs.values())


def _length_matters(job: Job) -> bool:
    """Whether the file may hold the clip or its source, which its length decides."""
    return job.source.whole is None and any(job.filling.work.slot.clips[position].start_s is not None for position in job.positions)


def requests_of(job: Job, file_seconds: float | None) -> list[ClipRequest]:
    """What is to be decoded for a job: clip by clip, view by view."""
    slot, requests = job.filling.work.slot, []
    for position in job.positions:
        clip = slot.clips[position]
        start_s, end_s = span_to_read(clip, job.source.whole, file_seconds) or (None, None)
        requests += [ClipRequest(key=clip.key, start_s=start_s, end_s=end_s, view=view) for view in range(slot.views)]
    return requests


def without_paths(text: str, job: Job) -> str:
    """No absolute path goes into a shard folder: it would differ from machine to machine."""
    if job.unpacked is not None:
        text = text.replace(str(job.unpacked), str(job.source.member))
    return text.replace(f"{job.filling.work.root}/", "")
