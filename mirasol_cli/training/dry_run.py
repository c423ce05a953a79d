"""`--dry-run`: what a training run would build, hold in memory and compute, without doing it. Works without shards, too."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from mirasol_cli.batches.sources import open_sources, training_lines
from mirasol_cli.config.hub import not_downloaded
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import ShardError
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.runtime.device import computes_in_bf16, resolve_device
from mirasol_cli.runtime.distributed import World, prepare_blocks
from mirasol_cli.sample import bytes_per_clip
from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary
from mirasol_cli.training.data import MicroBatch, TrainingData
from mirasol_cli.training.display import clock
from mirasol_cli.training.flops import forward_flops
from mirasol_cli.training.memory import activation_bytes, clips_at_once, fixed_bytes, gib, memory_at_hand
from mirasol_cli.training.optimizer import build_optimizer, clip_gradients
from mirasol_cli.training.setup import build_model, check_folders, check_init, freeze_parts, given_tokenizer

TEXT_TOKENS, TARGET_TOKENS = 64, 8
"""Length of a question with its answer, and of the answer, that FLOPs are counted for where there are no texts to look at."""
MOST_CLIPS = 32  # of a timed step: more cost time and tell no more
TIMED_FLOPS = {"cpu": 2e12, "mps": 2e13, "cuda": 1e15}
"""A step of more than this is not timed: it would take from seconds to a minute on the slowest such device."""
VOCABULARY_LINES = 20_000  # texts that a vocabulary is trained on here; more make the pieces no longer


def dry_run(
    recipe: Recipe,
    *,
    stage: str,
    device: str = "auto",
    limit: int | None = None,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Build the model without memory, look at the data if there are any, time one step on them, and say what training would take.

    Args:
        stage: `pretrain` or `finetune`, for the title.
        device: what memory and the step's time are for.
        limit: train on the first clips only (`data.limit`).
        processes: how many the run would have (`--nproc`).
        say: takes the lines for people.

    Returns:
        {"parameters": {"total", "trainable", "by_part"}, "flops_per_clip", "memory_bytes", "steps", "processes",
        "clips_per_process", "frozen", "step_seconds", "data"}: FLOPs of a forward pass with the texts of a clip, bytes on one process,
        seconds of a step on one process (None where none was timed).

    Raises:
        UsageError: `train.global_batch_size` does not divide into equal shares for the processes.
        RecipeError: a `freeze` pattern matches nothing, or sections do not go together.
        CheckpointError, DataError: what `init` names is missing.
    """
    if limit is not None:
        recipe = replace(recipe, data=replace(recipe.data, limit=limit))
    train, where = recipe.train, resolve_device(device)
    bf16, share = computes_in_bf16(train.precision, where), len(World(0, processes, where).local_slice(train.global_batch_size))
    clips, questions = clips_at_once(recipe, share), recipe.data.questions_per_clip
    check_init(recipe)
    given, elsewhere = given_tokenizer(recipe), not_downloaded(recipe.init)
    vocab_size = Vocabulary.from_file(given).size if given else recipe.init.vocab_size
    model = build_model(recipe, vocab_size, "meta")
    check_folders(model, recipe)
    notes = freeze_parts(model, recipe)
    by_part = {part: sum(p.numel() for m in modules for p in m.parameters()) for part, modules in model.parts().items()}
    total, trained = sum(by_part.values()), sum(p.numel() for p in model.parameters() if p.requires_grad)

    data, found = _open(recipe)
    texts: dict[str, Any] = {"questions": questions, "tokens": TEXT_TOKENS, "targets": TARGET_TOKENS}
    batch = data.micro_batches(0, range(min(clips, MOST_CLIPS)))[0] if data is not None else None
    if batch is not None:
        texts = _texts_of(batch)
    flops = forward_flops(model, **recipe.data.modalities, **texts)
    fixed = fixed_bytes(total, trained, ema=train.ema_decay > 0, bf16=bf16) // (processes if train.parallel == "fsdp" else 1)
    activations = activation_bytes(recipe, model, clips, questions, bf16=bf16)
    memory = fixed + clips * bytes_per_clip(recipe.clip) + activations
    step_s, timed = None, "no step was timed"
    if data is not None and batch is not None:
        size = min(len(batch.units), int(TIMED_FLOPS[where.type] / (3 * sum(flops.values()))))
        room = memory_at_hand(where)
        while size and room is not None and fixed + activation_bytes(recipe, model, size, questions, bf16=bf16) > room // 2:
            size //= 2
        if size:
            clip_s = time_step(recipe, data.vocabulary.size, data.micro_batches(0, range(size))[0], where, bf16=bf16) / size
            step_s = clip_s * share
            timed = f"{step_s:.2g} s per step on {where} (timed on {size} clips): {clock(step_s * train.steps)} in total"

    apart = f", in {processes} processes of {share} clips each" if processes > 1 else ""
    say(
        f"{stage} {recipe.name}: {train.steps:,} steps of {train.global_batch_size} clips, up to {questions} questions each, on "
        f"{where}{apart}"
    )
    say(f"{'part':<16}{'parameters':>16}{'GFLOP/clip':>14}")
    for part, count in by_part.items():
        say(f"{part:<16}{count:>16,}{flops.get(part, 0) / 1e9:>14.2f}")
    say(f"{'all':<16}{total:>16,}{sum(flops.values()) / 1e9:>14.2f}")
    say(f"trained: {trained:,} of {total:,} parameters")
    for note in notes:
        say(note)
    for key, name in elsewhere.items():
        say(f"init.{key}: '{name}' is not downloaded yet: these are the sizes in the recipe; training downloads it")
    awaited = next((key for key in ("tokenizer", "text_decoder") if key in elsewhere), None)
    trained_here = f"as init.vocab_size says, until init.{awaited} is here" if awaited else "at most; trained on the training texts"
    say(f"vocabulary: {vocab_size:,} pieces ({f'from {given}' if given else trained_here})")
    say(
        f"memory per process: about {gib(memory)}: weights, gradients, optimizer{', averages' if train.ema_decay > 0 else ''} "
        f"{gib(fixed)}; activations of {clips} clips with the longest texts {gib(activations)}; and their media"
    )
    say(f"compute: {3 * sum(flops.values()) * train.global_batch_size / 1e12:.3g} TFLOP per step; {timed}")
    if found["problem"] is not None:
        say(f"no data: {found['problem']}")
    else:
        epochs = train.steps * train.global_batch_size / found["units_per_epoch"]
        units = f"{found['units_per_epoch']:,} units per epoch; {epochs:.3g} epochs"
        say(f"data: {found['clips']:,} clips with {found['texts']:,} texts = {units}")
    return {
        "parameters": {"total": total, "trainable": trained, "by_part": by_part},
        "flops_per_clip": sum(flops.values()),
        "memory_bytes": memory,
        "steps": train.steps,
        "processes": processes,
        "clips_per_process": share,
        "frozen": sorted(name for name, p in model.named_parameters() if not p.requires_grad),
        "step_seconds": step_s,
        "data": found,
    }


def time_step(recipe: Recipe, vocab_size: int, batch: MicroBatch, where: torch.device, *, bf16: bool) -> float:
    """Seconds of one training step on `batch`, after one to warm up, with random weights and without `train.compile`."""
    state = torch.random.get_rng_state()
    model = build_model(recipe, vocab_size, where).train()
    freeze_parts(model, recipe)
    prepare_blocks(model, activation_checkpointing=recipe.train.activation_checkpointing, compile=False)
    optimizer, weights = build_optimizer(model, recipe.train), recipe.loss.weights
    media, text, extra = batch.media.to(where), batch.text.to(where), batch.extra.to(where)
    counts = {name: max(1, int(OBJECTIVES[name].count(batch.media, batch.text, batch.extra, recipe.clip))) for name in weights}

    def seconds() -> float:
        began = time.perf_counter()
        with torch.autocast(where.type, torch.bfloat16) if bf16 else nullcontext():
            loss = model(media, text, weights, extra).total(weights, counts)
        loss.backward()
        clip_gradients(model.parameters(), recipe.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if where.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - began

    seconds()
    found = seconds()
    torch.random.set_rng_state(state)
    return found


def _open(recipe: Recipe) -> tuple[TrainingData | None, dict[str, Any]]:
    """The data as a run would see them, but for a vocabulary of some of the texts only; and what they are, or why they can't be read."""
    try:
        sources = open_sources(recipe)
        given = given_tokenizer(recipe)
        lines = islice(training_lines(sources), VOCABULARY_LINES)
        data = TrainingData(
            recipe, sources, Vocabulary.from_file(given) if given else Vocabulary(train_vocabulary(lines, recipe.init.vocab_size))
        )
        data.micro_batches(0, range(1))  # its media must be readable
    except ShardError as error:
        problem = f"{error.message}; {error.hint}" if error.hint else error.message
        return None, {"problem": problem, "clips": 0, "texts": 0, "units_per_epoch": 0}
    clips = sum(len(source.by_clip) for source in sources)
    texts = sum(len(source.by_clip.positions) for source in sources)
    return data, {"problem": None, "clips": clips, "texts": texts, "units_per_epoch": data.order.units_per_epoch}


def _texts_of(batch: MicroBatch) -> dict[str, int]:
    """Mean number of a clip's texts, their padded length, and the mean number of target tokens."""
    count, targets = max(1, batch.questions), int(batch.text.target_BQL.sum())
    return {
        "questions": max(1, round(count / len(batch.units))),
        "tokens": batch.text.tokens_BQL.shape[2],
        "targets": max(1, round(targets / count)),
    }
