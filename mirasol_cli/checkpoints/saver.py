"""Saving while training goes on: copy what this process is to write, then let a thread write it.

Training stands still for the copy alone (and for a save before this one that is not done yet). Every process writes a part: of a sharded
model its own rows, of what several processes hold alike an equal share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from mirasol_cli.checkpoints.folder import Contents, rotate, write_checkpoint
from mirasol_cli.checkpoints.tensor_files import Rows
from mirasol_cli.runtime.distributed import World, holders, local_rows

TensorSets = Mapping[str, Mapping[str, Tensor]]
"""Tensors of this run by stem and name, in the sharding of this run."""


class BackgroundSaver:
    """Writes checkpoints into `folder`, one at a time. All processes make the same calls, from the thread that trains.

    Entered, it does not leave before the save under way is done.

    Args:
        keep: newest checkpoints that rotation leaves.
        check: called on the first process before it writes; raises if the folder is another run's by now.
        patience_s: how long a run that fails waits for the save under way.

    Attributes:
        step: of the newest checkpoint that was begun; None before the first.
        seconds: from its copy to its manifest.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, check: Callable[[], None], patience_s: float):
        self.folder, self.world, self.keep, self.check, self.patience_s = folder, world, keep, check, patience_s
        self.step: int | None = None
        self.seconds: float | None = None
        self._copies: dict[tuple[str, str], Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, step: int, files: Mapping[str, bytes], tensors: TensorSets, frozen_of: Path | None = None) -> None:
        """Copy the state of this step and begin to write it; the tensors may change as soon as this returns.

        Raises what the save before has met.
        """
        self.wait()
        began = time.monotonic()
        contents = Contents(files, self._copied(tensors), frozen_of)
        self.step = step
        self._thread = threading.Thread(target=self._write, args=(step, contents, began), name=f"save of step {step}", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the save under way has met an error, which `wait` raises on every process."""
        return self._error is not None

    def wait(self) -> None:
        """Until the save under way is done. Raises what it has met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:  # a second Ctrl-C wants to leave at once
            self._thread.join(1.0 if isinstance(error, KeyboardInterrupt) else self.patience_s)

    def _write(self, step: int, contents: Contents, began: float) -> None:
        peers = self.world.background
        try:
            peers.on_first(self.check)
            write_checkpoint(self.folder, step, contents, peers)
            peers.on_first(lambda: rotate(self.folder, self.keep))
            self.seconds = time.monotonic() - began
        except BaseException as error:  # raised again by `wait`, in the thread that trains
            self._error = error

    def _copied(self, tensors: TensorSets) -> dict[str, dict[str, Tensor | Rows]]:
        """Copies on the CPU of what this process is to write, in memory that is kept from save to save."""
        copied: dict[str, dict[str, Tensor | Rows]] = {}
        for stem, (name, part) in ((stem, item) for stem, held in tensors.items() for item in own_share(held, self.world).items()):
            tensor = part.tensor if isinstance(part, Rows) else part
            copy = self._copies.get((stem, name))
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
                self._copies[stem, name] = copy
            copy.copy_(tensor.detach(), non_blocking=True)
            copied.setdefault(stem, {})[name] = Rows(copy, part.first, part.shape) if isinstance(part, Rows) else copy
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return {stem: copied.get(stem, {}) for stem in tensors}


def own_share(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor | Rows]:
    """What this process is to write of tensors that all processes hold, whole or in part: together the processes write each row
    once, and as many bytes each as can be without cutting anything further."""
    given: dict[int, list[int]] = {}  # bytes given out so far, by how many hold the same, to each of these
    share: dict[str, Tensor | Rows] = {}
    for name, tensor in tensors.items():
        (place, count), (local, first) = holders(tensor, world), local_rows(tensor)
        bytes_of = given.setdefault(count, [0] * count)
        writer = bytes_of.index(min(bytes_of))
        bytes_of[writer] += tensor.numel() * tensor.element_size()
        if writer == place and local.shape == tensor.shape:
            share[name] = local
        elif writer == place and local.numel():
            share[name] = Rows(local, first, tuple(tensor.shape))
    return share
