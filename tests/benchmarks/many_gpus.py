"""What one of many GPUs holds and sends in a step of training, where there are none: a fake process group and tensors without memory.

    python tests/benchmarks/many_gpus.py [--nodes 8] [--gpus 8] [--recipe pretrain] [key=value ...]

The model is built, sharded by the code that trains, and goes forward and backward, as process 0 of so many; no number is computed.
torch's tracker adds up what every tensor would take, by what it is for, at the peak; AdamW's two moments are added by arithmetic. Every
collective is counted as it is called.
Bytes are those that a process sends, in a ring: (n - 1) / n of a gathered or reduced tensor, twice that for a sum over all. They cross
the network where the ring has processes of several nodes.

Assumed: all processes do the same; all media are valid, no modality is dropped; texts are at their longest; kernels keep for the backward
pass what the CPU's keep (attention: no matrix); the allocator wastes nothing, and CUDA itself (about 1 GB) is not counted. Left out: the
loop's sums of counts and flags and the gradient norm, a few numbers each.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed import device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from common import ROOT, Report, in_child, random_media, random_text
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.config.schema import Recipe

LARGE = ("model.preset=mirasol3b", "train.parallel=fsdp", "train.activation_checkpointing=true", "init.vocab_size=32000")
"""As recipes/pretrain.yaml says for 3B parameters."""
VARIANTS = {"transformer": ("model.combiner.kind=transformer",), "ttm": ("model.combiner.kind=ttm",)}
COLLECTIVES = {"_allgather_base_": "gathers of weights", "_reduce_scatter_base_": "sums of gradients", "allreduce_": "sums over all"}
KINDS = {
    "Sharded Param": "weights", "Sharded Grad": "gradients", "OptState": "optimizer", "Unsharded Param": "gathered weights",
    "Unsharded Grad": "gradients before they are summed", "All Gather": "gathers under way", "Reduce Scatter": "sums under way",
    "Activation": "activations", "Temp": "other", "Inputs": "media", "Buffer": "buffers",
}  # fmt: skip


class Seen(TorchDispatchMode):
    """Counts collectives and the bytes that they send; answers what only real numbers would tell: how many places a mask picks."""

    def __init__(self, picked: dict[tuple[int, ...], int], gpus: int):
        super().__init__()
        self._picked = picked  # shape of a mask -> how many of its places are true; of any other shape: all
        self._gpus = gpus  # of a node
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "c10d" and name in COLLECTIVES:
            where, size = sent(name, args, self._gpus)
            self.calls[f"{COLLECTIVES[name]}, {where}"] += 1
            self.bytes[f"{COLLECTIVES[name]}, {where}"] += size
        if func is torch.ops.aten.index.Tensor and len(args[1]) == 1 and args[1][0].dtype == torch.bool:
            values, (mask,) = args
            shape = tuple(mask.shape)
            return values.new_empty((self._picked.get(shape, mask.numel()), *values.shape[len(shape) :]))
        return func(*args, **(kwargs or {}))


def sent(name: str, args: Any, gpus: int) -> tuple[str, float]:
    """Where this collective goes, and the bytes that one process sends in it."""
    group = next(arg for arg in args if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()))
    ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(group))
    whole = {"_allgather_base_": args[0], "_reduce_scatter_base_": args[1], "allreduce_": args[0]}[name]
    size = sum(tensor.numel() * tensor.element_size() for tensor in (whole if isinstance(whole, (list, tuple)) else [whole]))
    n = len(ranks)
    where = "in a node" if max(ranks) // gpus == min(ranks) // gpus else "over the network"
    return where, size * (n - 1) / n * (2 if name == "allreduce_" else 1)


@contextmanager
def fake_processes(count: int) -> Iterator[None]:
    """This is process 0 of so many, whose answers are made up."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    init_device_mesh = device_mesh.init_device_mesh

    def of_real_tensors(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return init_device_mesh(*args, **kwargs)

    device_mesh.init_device_mesh = of_real_tensors
    try:
        yield
    finally:
        device_mesh.init_device_mesh = init_device_mesh
        dist.destroy_process_group()


def one_process(recipe: Recipe, processes: int, gpus: int) -> dict[str, Any]:
    """What process 0 holds and sends."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    from mirasol_cli.model.batch import Hidden, TrainingInputs
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.runtime.distributed import World, parallelise, prepare_blocks
    from mirasol_cli.training.memory import clips_at_once

    warnings.filterwarnings("ignore", category=UserWarning)
    train, world = recipe.train, World(0, processes, torch.device("cpu"))
    clips, questions, limits = clips_at_once(recipe, len(world.local_slice(train.global_batch_size))), 1, recipe.model.text
    length, target = limits.max_context + limits.max_question + limits.max_answer, limits.max_answer
    with fake_processes(processes), FakeTensorMode():
        model = Mirasol(recipe.model, recipe.clip, recipe.init.vocab_size, recipe.loss.weights).train()
        parameters, tensors = sum(p.numel() for p in model.parameters()), sum(1 for _ in model.parameters())
        prepare_blocks(model, activation_checkpointing=train.activation_checkpointing, compile=False)
        runner = parallelise(model, world, train.parallel, bf16=True, shard_size=train.shard_size)
        shown = Hidden(part_of_video=False, part_of_audio=False, part_of_chunks=False)
        media = replace(random_media(recipe.clip, clips), hidden=shown)
        text = random_text(clips, questions, recipe.init.vocab_size, length=length, target=target)
        tracker = FSDPMemTracker(model)
        tracker.track_inputs((media.tubes, media.mel_BTZS, media.thumbnails))
        units = sum(isinstance(module, torch.distributed.fsdp.FSDPModule) for module in model.modules())
        with tracker, Seen({(clips, questions, length - 1): clips * questions * target}, gpus) as seen:
            with torch.autocast("cpu", torch.bfloat16):
                loss = runner(media, text, recipe.loss.weights, TrainingInputs()).total(recipe.loss.weights)
            loss.backward()
        moments = sum(2 * p.to_local().numel() * 4 for p in model.parameters())  # of AdamW, float32
        peak = {str(getattr(kind, "value", kind)): int(size) for kind, size in tracker.get_tracker_snapshot("peak")[world.device].items()}
        peak |= {"OptState": moments, "Total": peak["Total"] + moments}
    return {
        "processes": processes, "parameters": parameters, "tensors": tensors, "units": units, "clips": clips, "text_tokens": length,
        "tokens_per_chunk": recipe.clip.tokens_per_chunk, "chunks": recipe.clip.chunks, "peak_bytes": peak,
        "calls": dict(seen.calls), "sent_bytes": {name: int(size) for name, size in seen.bytes.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--recipe", default="pretrain")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="key=value over the recipe and what it says for 3B parameters")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_process(load_recipe(args.recipe, args.overrides), args.nodes * args.gpus, args.gpus)))
        return
    report = Report("many_gpus", f"A step of 3B parameters on {args.nodes} x {args.gpus} GPUs: memory and collectives of one process")
    found = {}
    for title, words in (*VARIANTS.items(), ("ttm, sharded in a node", ("model.combiner.kind=ttm", f"train.shard_size={args.gpus}"))):
        options = ["--one", "--nodes", str(args.nodes), "--gpus", str(args.gpus), "--recipe", args.recipe]
        found[title] = in_child(__file__, *options, *LARGE, *words, *args.overrides, timeout=3600)
        report.row(variant=title, **found[title])
    first = next(iter(found.values()))
    report.text(
        f"Recipe `{args.recipe}` with {', '.join([*LARGE, *args.overrides])}: {first['parameters'] / 1e9:.2f}e9 parameters in "
        f"{first['units']} units that are gathered one by one; {first['clips']} clips of {first['chunks']} chunks on a process, each with "
        f"a text of {first['text_tokens']} tokens."
    )
    kinds = [kind for kind in KINDS if any(row["peak_bytes"].get(kind) for row in found.values())]
    report.table(
        ["memory at the peak, GB", *found],
        [
            *([KINDS[kind], *(row["peak_bytes"].get(kind, 0) / 1e9 for row in found.values())] for kind in kinds),
            ["all", *(row["peak_bytes"]["Total"] / 1e9 for row in found.values())],
        ],
    )
    report.table(
        ["collectives of a step", *(f"{kind}: calls" for kind in found), *(f"{kind}: GB sent" for kind in found)],
        [
            [
                name,
                *(row["calls"].get(name, 0) for row in found.values()),
                *(row["sent_bytes"].get(name, 0) / 1e9 for row in found.values()),
            ]
            for name in sorted({name for row in found.values() for name in row["calls"]})
        ],
    )
    report.write(" ".join(__doc__.split("\n\n")[3].split()))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
