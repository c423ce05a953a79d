"""`train.compile`: every block runs compiled, whatever a batch lacks.

The graphs are run as they were traced, by a backend that counts: no compiler is needed, and a block that torch leaves alone is missed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mirasol_cli.runtime.distributed import World, parallelise, prepare_blocks
from tests import small_model
from tests.runtime.ranks import on_ranks


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


class Calls:
    """Of the blocks of a model, and of their compiled graphs."""

    def __init__(self) -> None:
        self.blocks = self.graphs = 0

    def backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.graphs += 1
            return graph(*arguments)

        return run

    def watch(self, block: torch.nn.Module) -> None:
        compiled: Any = block._compiled_call_impl

        def call(*arguments: Any, **named: Any) -> Any:
            self.blocks += 1
            return compiled(*arguments, **named)

        block._compiled_call_impl = call


def lacking() -> Iterator[dict[str, Tensor]]:
    """The masks of batches of two clips: nothing, all audio, all video, some audio, one clip's last chunk missing."""
    valid = small_model.all_valid()
    audio, video, chunks = (valid[name] for name in ("audio_valid_BTN", "video_valid_BTN", "chunk_valid_BT"))
    some, shorter = audio.clone(), chunks.clone()
    some[0, 0], shorter[0, -1] = False, False
    yield from ({}, {"audio_valid_BTN": audio & False}, {"video_valid_BTN": video & False})
    yield from ({"audio_valid_BTN": some}, {"chunk_valid_BT": shorter}, {})


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("kind", "recompute", "rounds"),
    [("transformer", True, 1), *(pytest.param(kind, r, 3, marks=pytest.mark.slow) for kind in ("ttm", "history") for r in (True, False))],
)
def test_every_block_call_is_compiled_under_changing_masks(
    kind: str, recompute: bool, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls, compile = small_model.model(kind).train(), Calls(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile(function, backend=calls.backend))
    prepare_blocks(model, activation_checkpointing=recompute, compile=True)
    for block in model.blocks():
        calls.watch(block)
    for number in range(rounds):  # the lengths of texts change too
        for masks in lacking():
            calls.blocks = calls.graphs = 0
            with torch.set_grad_enabled(rounds == 1 or number < 2):
                losses = model(small_model.media(**masks), small_model.text(length=9 + number), small_model.WEIGHTS)
            if losses.parts["text"].sum.requires_grad:
                losses.total(small_model.WEIGHTS).backward()
            assert calls.graphs == calls.blocks >= len(model.blocks()), (list(masks), number)


def sharded(world: World, recompute: bool) -> list[tuple[int, int]]:
    """(graphs, block calls) of a training step for each of the batches."""
    calls, compile = Calls(), torch.compile
    torch.compile = lambda function, **settings: compile(function, backend=calls.backend)  # type: ignore[assignment]
    model = small_model.model("ttm").train()
    prepare_blocks(model, activation_checkpointing=recompute, compile=True)
    for block in model.blocks():
        calls.watch(block)
    run, found = parallelise(model, world, "fsdp", bf16=False), []
    for masks in lacking():
        calls.blocks = calls.graphs = 0
        run(small_model.media(**masks), small_model.text(), small_model.WEIGHTS).total(small_model.WEIGHTS).backward()
        found.append((calls.graphs, calls.blocks))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_every_block_call_of_a_sharded_model_is_compiled(recompute: bool) -> None:
    for counts in on_ranks(2, sharded, recompute):
        assert all(graphs == blocks > 10 for graphs, blocks in counts), counts
