"""`--dry-run`: what a training run would build, hold in memory and do, without doing it. Works without shards, too."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mirasol_cli.batches import media_batch
from mirasol_cli.errors import ShardError
from mirasol_cli.model.flops import PARTS, model_table
from mirasol_cli.model.losses import with_heads
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.recipe_schema import Recipe
from mirasol_cli.shards.sampler import UnitOrder
from mirasol_cli.training.data import OpenSource, open_sources
from mirasol_cli.training.distributed import resolve_device
from mirasol_cli.training.memory import activation_bytes, fixed_bytes, gib
from mirasol_cli.training.run_log import clock
from mirasol_cli.training.start import freeze_parts, given_tokenizer, loss_weights
from mirasol_cli.vocabulary import Vocabulary

TEXT_TOKENS, TARGET_TOKENS = 64, 8
"""Length of a question with its answer, and of the answer, that FLOPs are counted for."""
UTILISATION = 0.35
"""Share of a device's matrix speed that training is taken to reach."""


@dataclass(frozen=True)
class DataFound:
    """What the shards say, or why they cannot be read."""

    problem: str | None = None
    clips: int = 0
    texts: int = 0
    units_per_epoch: int = 0
    read_s: float = 0.0  # to read and check the media of one clip


def dry_run(
    recipe: Recipe, *, stage: str, device: str = "auto", limit: int | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Build the model without memory, look at the data if there are any, and say what training would take.

    Args:
        stage: `pretrain` or `finetune`, for the title.
        device: what time and precision are estimated for.
        limit: train on the first clips only (`data.limit`).
        say: takes the lines for people.

    Returns:
        {"parameters": {"total", "trainable", "by_part"}, "flops_per_clip", "memory_bytes", "steps", "frozen", "seconds", "data"}:
        FLOPs of a forward pass with `data.questions_per_clip` questions, estimated bytes on one process with all its
        share of the batch, estimated seconds of computing in all.

    Raises:
        RecipeError: a `freeze` pattern matches nothing.
        CheckpointError, DataError: what `init` names is missing.
    """
    if limit is not None:
        recipe = replace(recipe, data=replace(recipe.data, limit=limit))
    train, where = recipe.train, resolve_device(device)
    bf16 = train.precision == "bf16" or (train.precision == "auto" and where.type == "cuda")
    config = with_heads(recipe.model, loss_weights(recipe.loss))
    vocab_size, vocabulary_origin = _vocabulary_size(recipe)
    with torch.device("meta"):
        model = Mirasol(config, recipe.clip, vocab_size)
    notes = freeze_parts(model, recipe)

    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    total = sum(p.numel() for p in model.parameters())
    questions = recipe.data.questions_per_clip
    table = model_table(
        config, recipe.clip, vocab_size, questions=questions, text_tokens=TEXT_TOKENS, target_tokens=TARGET_TOKENS
    )  # fmt: skip
    flops = sum(row.flops for row in table)
    clips = train.micro_batch_clips or train.batch_clips
    fixed = fixed_bytes(total, sum(trainable.values()), ema=train.ema > 0)
    activations = activation_bytes(recipe, config, clips, questions, bf16=bf16)
    seconds = 3.0 * flops * train.batch_clips * train.steps / (UTILISATION * matrix_speed(where, bf16))
    data = _look_at_data(recipe)

    say(f"{stage} {recipe.name}: {train.steps:,} steps of {train.batch_clips} clips, up to {questions} questions each, on {where}")
    for line in _table(table, trainable):
        say(line)
    for note in notes:
        say(note)
    say(f"vocabulary: {vocab_size:,} pieces ({vocabulary_origin})")
    say(
        f"memory of one process: about {gib(fixed + activations)} = weights, gradients, optimizer{', averages' * (train.ema > 0)} "
        f"{gib(fixed)} + activations of {clips} clips {gib(activations)}"
    )
    say(f"computing: {3 * flops * train.batch_clips / 1e12:.3g} TFLOP a step, about {clock(seconds)} in all on one {where.type}")
    say(_data_line(data, train.steps * train.batch_clips))
    return {
        "parameters": {
            "total": total, "trainable": sum(trainable.values()), "by_part": {row.part: row.parameters for row in table},
        },
        "flops_per_clip": flops,
        "memory_bytes": fixed + activations,
        "steps": train.steps,
        "frozen": sorted(name for name, p in model.named_parameters() if not p.requires_grad),
        "seconds": seconds,
        "data": {"problem": data.problem, "clips": data.clips, "texts": data.texts, "units_per_epoch": data.units_per_epoch},
    }  # fmt: skip


def _vocabulary_size(recipe: Recipe) -> tuple[int, str]:
    tokenizer = given_tokenizer(recipe)
    if tokenizer is not None:
        return Vocabulary.from_file(tokenizer).size, f"from '{tokenizer}'"
    return recipe.init.vocabulary, "at most; trained on the training texts"


def _look_at_data(recipe: Recipe) -> DataFound:
    try:
        sources = open_sources(recipe)
        order = UnitOrder(
            [s.by_clip for s in sources], [s.recipe.ratio for s in sources], recipe.data.questions_per_clip, recipe.train.seed
        )
        read_s = _read_one(recipe, sources, order)
    except ShardError as error:
        return DataFound(problem=f"{error.message}; {error.hint}" if error.hint else error.message)
    clips = sum(len(source.by_clip) for source in sources)
    texts = sum(len(positions) for source in sources for positions in source.by_clip.values())
    return DataFound(None, clips, texts, order.units_per_epoch, read_s)


def _read_one(recipe: Recipe, sources: list[OpenSource], order: UnitOrder) -> float:
    """Seconds to read the first clip of training and put it into a batch."""
    began, unit = time.perf_counter(), order.unit(0)
    media_batch([sources[unit.source].split.media(unit.clip)], recipe.clip, sound=recipe.data.sound)
    return time.perf_counter() - began


def _data_line(data: DataFound, units: int) -> str:
    if data.problem is not None:
        return f"the data are missing: {data.problem}"
    return (
        f"data: {data.clips:,} clips with {data.texts:,} texts = {data.units_per_epoch:,} units an epoch; "
        f"{units / data.units_per_epoch:.3g} epochs; one clip is read in {1000 * data.read_s:.0f} ms"
    )


def _table(table: list[Any], trainable: dict[str, int]) -> list[str]:
    """Part, parameters, how many of them are trained, GFLOP of a forward pass per clip."""
    trained = dict.fromkeys(PARTS, 0)
    for name, count in trainable.items():
        part = name.split(".")[0]
        trained["encoder" if part.endswith("_encoder") else part] += count
    lines = [f"{'part':<16}{'parameters':>16}{'trained':>16}{'GFLOP/clip':>14}"]
    lines += [f"{row.part:<16}{row.parameters:>16,}{trained[row.part]:>16,}{row.flops / 1e9:>14.2f}" for row in table]
    total = [sum(row.parameters for row in table), sum(trained.values()), sum(row.flops for row in table)]
    return [*lines, f"{'all':<16}{total[0]:>16,}{total[1]:>16,}{total[2] / 1e9:>14.2f}"]


def matrix_speed(device: torch.device, bf16: bool) -> float:
    """FLOP/s of a large matrix product on this device, measured in well under a second."""
    size = 4096 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 and device.type == "cuda" else torch.float32)

    def seconds(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            b = a @ a
        float(b[0, 0])  # waits for the device
        return time.perf_counter() - began

    seconds(2)
    return 2.0 * size**3 * 10 / max(seconds(10), 1e-9)
