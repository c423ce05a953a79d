"""The child process that decodes: one file at a time, asked and answered over a socket (`decode_pool` is the other end).

A decoder may crash, hang or ask for all memory; here that costs one file. Messages to the parent are tuples:
("ready",), ("broken", text), ("stage", name), ("clip", sample or MediaError), ("info", MediaInfo), ("failed", MediaError), ("done",).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry

MEMORY_LIMIT = "memory limit"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the parent asks for: clips of one file, or (`requests` is None) its `MediaInfo`."""

    path: str
    geometry: ClipGeometry
    requests: tuple[Any, ...] | None
    options: dict[str, bool]


def serve(connection: Connection, work: Callable[[Job, Callable[[str], None]], Iterator[tuple]]) -> None:
    """Answer jobs until the parent sends None, closes the connection, or memory ran out (a fresh process is better then)."""
    connection.send(("ready",))
    while (job := connection.recv()) is not None:
        try:
            for answer in work(job, lambda stage: connection.send(("stage", stage))):
                connection.send(answer)
            connection.send(("done",))
            gc.collect()  # decoded frames hang in reference cycles; collected at leisure, they pile up to 100 MB
        except MediaError as error:
            connection.send(("failed", error))
        except Exception as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                connection.send(("failed", MediaError(MEMORY_LIMIT, "the file asks for more memory than a decoder may take")))
                return
            connection.send(("failed", MediaError(f"{type(error).__name__}: {error}"[:300])))


def run(arguments: list[str], load: Callable[[], Callable[[Job, Callable[[str], None]], Iterator[tuple]]]) -> None:
    """Serve on the inherited socket; `arguments` are its number, the parent's process id and the memory limit in bytes."""
    socket_number, parent, memory_limit = (int(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    connection = Connection(socket_number)
    try:
        try:
            work = load()
        except Exception as error:
            connection.send(("broken", f"{type(error).__name__}: {error}"))
            return
        limit_memory(memory_limit)
        serve(connection, work)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone
        pass


def limit_memory(limit: int) -> None:
    """Let this process take `limit` bytes beyond what it holds now: an allocation above fails instead of filling the machine.

    RLIMIT_DATA counts private writable memory, not mapped libraries, so that a large torch does not use up the limit.
    """
    try:
        import resource

        with open("/proc/self/statm") as file:
            held = int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_DATA, (held + limit, held + limit))
    except (ImportError, OSError, ValueError):  # not Linux: the time limit is all there is
        pass


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _load() -> Callable[[Job, Callable[[str], None]], Iterator[tuple]]:
    """The real work. Its imports take seconds and happen once per process."""
    import torch

    from mirasol_cli.media.clip import clip_samples
    from mirasol_cli.media.decode import decode_clips
    from mirasol_cli.media.probe import probe

    torch.set_num_threads(1)
    gc.freeze()  # what is imported is here to stay: a collection after every job need not look through it

    def work(job: Job, progress: Callable[[str], None]) -> Iterator[tuple]:
        if job.requests is None:
            yield "info", probe(job.path, allow_audio_only=job.options.get("allow_audio_only", False))
            return
        clips = decode_clips(job.path, job.requests, job.geometry, progress=progress, **job.options)
        for sample in clip_samples(clips, job.geometry):
            yield "clip", sample

    return work


if __name__ == "__main__":
    run(sys.argv[1:], _load)
    os._exit(0)  # taking decoders and torch down in order takes up to a second, and `ask` waits for it
