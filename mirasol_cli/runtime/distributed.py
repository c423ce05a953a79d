"""One process or many: joining the process group, wrapping the model, and moving state between whole and sharded form.

The model is written for one device. Data parallelism, activation checkpointing and compilation are put around it here,
in this order: activation checkpointing, compile (both per block), then DDP or `fully_shard`.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute

from mirasol_cli.errors import EnvironmentProblem, UsageError
from mirasol_cli.runtime.peers import ALONE, Peers

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from mirasol_cli.model.mirasol import Mirasol


Result = TypeVar("Result")
COMPILED_FORMS = 128
"""All blocks share the code that torch compiles, `Module._call_impl`; each kind of block, size, mask or none, with gradients or
without is a form of its own. Beyond torch's limit of 8, a block would run uncompiled, with no more than a warning."""
LONGEST_WAIT_S = 7200.0
"""How long a process waits for others that do something slow (verify a checkpoint, write one, validate): far longer than for a
collective of training, where whoever does not come in time has stopped."""

_TOO_LONG = ("timed out", "timeout")
_GONE = ("connection closed", "connection reset", "connection refused", "broken pipe", "connection was likely closed")


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device
    timeout_s: float = 0.0
    waiting: Peers = ALONE  # of the main thread
    background: Peers = ALONE  # of the thread that writes checkpoints

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def no_answer(self, error: BaseException) -> EnvironmentProblem | None:
        """The error as a message about processes that do not answer, if it is about that; else None.

        Under gloo a process that waits too long, or whose neighbour is gone, gets an exception; under NCCL torch's watchdog writes a
        message of its own, with rank and operation, and ends the process.
        """
        text = str(error).lower()
        if self.size > 1 and any(words in text for words in _TOO_LONG):
            return EnvironmentProblem(
                f"process {self.rank} of {self.size} waited more than {self.timeout_s:g} s for another process",
                "see the output of the process that is behind; if it is only slower than that, raise run.process_group_timeout_s "
                "or lower train.val_clips; resume with --resume",
            )
        if self.size > 1 and any(words in text for words in _GONE):
            return EnvironmentProblem(
                f"process {self.rank} of {self.size} lost the connection to another process, which has exited",
                "see the output of the process that exited first; resume with --resume",
            )
        return None

    def sum(self, values: Sequence[float]) -> list[float]:
        """Elementwise sum over all processes, in float64, the same on every process."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def run_on_rank0(self, work: Callable[[], Result]) -> Result | None:
        """`Peers.on_first`: run `work` on the first process while the others wait, for as long as it takes."""
        return self.waiting.on_first(work)

    def barrier(self) -> None:
        """Wait for the others, for as long as it takes."""
        self.waiting.barrier()

    def broadcast_bytes(self, content: bytes | None) -> bytes:
        """The first process's `content`, on every process."""
        if self.size == 1:
            return content or b""
        length = int(self.sum([len(content) if content and self.is_main else 0])[0])
        data = (
            torch.frombuffer(bytearray(content), dtype=torch.uint8) if content and self.is_main else torch.empty(length, dtype=torch.uint8)
        )
        data = data.to(self.device)
        dist.broadcast(data, 0)
        return bytes(data.tolist())

    def local_slice(self, batch: int) -> range:
        """Positions of the global batch that this process takes: equal contiguous shares in rank order."""
        if batch % self.size:
            near = max(self.size, round(batch / self.size) * self.size)
            raise UsageError(
                f"train.global_batch_size: {batch} cannot be divided evenly among {self.size} processes",
                f"use a multiple of {self.size}, for example train.global_batch_size={near}",
            )
        each = batch // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def check_shard_size(self, size: int | None) -> None:
        """Raises UsageError where the processes do not form groups of `size`. One process alone is not sharded at all."""
        if size is not None and self.size > 1 and self.size % size:
            raise UsageError(
                f"train.shard_size: {self.size} processes do not form groups of {size}",
                "use the number of GPUs of a machine, or remove it to shard over all processes",
            )


@contextmanager
def joined_world(device: torch.device, timeout_s: float) -> Iterator[World]:
    """The process group that torchrun (or any launcher setting RANK and WORLD_SIZE) describes; a single process needs none.

    `device` names the kind; with several GPUs each process takes the one of its LOCAL_RANK.

    Raises:
        EnvironmentProblem: the processes did not meet, or one of them stopped answering.
    """
    size, rank = int(os.environ.get("WORLD_SIZE") or "1"), int(os.environ.get("RANK") or "0")
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise EnvironmentProblem(
                f"process {rank} wants GPU {local}, but this machine has {torch.cuda.device_count()}", "start fewer processes (--nproc)"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    already = dist.is_initialized()
    if not already:
        _join(rank, size, device, timeout_s)
    patience = timedelta(seconds=max(LONGEST_WAIT_S, timeout_s))
    waiting, background = (Peers(rank, size, dist.new_group(backend="gloo", timeout=patience)) for _ in range(2))
    world = World(rank, size, device, timeout_s, waiting, background)
    try:
        yield world
    except RuntimeError as error:
        problem = world.no_answer(error)
        if problem is None:
            raise
        raise problem from error
    finally:
        if not already:
            gc.collect()  # DDP holds the group in reference cycles; its end must come before the group's
            dist.destroy_process_group()


def _join(rank: int, size: int, device: torch.device, timeout_s: float) -> None:
    """Meet the other processes where the environment says."""
    try:
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout_s))))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    except dist.DistError as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise EnvironmentProblem(
            f"process {rank} of {size} could not reach the others at {address} within {timeout_s:g} s: {str(error).splitlines()[0]}",
            "start all processes, check MASTER_ADDR and MASTER_PORT, or raise run.process_group_timeout_s",
        ) from error


def prepare_blocks(model: Mirasol, *, activation_checkpointing: bool, compile: bool) -> None:
    """Recompute and compile block by block, in place and without renaming a parameter."""
    if compile:
        from torch._dynamo import config

        config.recompile_limit = max(config.recompile_limit, COMPILED_FORMS)
    for block in model.blocks():
        if activation_checkpointing:
            block.forward = _recomputed(block.forward)
        if compile:
            block.compile()


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return recompute(forward, *args, use_reentrant=False, **kwargs)

    return run


def parallelise(model: Mirasol, world: World, kind: str, *, bf16: bool, shard_size: int | None = None) -> nn.Module:
    """What the loop calls instead of `model`: the model itself, DDP around it, or the model with its parts sharded in place.

    Gradients come out as the mean over the processes in all forms.

    Args:
        shard_size: processes that hold the model together, each a part, where that is not all of them: its copies then are
            replicas (HSDP). With the GPUs of one machine, weights are gathered inside of it, and only gradients cross the network.
    """
    if world.size == 1:
        return model
    if kind == "ddp":
        ids = [world.device.index] if world.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if shard_size is None or shard_size == world.size:
        mesh = init_device_mesh(world.device.type, (world.size,))
    else:
        mesh = init_device_mesh(world.device.type, (world.size // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))
    # Weights travel in bf16, gradients are summed in float32: autocast computes in bf16 anyhow.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False) if bf16 else None
    settings = {"mesh": mesh} if policy is None else {"mesh": mesh, "mp_policy": policy}
    for unit in model.sharded_units():
        fully_shard(unit, **settings)
    fully_shard(model, **settings)
    return model


@contextmanager
def gradient_sync(runner: nn.Module, last: bool) -> Iterator[None]:
    """Sum gradients over the processes only in the `last` micro batch of a step."""
    if isinstance(runner, DistributedDataParallel) and not last:
        with runner.no_sync():
            yield
        return
    if is_sharded(runner):
        runner.set_requires_gradient_sync(last)  # type: ignore[operator]
    yield


def is_sharded(model: nn.Module) -> bool:
    """Whether `parallelise` has sharded it in place."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # takes a second to import; where nobody has, nothing is sharded
    return fsdp is not None and isinstance(model, fsdp.FSDPModule)


def is_sharded_tensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is one process's part of a sharded tensor."""
    sharded = sys.modules.get("torch.distributed.tensor")
    return sharded is not None and isinstance(tensor, sharded.DTensor)


def whole_tensors(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors unsharded, on every process, floating-point ones as `dtype`. All processes call this together.

    One tensor at a time, so that no more than one is whole in two types.
    """
    found = {}
    for name, tensor in tensors.items():
        full = tensor.detach().full_tensor() if is_sharded_tensor(tensor) else tensor.detach()  # type: ignore[attr-defined]
        found[name] = full.to(dtype) if dtype is not None and full.is_floating_point() else full
    return found


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """This process's part of a tensor, and the row of the whole that it begins with. What is not sharded is all here."""
    if not is_sharded_tensor(tensor):
        return tensor, 0
    mesh, rows, first = tensor.device_mesh, tensor.shape[0] if tensor.dim() else 1, 0
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_shard():  # `fully_shard` cuts the first axis, as torch.chunk does
            first = min(rows, mesh.get_local_rank(dimension) * -(-rows // mesh.size(dimension)))
    return tensor.to_local(), first


def holders(tensor: Tensor, world: World) -> tuple[int, int]:
    """(this process's place, how many) among the processes that hold the same part of a tensor."""
    if not is_sharded_tensor(tensor):
        return world.rank, world.size
    mesh = tensor.device_mesh
    copies = [dimension for dimension, placement in enumerate(tensor.placements) if placement.is_replicate()]
    return (mesh.get_local_rank(copies[0]), mesh.size(copies[0])) if copies else (0, 1)
