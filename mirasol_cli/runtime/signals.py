"""Signals become flags; the training loop reads them at the step boundary, where all processes agree on what to do."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

FORWARDED_WITHIN_S = 1.0
"""A launcher passes the terminal's Ctrl-C on, so a second SIGINT this soon is the same key press."""


SIGTERM = 143
STOPS = {130: "Ctrl-C", SIGTERM: "SIGTERM", 129: "SIGHUP (the terminal was closed)"}
"""Exit code (128 + the signal's number) -> what stopped the run."""


def caught_signals() -> list[signal.Signals]:
    """What a run reacts to, and a launcher passes on: of SIGTERM, SIGINT, SIGHUP and SIGUSR1 those that exist here, without a SIGHUP
    that is ignored."""
    found = [number for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if (number := getattr(signal.Signals, name, None)) is not None]
    return [number for number in found if not (number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN)]


class SignalFlags:
    """Catches SIGTERM, SIGINT, SIGHUP and SIGUSR1 while it is entered; outside the main thread it catches nothing.

    `stop`: the exit code once the run should save and end (`STOPS`), else 0. `save`: SIGUSR1 asks for a checkpoint and no stop.
    A second Ctrl-C raises KeyboardInterrupt at once. SIGHUP stays ignored where it was, as under nohup.
    """

    def __init__(self) -> None:
        self.stop = 0
        self.save = False
        self._interrupted_at: float | None = None
        self._stopped_at: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalFlags:
        if threading.current_thread() is threading.main_thread():
            for number in caught_signals():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @property
    def since_stop_s(self) -> float:
        """Seconds since the first signal that asks this process to stop; 0 where none has."""
        return 0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is not None and now - self._interrupted_at > FORWARDED_WITHIN_S:
                raise KeyboardInterrupt
            if self._interrupted_at is None:
                self._interrupted_at = now
            self.stop = self.stop or 130
        elif 128 + number in STOPS:
            self.stop = 128 + number
        else:
            self.save = True
        if self.stop and self._stopped_at is None:
            self._stopped_at = time.monotonic()
