"""A sharded model on several gloo processes: how often weights travel, and in what groups."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mirasol_cli.config.schema import TrainRecipe
from mirasol_cli.errors import UsageError
from mirasol_cli.fields import FieldError
from mirasol_cli.runtime.distributed import World, holders, local_rows, parallelise, prepare_blocks
from tests import small_model
from tests.runtime.ranks import on_ranks

KINDS = ("transformer", "history", "ttm", "perceiver", "mean", "none")


class Counted(TorchDispatchMode):
    """Counts the collectives that are called while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "c10d" in str(function):
            self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


def collectives(world: World, kinds: Sequence[str], chunks: Sequence[int], recompute: bool) -> dict[tuple[str, int], dict[str, int]]:
    """Collectives of one step by Combiner and number of chunks."""
    found = {}
    for kind in kinds:
        for count in chunks:
            model = small_model.model(kind, count).train()
            prepare_blocks(model, activation_checkpointing=recompute, compile=False)
            run = parallelise(model, world, "fsdp", bf16=False)
            with Counted() as counted:
                run(small_model.media(2, count, seed=world.rank), small_model.text(), small_model.WEIGHTS).total(
                    small_model.WEIGHTS
                ).backward()
            found[kind, count] = dict(counted.calls)
            assert all(parameter.grad is not None for parameter in model.parameters())
    return found


@pytest.mark.parametrize(
    ("kinds", "chunks", "recompute"),
    [
        (("ttm",), (2, 4, 8, 16), False),
        (("transformer", "history"), (2, 16), False),
        pytest.param(KINDS, (2, 4, 8, 16), False, marks=pytest.mark.slow),
        pytest.param(KINDS, (2, 4, 8, 16), True, marks=pytest.mark.slow),
    ],
)
def test_collectives_of_a_step_do_not_grow_with_the_chunks(kinds: Sequence[str], chunks: Sequence[int], recompute: bool) -> None:
    found = on_ranks(2, collectives, kinds, chunks, recompute)[0]
    for kind in kinds:
        counts = [found[kind, count] for count in chunks]
        assert sum(counts[0].values()) > 10, counts
        assert all(count == counts[0] for count in counts), kind


def layout(world: World, shard_size: int) -> tuple[list[float], dict[str, tuple[int, int]], float]:
    """Norms of the gradients, where the rows of each parameter lie, and the loss after a step of plain gradient descent."""
    model = small_model.model("ttm").train()
    run = parallelise(model, world, "fsdp", bf16=False, shard_size=shard_size)
    batch = small_model.media(2, seed=world.rank), small_model.text(seed=world.rank), {"text": 1.0}
    run(*batch).total(batch[2]).backward()
    norms = [float(p.grad.full_tensor().norm()) for p in model.parameters() if p.grad is not None]  # type: ignore[attr-defined]
    places = {name: (local_rows(p)[1], len(local_rows(p)[0])) for name, p in model.named_parameters() if p.dim() == 2}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    return norms, places, float(run(*batch).total(batch[2]).detach())


def one_process(world: World) -> list[float]:
    """The norms of the gradients of both processes' batches together, whole model."""
    model = small_model.model("ttm").train()
    for seed in range(world.size):
        loss = model(small_model.media(2, seed=seed), small_model.text(seed=seed), {"text": 1.0}).total({"text": 1.0})
        (loss / world.size).backward()
    return [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("size", "shard_size"), [(2, 1), (2, 2), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_copies_of_a_sharded_model_have_the_gradients_of_one(size: int, shard_size: int) -> None:
    found = on_ranks(size, layout, shard_size)
    (expected, *_) = on_ranks(size, one_process)
    for rank, (norms, places, _) in enumerate(found):
        assert norms == pytest.approx(expected, rel=1e-3, abs=1e-5)
        first, rows = places["text.embed_tokens.weight"]
        assert (first, rows) == ((rank % shard_size) * 50 // shard_size, 50 // shard_size)


def uneven(world: World) -> list[tuple[int, list[float], tuple[int, int]]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    flat, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    whole = torch.arange(3.0)
    tensors: list[DTensor | torch.Tensor] = [
        distribute_tensor(whole, flat, [Shard(0)]), distribute_tensor(whole[:1], flat, [Shard(0)]),
        distribute_tensor(whole, grid, [Replicate(), Shard(0)]), whole,
    ]  # fmt: skip
    return [(local_rows(tensor)[1], local_rows(tensor)[0].tolist(), holders(tensor, world)) for tensor in tensors]


def test_where_the_rows_of_a_sharded_tensor_lie() -> None:
    first, second = on_ranks(2, uneven)
    assert first == [(0, [0, 1], (0, 1)), (0, [0], (0, 1)), (0, [0, 1, 2], (0, 2)), (0, [0, 1, 2], (0, 2))]
    assert second == [(2, [2], (0, 1)), (1, [], (0, 1)), (0, [0, 1, 2], (1, 2)), (0, [0, 1, 2], (1, 2))]


def test_what_a_shard_size_goes_with() -> None:
    World(0, 8, torch.device("cpu")).check_shard_size(4)
    with pytest.raises(UsageError, match=r"train\.shard_size: 8 processes do not form groups of 3"):
        World(0, 8, torch.device("cpu")).check_shard_size(3)
    with pytest.raises(FieldError, match="goes with parallel: fsdp"):
        TrainRecipe(shard_size=4)
