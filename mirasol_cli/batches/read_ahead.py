"""Batches made ahead of time on one background thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Calls `make(step)` for consecutive steps on one background thread; iterating yields the results in order.

    An exception of `make` is raised at the step it belongs to. `waited_s` sums the time the consumer stood still.
    """

    def __init__(self, make: Callable[[int], Item], steps: range, ahead: int = 2):
        self.waited_s = 0.0
        self._steps = steps
        self._queue: Queue[tuple[Item | None, BaseException | None]] = Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make,), name="read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead[Item]:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        while True:  # make room, so that a waiting thread sees the flag
            try:
                self._queue.get_nowait()
            except Empty:
                break
        self._thread.join(timeout=10)

    def __iter__(self) -> Iterator[Item]:
        for _ in self._steps:
            start = time.perf_counter()
            item, error = self._queue.get()
            self.waited_s += time.perf_counter() - start
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    def _work(self, make: Callable[[int], Item]) -> None:
        for step in self._steps:
            try:
                result: tuple[Item | None, BaseException | None] = (make(step), None)
            except BaseException as error:
                result = (None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(result, timeout=0.1)
                    break
                except Full:
                    continue
            if self._stop.is_set() or result[1] is not None:
                return
