"""What to say when another process of the run does not answer: who waited, how long, and where the others were last.

Every process notes in the group's key-value store where it is. The store is read only when something went wrong. Under gloo
a process that waits too long, or whose neighbour is gone, gets an exception; under NCCL torch's watchdog writes its own
message with rank and operation, and ends the process.
"""

from __future__ import annotations

import threading
from typing import Any

from mirasol_cli.errors import EnvironmentProblem

_TOO_LONG = ("timed out", "timeout")
_GONE = ("connection closed", "connection reset", "connection refused", "broken pipe", "connection was likely closed")
ASKING_S = 5.0
"""How long the store is asked: it lives in the first process, which may be the one that hangs."""


class Whereabouts:
    """Where each process of the run is, in words such as `step 13`."""

    def __init__(self, store: Any, rank: int, size: int):
        self._store, self.rank, self.size = store, rank, size
        self.place = "the start"

    def note(self, place: str) -> None:
        """This process has come to `place`."""
        self.place = place
        self._store.set(_key(self.rank), place)

    def others(self) -> str:
        """The others' places, as far as they can be known within `ASKING_S`; equal ones joined."""
        found: dict[int, str] = {}

        def ask() -> None:
            for rank in range(self.size):
                if rank != self.rank:
                    known = self._store.check([_key(rank)])
                    found[rank] = self._store.get(_key(rank)).decode() if known else "the start"

        def ask_quietly() -> None:
            try:
                ask()
            except Exception:  # the store is gone with the first process
                return

        asking = threading.Thread(target=ask_quietly, daemon=True)
        asking.start()
        asking.join(ASKING_S)
        by_place: dict[str, list[int]] = {}
        for rank, place in dict(found).items():
            by_place.setdefault(place, []).append(rank)
        parts = [f"process{'es' * (len(ranks) > 1)} {_some(ranks)} in {place}" for place, ranks in by_place.items()]
        return (
            f"last heard of: {'; '.join(parts)}" if parts else "the first process, which keeps the list of where they are, does not answer"
        )


def no_answer(error: BaseException, whereabouts: Whereabouts, timeout_s: float) -> EnvironmentProblem | None:
    """The error as one message if it says that another process does not answer; else None."""
    text = str(error).lower()
    own = f"process {whereabouts.rank} of {whereabouts.size}, in {whereabouts.place},"
    if any(words in text for words in _TOO_LONG):
        return EnvironmentProblem(
            f"{own} waited more than {timeout_s:g} s for another one; {whereabouts.others()}",
            "see the output of the process that is behind; if it only works longer than that, raise run.process_group_timeout_s "
            "or lower train.evaluate_limit; go on with --resume",
        )
    if any(words in text for words in _GONE):
        return EnvironmentProblem(
            f"{own} lost the connection to another one, which has ended; {whereabouts.others()}",
            "see the output of the process that ended first; go on with --resume",
        )
    return None


def _key(rank: int) -> str:
    return f"mirasol/at/{rank}"


def _some(ranks: list[int]) -> str:
    """`0, 1, 2`; of a large run the first eight and how many more."""
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
