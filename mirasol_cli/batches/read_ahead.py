"""Batches made ahead of time on background threads, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Calls `make(step)` for consecutive steps on background threads, up to `ahead` steps early; iterating yields the results in order.

    An exception of `make` is raised at the step it belongs to. `waited_s` sums the time the consumer stood still.

    Args:
        threads: how many steps are made at a time.
        send: called by the consumer's thread with each result before it is yielded; with the next one before the present one is
            yielded, if that is ready. Copies to a device begin there.
    """

    def __init__(
        self, make: Callable[[int], Item], steps: range, *, ahead: int = 2, threads: int = 1, send: Callable[[Item], Item] | None = None
    ):
        self.waited_s = 0.0
        self._make, self._steps, self._ahead, self._send = make, iter(steps), ahead, send
        self._threads = ThreadPoolExecutor(min(threads, ahead), thread_name_prefix="read-ahead")
        self._making: deque[Future[Item]] = deque()

    def __enter__(self) -> ReadAhead[Item]:
        self._feed()
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Item]:
        sent: list[Item] = []
        while sent or self._making:
            item = sent.pop() if sent else self._next()
            if self._making and self._making[0].done() and self._making[0].exception() is None:
                sent.append(self._next())
            yield item

    def _next(self) -> Item:
        """The next step's result, sent; waits for it."""
        start = time.perf_counter()
        item = self._making.popleft().result()
        self.waited_s += time.perf_counter() - start
        self._feed()
        return item if self._send is None else self._send(item)

    def _feed(self) -> None:
        while len(self._making) < self._ahead and (step := next(self._steps, None)) is not None:
            self._making.append(self._threads.submit(self._make, step))
