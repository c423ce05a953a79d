"""Messages between the processes of a run outside training: who waits for whom, what each has written, who has failed.

All of it runs on the CPU over gloo, in groups of its own: a wait here holds up no collective of training, trips no watchdog of NCCL,
and may come from a thread beside training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mirasol_cli.errors import MirasolError

Result = TypeVar("Result")


class AbortedByPeer(MirasolError):
    """On every other process, when one has failed; that one's message tells why."""

    kind = "stopped"

    def __init__(self, rank: int, exit_code: int):
        who = "the first process" if rank == 0 else f"process {rank}"
        super().__init__(f"{who} failed; see its message")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Peers:
    """This process among those of a group, all of which make the same calls in the same order. Alone where `group` is None."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise, in float64, the same on every process."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def exchange(self, content: bytes) -> list[bytes]:
        """The `content` of every process, by rank, on every process."""
        if self.size == 1:
            return [content]
        lengths = [int(length) for length in self.sum([len(content) if rank == self.rank else 0 for rank in range(self.size)])]
        own = torch.zeros(max(lengths), dtype=torch.uint8)
        own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else own[:0]
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.group)
        return [part[:length].numpy().tobytes() for part, length in zip(found, lengths, strict=True)]

    def together(self, work: Callable[[], Result]) -> Result:
        """Run `work` on every process. If it raises on any, it raises on all, so that none is left waiting for the others."""
        if self.size == 1:
            return work()
        try:
            result, error, code = work(), None, 0
        except Exception as caught:
            error, code = caught, caught.exit_code if isinstance(caught, MirasolError) else 1
        codes = self.sum([code if rank == self.rank else 0 for rank in range(self.size)])
        if error is not None:
            raise error
        failed = next((rank for rank, other in enumerate(codes) if other), None)
        if failed is not None:
            raise AbortedByPeer(failed, int(codes[failed]))
        return result

    def on_first(self, work: Callable[[], Result]) -> Result | None:
        """Run `work` on the first process while the others wait; returns its result there, None elsewhere. Raises as `together`."""
        return self.together(lambda: work() if self.rank == 0 else None)

    def barrier(self) -> None:
        self.sum([0.0])


ALONE = Peers()
