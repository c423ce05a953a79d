"""One writer per folder: a run, an evaluation, shards. The lock says who writes, and its heartbeat that the writer still lives.

The lock is the file `.lock`, which is made only where there is none and holds host, process and start; its writer touches it every
few seconds. A writer that was killed leaves it behind, so the next one looks whether the heartbeat goes on: at once where the process
was on the same machine, else by waiting for it. Times are compared as the folder's file system gives them, not by two machines' clocks.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mirasol_cli.errors import EnvironmentProblem, UsageError
from mirasol_cli.files import disk_problem

LOCK = ".lock"
BEAT_S = 2.0
"""Seconds between two heartbeats."""
STALE_S = 20.0
"""OURS: a heartbeat that stands still for so long has stopped. A requeued job waits no longer than this."""


@dataclass(frozen=True)
class Writer:
    """Who holds a lock."""

    host: str
    pid: int
    started: str
    token: str

    @staticmethod
    def of_this_process() -> Writer:
        return Writer(platform.node(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"), uuid.uuid4().hex)

    @staticmethod
    def read(path: Path) -> Writer | None:
        """The writer that a lock file names; None where it is gone or was never finished."""
        try:
            return Writer(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


@dataclass(frozen=True)
class HeldLock:
    """A lock that this process has taken."""

    path: Path
    writer: Writer

    def check(self) -> None:
        """Raises EnvironmentProblem if another process has taken the lock over: this one was suspended, or cut off from the disk."""
        now = Writer.read(self.path)
        if now is not None and now != self.writer:
            raise EnvironmentProblem(
                f"'{self.path.parent}' was taken over by process {now.pid} on {now.host} at {now.started}, "
                "because the heartbeat of this one had stopped",
                "this process writes nothing more; the other one continues",
            )


def is_lock(name: str) -> bool:
    """Whether a file of this name belongs to the lock of its folder."""
    return name.startswith(LOCK)


@contextmanager
def folder_lock(folder: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[HeldLock]:
    """Hold the lock of `folder` while the block runs. The folder is made if there is none, and removed if nothing was put into it.

    Raises:
        UsageError: another process is writing there.
        EnvironmentProblem: nothing can be written there.
    """
    path, writer = folder / LOCK, Writer.of_this_process()
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        while not _create(path, writer):
            _wait_for_the_end_of(path, say)
    except OSError as error:
        raise disk_problem(error, path) from error
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, writer, stop), daemon=True)
    beating.start()
    try:
        yield HeldLock(path, writer)
    finally:
        stop.set()
        beating.join()
        if Writer.read(path) == writer:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty
            for part in made:
                part.rmdir()


def _create(path: Path, writer: Writer) -> bool:
    """Make the lock, and its folder if need be; False if there is one, or if the folder was just removed by another process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            json.dump(asdict(writer), file)
    except FileExistsError:
        if not path.parent.is_dir():
            raise
        return False
    except FileNotFoundError:
        return False
    return True


def _wait_for_the_end_of(path: Path, say: Callable[[str], None]) -> None:
    """Return when the lock is gone; remove it when its writer is. Raises UsageError once the writer is known to live."""
    first_beat, told = _beat_time(path), False
    while (age := _age(path)) is not None:
        writer = Writer.read(path)  # None while it is being made
        here = writer is not None and writer.host == platform.node() and writer.pid != os.getpid()  # containers restart with equal numbers
        gone = here and writer is not None and not _runs(writer.pid)
        if gone or age >= STALE_S:
            _remove(path, writer)
            return
        if writer is not None and (here or _beat_time(path) not in (first_beat, None)):
            raise UsageError(
                f"'{path.parent}' is in use by process {writer.pid} on {writer.host} since {writer.started}",
                "wait until it finishes, or stop it",
            )
        if writer is not None and not told:
            say(f"'{path.parent}' was in use by process {writer.pid} on {writer.host}; waiting to see whether it is still alive")
            told = True
        time.sleep(min(0.2, BEAT_S / 4))


def _remove(path: Path, writer: Writer | None) -> None:
    """Remove the lock of a writer that is gone, unless another process has done so and holds its own by now."""
    mine = path.with_name(f"{LOCK}.taken-over")
    try:
        mine.touch(exist_ok=False)  # of several processes that come here only one goes on at a time
    except FileExistsError:
        if (_age(mine) or 0) >= STALE_S:
            mine.unlink(missing_ok=True)
        time.sleep(min(0.2, BEAT_S / 4))
        return
    try:
        if Writer.read(path) == writer:
            path.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


def _beat(path: Path, writer: Writer, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with suppress(OSError):  # a file system that is away for a while
            if Writer.read(path) == writer:
                os.utime(path)


def _beat_time(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _age(path: Path) -> float | None:
    """Seconds since the last heartbeat, by the clock of the file system; None where there is no lock any more."""
    beat = _beat_time(path)
    if beat is None:
        return None
    try:
        with tempfile.NamedTemporaryFile(prefix=f"{LOCK}.", dir=path.parent) as now:
            return (os.stat(now.name).st_mtime_ns - beat) / 1e9
    except FileNotFoundError:  # its folder is gone as well
        return None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
