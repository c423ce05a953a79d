"""Supervised decoding in long-lived child processes: a bad file fails alone."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mirasol_cli.errors import EnvironmentProblem, MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.decode_worker import MEMORY_LIMIT, Job
from mirasol_cli.media.sampling import ClipRequest

Result = list[Any]
"""One `ClipSample` or `MediaError` per request, in their order; for a probe the one `MediaInfo` or `MediaError`."""

TIME_LIMIT_S = 120.0
MEMORY_LIMIT_BYTES = 4 << 30
FILES_PER_WORKER = 300
"""Decoders leak: a worker is replaced after this many files."""
START_LIMIT_S = 300.0
WORKER_COMMAND = (sys.executable, "-P", "-m", "mirasol_cli.media.decode_worker")  # -P: never import from the current folder


def start_ahead() -> None:
    """Start one decoding process now, for the first pool that wants one: it then imports what it needs beside this process."""
    if not _started_ahead:
        _started_ahead.append(_Worker.start(WORKER_COMMAND, MEMORY_LIMIT_BYTES))


class DecodePool:
    """Child processes that decode files under a time and a memory limit. Results come in the order they are ready.

    Args:
        workers: number of child processes.
        geometry: how spans become tensors.
        time_limit_s: a file on which nothing goes forward for this long (no clip, no chunk of sound) is given up.
        memory_limit_bytes: what one child may take (enforced on Linux).
        keep_truncated: keep what was decoded of a file that ends early; the rest is masked.
        allow_audio_only: keep files without a picture; all of their frames are masked.

        with DecodePool(workers=2, geometry=geometry) as pool:
            pool.submit(job_id, path, [ClipRequest(start_s=10.0, end_s=20.0)])
            for job_id, samples in pool.results(): ...
    """

    def __init__(
        self,
        workers: int,
        geometry: ClipGeometry,
        time_limit_s: float = TIME_LIMIT_S,
        memory_limit_bytes: int = MEMORY_LIMIT_BYTES,
        *,
        keep_truncated: bool = False,
        allow_audio_only: bool = False,
        files_per_worker: int = FILES_PER_WORKER,
        command: Sequence[str] = WORKER_COMMAND,
    ):
        self.geometry, self.time_limit_s, self.memory_limit_bytes = geometry, time_limit_s, memory_limit_bytes
        self.options = {"keep_truncated": keep_truncated, "allow_audio_only": allow_audio_only}
        self.files_per_worker, self.command = files_per_worker, command
        self._size = max(1, workers)
        self._workers: list[_Worker] = []
        self._waiting: deque[_Task] = deque()

    def submit(self, job_id: Hashable, path: Path | str, requests: Sequence[ClipRequest] = (ClipRequest(),)) -> None:
        """Queue the clips of one file. Never blocks; work goes on while `results` is iterated."""
        self._waiting.append(_Task(job_id, str(path), tuple(requests), dict(self.options)))

    def submit_probe(self, job_id: Hashable, path: Path | str) -> None:
        """Queue the facts of one file: its result is `[MediaInfo]` or `[MediaError]`."""
        self._waiting.append(_Task(job_id, str(path), None, dict(self.options)))

    @property
    def pending(self) -> int:
        """Jobs submitted whose results were not taken yet."""
        return len(self._waiting) + sum(worker.task is not None for worker in self._workers)

    def results(self) -> Iterator[tuple[Hashable, Result]]:
        """(job id, result) of every submitted job, as they finish; jobs may be submitted while this is iterated.

        Raises:
            EnvironmentProblem: decoding processes cannot be started at all.
        """
        while self.pending:
            self._feed()
            busy = [worker for worker in self._workers if worker.task is not None]
            nearest = min(worker.deadline for worker in busy)
            wait([worker.connection for worker in busy], timeout=max(0.0, nearest - time.monotonic()))
            for worker in busy:
                if worker.connection.poll():  # asked here, not before: an answer may have come while the last result was used
                    finished = self._receive(worker)
                elif time.monotonic() >= worker.deadline:
                    finished = self._lost(worker, f"time limit of {self.time_limit_s:g} s")
                else:
                    continue
                if finished is not None:
                    self._feed()  # the next file is decoded while this result is used
                    yield finished.job_id, finished.result

    def close(self) -> None:
        """End all child processes; what was not finished is dropped."""
        for worker in self._workers:
            worker.stop(at_once=worker.task is not None)
        self._workers.clear()
        self._waiting.clear()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _feed(self) -> None:
        for worker in [worker for worker in self._workers if worker.task is None]:
            if worker.files >= self.files_per_worker:
                self._workers.remove(worker)
                worker.stop()
        while self._waiting:
            idle = [worker for worker in self._workers if worker.task is None]
            if not idle and len(self._workers) >= self._size:
                return
            if not idle:
                idle = [self._new_worker()]
                self._workers += idle
            idle[0].give(self._waiting.popleft(), self.geometry, self.time_limit_s)

    def _new_worker(self) -> _Worker:
        if _started_ahead and (self.command, self.memory_limit_bytes) == (WORKER_COMMAND, MEMORY_LIMIT_BYTES):
            return _started_ahead.pop()
        return _Worker.start(self.command, self.memory_limit_bytes)

    def _receive(self, worker: _Worker) -> _Task | None:
        """Take one message; the task, if that finished it."""
        task = worker.task
        if task is None:
            return None
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            return self._lost(worker, None)
        if kind == "broken":
            self.close()
            raise EnvironmentProblem(f"video decoding cannot start: {content[0]}", "run `mirasol doctor`")
        worker.started = True
        worker.deadline = time.monotonic() + self.time_limit_s
        if kind == "stage":
            task.stage = content[0]
        elif kind in ("clip", "info"):
            task.result.append(content[0])
        elif kind == "failed":
            error: MediaError = content[0]
            if error.reason == MEMORY_LIMIT:  # the child ends itself
                return self._lost(worker, MEMORY_LIMIT)
            return worker.finish(error)
        elif kind == "done":
            return worker.finish(None)
        return None

    def _lost(self, worker: _Worker, reason: str | None) -> _Task | None:
        """The worker died or must be killed. A file that decord was reading is tried once more, with PyAV alone."""
        task = worker.task
        self._workers.remove(worker)
        code = worker.stop(at_once=True, died=reason is None)
        if not worker.started:
            self.close()
            raise EnvironmentProblem(f"a decoding process ended while it started (code {code})", "run `mirasol doctor`")
        if task is None:
            return None
        if task.stage == "decord":
            task.stage, task.options["use_decord"] = "", False
            self._waiting.appendleft(task)
            return None
        return task.failed(MediaError(reason or _cause_of_death(code)))


def _cause_of_death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "decoder killed (signal 9; the machine is out of memory?)"
    if code is not None and code < 0:
        return f"decoder crashed (signal {-code})"
    return f"decoder ended (exit code {code})"


@dataclass
class _Task:
    job_id: Hashable
    path: str
    requests: tuple[ClipRequest, ...] | None  # None: a probe
    options: dict[str, bool]
    result: Result = field(default_factory=list)
    stage: str = ""

    def failed(self, error: MediaError) -> _Task:
        """What is still owed becomes `error`."""
        owed = (1 if self.requests is None else len(self.requests)) - len(self.result)
        self.result += [error] * owed
        return self


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    task: _Task | None = None
    deadline: float = math.inf
    files: int = 0
    started: bool = False

    @staticmethod
    def start(command: Sequence[str], memory_limit: int) -> _Worker:
        # A program of its own and not a `multiprocessing` child: those run the user's main script again.
        ours, theirs = socket.socketpair()
        package = str(Path(__file__).resolve().parents[2])
        search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid()), str(memory_limit)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(search)},
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,  # decoders write to them from C
            )  # fmt: skip
        return _Worker(process, Connection(ours.detach()))

    def give(self, task: _Task, geometry: ClipGeometry, time_limit_s: float) -> None:
        requests = None if task.requests is None else task.requests[len(task.result) :]
        self.task, self.files = task, self.files + 1
        self.deadline = time.monotonic() + (time_limit_s if self.started else max(START_LIMIT_S, time_limit_s))
        with contextlib.suppress(OSError):  # it died while idle: reading from it will tell
            self.connection.send(Job(path=task.path, geometry=geometry, requests=requests, options=task.options))

    def finish(self, error: MediaError | None) -> _Task | None:
        """The task is done; the worker is free."""
        task, self.task, self.deadline = self.task, None, math.inf
        return task.failed(error or MediaError("no clip was decoded")) if task is not None else None

    def stop(self, *, at_once: bool = False, died: bool = False) -> int | None:
        """End the process; its exit code (negative: a signal)."""
        if not at_once:
            with contextlib.suppress(OSError):
                self.connection.send(None)
        self.connection.close()
        try:
            code = self.process.wait(timeout=2.0 if died or not at_once else 0.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return code


_started_ahead: list[_Worker] = []
"""By `start_ahead`; one that no pool takes ends with this process."""
