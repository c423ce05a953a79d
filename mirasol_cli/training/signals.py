"""Signals become flags; the training loop reads them at the step boundary, where all processes agree on what to do."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

FORWARDED_WITHIN_S = 1.0
"""A launcher passes the terminal's Ctrl-C on, so a second SIGINT this soon is the same key press."""


class SignalFlags:
    """Catches SIGTERM, SIGINT and SIGUSR1 while it is entered; outside the main thread it catches nothing.

    `stop`: 143 (SIGTERM) or 130 (Ctrl-C) once the run should save and end, else 0. `save`: SIGUSR1 asks for a checkpoint and no stop.
    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.stop = 0
        self.save = False
        self._interrupted_at: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalFlags:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
                number = getattr(signal, name, None)  # SIGUSR1 does not exist everywhere
                if number is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.stop = 143
        elif number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is not None and now - self._interrupted_at > FORWARDED_WITHIN_S:
                raise KeyboardInterrupt
            if self._interrupted_at is None:
                self._interrupted_at = now
            self.stop = self.stop or 130
        else:
            self.save = True
