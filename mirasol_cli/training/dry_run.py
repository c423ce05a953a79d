"""`--dry-run`: what a training run would build, hold in memory and do, without doing it. Works without shards, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mirasol_cli.errors import ShardError
from mirasol_cli.model.config import ModelConfig
from mirasol_cli.model.flops import PARTS, PartCost, model_table
from mirasol_cli.model.losses import with_heads
from mirasol_cli.model.parameter_names import part_named
from mirasol_cli.recipe_schema import Recipe
from mirasol_cli.training.data import MicroBatch, TrainingData, open_sources
from mirasol_cli.training.distributed import World, computes_in_bf16, resolve_device
from mirasol_cli.training.memory import activation_bytes, clips_at_once, fixed_bytes, gib, memory_at_hand, program_bytes, saving_bytes
from mirasol_cli.training.rehearsal import MOST_CLIPS, Rehearsal, data_to_rehearse, matrix_speed, rehearse
from mirasol_cli.training.run_log import clock
from mirasol_cli.training.start import build_model, freeze_parts, given_tokenizer, loss_weights
from mirasol_cli.vocabulary import Vocabulary

TEXT_TOKENS, TARGET_TOKENS = 64, 8
"""Length of a question with its answer, and of the answer, that FLOPs are counted for where there are no texts to look at."""
UTILISATION = (0.15, 0.6)
"""Shares of a device's matrix speed between which training is taken to lie where no step could be timed."""
REHEARSED_S = 20.0
"""A clip that would take longer than this, forward and backward, is not rehearsed."""
BATCHES_HELD = 4
"""Of a step: one at work, two read ahead, one being read."""


@dataclass(frozen=True)
class DataFound:
    """What the shards say, or why they cannot be read."""

    problem: str | None = None
    clips: int = 0
    texts: int = 0
    units_per_epoch: int = 0
    training: TrainingData | None = None


@dataclass(frozen=True)
class Texts:
    """What the texts of a clip are counted as."""

    questions: int
    tokens: int
    targets: int


@dataclass(frozen=True)
class Machine:
    """What the processes of a run compute on."""

    kind: str  # cpu, cuda, mps
    processes: int

    @property
    def devices(self) -> int:
        """Every process has a GPU of its own; the cores of a CPU are shared, so that more processes make nothing faster."""
        return self.processes if self.kind == "cuda" else 1

    def __str__(self) -> str:
        return f"one {self.kind}" if self.devices == 1 else f"{self.devices} {self.kind} devices"


@dataclass(frozen=True)
class TimeEstimate:
    seconds: float  # of computing in all
    words: str


def dry_run(
    recipe: Recipe,
    *,
    stage: str,
    device: str = "auto",
    limit: int | None = None,
    processes: int = 1,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Build the model without memory, look at the data if there are any, and say what training would take.

    Where there are data and the model is not too large for it, a few steps are made on a real batch, timed and weighed;
    elsewhere time and memory are estimated, and the lines say so.

    Args:
        stage: `pretrain` or `finetune`, for the title.
        device: what time and precision are estimated for.
        limit: train on the first clips only (`data.limit`).
        processes: how many the run would have (`--nproc`): one to a GPU; on a CPU they share its cores.
        say: takes the lines for people.

    Returns:
        {"parameters": {"total", "trainable", "by_part"}, "flops_per_clip", "memory_bytes", "steps", "processes",
        "clips_per_process", "frozen", "seconds", "measured", "data"}: FLOPs of a forward pass with the texts of a clip, bytes on one
        process (the program's own left out), seconds of computing in all (validation, saving and what processes tell one another
        left out), whether steps were measured for it.

    Raises:
        UsageError: `train.batch_clips` does not divide into equal shares for the processes.
        RecipeError: a `freeze` pattern matches nothing, or sections do not go together.
        CheckpointError, DataError: what `init` names is missing.
    """
    if limit is not None:
        recipe = replace(recipe, data=replace(recipe.data, limit=limit))
    train, where = recipe.train, resolve_device(device)
    bf16 = computes_in_bf16(train.precision, where)
    config = with_heads(recipe.model, loss_weights(recipe.loss))
    vocab_size, vocabulary_origin = _vocabulary_size(recipe)
    model = build_model(config, recipe, vocab_size, "meta")
    notes = freeze_parts(model, recipe)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    total, trained = sum(p.numel() for p in model.parameters()), sum(trainable.values())
    share = len(World(0, processes, where).share(train.batch_clips))
    clips = clips_at_once(recipe, share)

    data = _look_at_data(recipe)
    batch = data.training.micro_batches(0, range(min(clips, MOST_CLIPS)))[0] if data.training is not None else None
    texts = Texts(recipe.data.questions_per_clip, TEXT_TOKENS, TARGET_TOKENS) if batch is None else _texts_of(batch)
    table = model_table(
        config, recipe.clip, vocab_size, questions=texts.questions, text_tokens=texts.tokens, target_tokens=texts.targets
    )  # fmt: skip
    flops = sum(row.flops for row in table)
    fixed, speed = fixed_bytes(total, trained, ema=train.ema > 0), matrix_speed(where, bf16)
    rehearsal = None
    if batch is not None and data.training is not None:
        rehearsal = _rehearse(recipe, config, data.training, batch, where, bf16, clip_s=3 * flops / (UTILISATION[0] * speed), fixed=fixed)
    time = _time(train.steps, share, flops, speed, rehearsal, Machine(where.type, processes))
    activations, counted = _activations(recipe, config, clips, rehearsal, bf16)
    # On a CPU the batches that wait and the copies that a save makes lie in the same memory as the model.
    on_cpu = where.type == "cpu"
    program = rehearsal.program_bytes if rehearsal is not None else program_bytes()
    batches = recipe.clip.bytes_per_clip * (BATCHES_HELD * share if on_cpu else clips)
    saving = saving_bytes(total, trained, ema=train.ema > 0) if on_cpu else 0
    held = fixed // processes if train.parallel == "fsdp" else fixed
    memory = held + batches + max(activations, saving)

    questions = recipe.data.questions_per_clip
    apart = f", in {processes} processes of {share} clips each" if processes > 1 else ""
    say(f"{stage} {recipe.name}: {train.steps:,} steps of {train.batch_clips} clips, up to {questions} questions each, on {where}{apart}")
    for line in [*_table(table, trainable), *notes]:
        say(line)
    say(f"vocabulary: {vocab_size:,} pieces ({vocabulary_origin})")
    say(
        f"memory of one process: about {gib(memory)} = weights, gradients, optimizer{', averages' * (train.ema > 0)} {gib(held)} "
        f"+ batches {gib(batches)} + activations of {clips} clips {gib(activations)} ({counted})"
        + (f", or in their place copies for a save {gib(saving)}" if saving > activations else "")
        + (f"; the program itself takes {gib(program)} more" if on_cpu and program else "")
    )
    say(f"computing: {3 * flops * train.batch_clips / 1e12:.3g} TFLOP a step; {time.words}")
    say(_data_line(data, train.steps * train.batch_clips))
    return {
        "parameters": {"total": total, "trainable": trained, "by_part": {row.part: row.parameters for row in table}},
        "flops_per_clip": flops,
        "memory_bytes": memory,
        "steps": train.steps,
        "processes": processes,
        "clips_per_process": share,
        "frozen": sorted(name for name, p in model.named_parameters() if not p.requires_grad),
        "seconds": time.seconds,
        "measured": rehearsal is not None,
        "data": {"problem": data.problem, "clips": data.clips, "texts": data.texts, "units_per_epoch": data.units_per_epoch},
    }


def _vocabulary_size(recipe: Recipe) -> tuple[int, str]:
    tokenizer = given_tokenizer(recipe)
    if tokenizer is not None:
        return Vocabulary.from_file(tokenizer).size, f"from '{tokenizer}'"
    return recipe.init.vocabulary, "at most; trained on the training texts"


def _look_at_data(recipe: Recipe) -> DataFound:
    try:
        sources = open_sources(recipe)
        training = data_to_rehearse(recipe, sources)
        training.micro_batches(0, range(1))  # its media must be readable
    except ShardError as error:
        return DataFound(problem=f"{error.message}; {error.hint}" if error.hint else error.message)
    clips = sum(len(source.by_clip) for source in sources)
    texts = sum(len(positions) for source in sources for positions in source.by_clip.values())
    return DataFound(None, clips, texts, training.order.units_per_epoch, training)


def _texts_of(batch: MicroBatch) -> Texts:
    """Mean number of a clip's texts, their padded length, and the mean number of target tokens."""
    count = max(1, batch.questions)
    targets = int(batch.text.target_BQL.sum())
    return Texts(max(1, round(count / len(batch.units))), batch.text.tokens_BQL.shape[2], max(1, round(targets / count)))


def _rehearse(
    recipe: Recipe,
    config: ModelConfig,
    data: TrainingData,
    batch: MicroBatch,
    where: torch.device,
    bf16: bool,
    *,
    clip_s: float,
    fixed: int,
) -> Rehearsal | None:
    """Steps on as much of the batch as takes `REHEARSED_S` at the most and fits in half of the memory at hand; None if that is nothing.

    Args:
        clip_s: a high guess of the seconds that one clip takes, forward and backward.
        fixed: bytes of weights, gradients and optimizer.
    """
    clips = min(len(batch.units), int(REHEARSED_S / clip_s))
    at_hand, questions = memory_at_hand(where), recipe.data.questions_per_clip
    while clips and at_hand is not None and fixed + activation_bytes(recipe, config, clips, questions, bf16=bf16) > at_hand // 2:
        clips //= 2
    if not clips:
        return None
    if clips < len(batch.units):
        batch = data.micro_batches(0, range(clips))[0]
    return rehearse(recipe, config, data.vocabulary.size, batch, where, bf16=bf16)


def _time(steps: int, share: int, flops: int, speed: float, rehearsal: Rehearsal | None, machine: Machine) -> TimeEstimate:
    """Seconds until all processes have done their `share` clips of every step; `speed` is that of one device."""
    clips = share * machine.processes // machine.devices
    if rehearsal is not None:
        step_s = rehearsal.step_s(clips)
        return TimeEstimate(
            steps * step_s,
            f"about {clock(steps * step_s)} in all on {machine}, validation{', communication' * (machine.processes > 1)} and saving "
            f"left out: {step_s:.2g} s a step, as measured on {rehearsal.clips} clips of these data",
        )
    fast, slow = (3.0 * flops * clips * steps / (used * speed) for used in reversed(UTILISATION))
    return TimeEstimate(
        (fast * slow) ** 0.5,
        f"somewhere between {clock(fast)} and {clock(slow)} in all on {machine}; no step was measured: "
        f"the {machine.kind} multiplies matrices at {speed / 1e9:,.0f} GFLOP/s, "
        f"of which training reaches {UTILISATION[0]:.0%} to {UTILISATION[1]:.0%}",
    )


def _activations(recipe: Recipe, config: ModelConfig, clips: int, rehearsal: Rehearsal | None, bf16: bool) -> tuple[int, str]:
    """Bytes of a micro batch, and where the number comes from."""
    if rehearsal is not None and rehearsal.activation_bytes is not None:
        return rehearsal.activation_bytes * clips // rehearsal.clips, f"as {rehearsal.clips} clips of these data needed"
    return activation_bytes(recipe, config, clips, recipe.data.questions_per_clip, bf16=bf16), "estimated, with texts at their longest"


def _data_line(data: DataFound, units: int) -> str:
    if data.problem is not None:
        return f"the data are missing: {data.problem}"
    return (
        f"data: {data.clips:,} clips with {data.texts:,} texts = {data.units_per_epoch:,} units an epoch; "
        f"{units / data.units_per_epoch:.3g} epochs"
    )


def _table(table: list[PartCost], trainable: dict[str, int]) -> list[str]:
    """Part, parameters, how many of them are trained, GFLOP of a forward pass per clip."""
    trained = dict.fromkeys(PARTS, 0)
    for name, count in trainable.items():
        trained[part_named(name)] += count
    lines = [f"{'part':<16}{'parameters':>16}{'trained':>16}{'GFLOP/clip':>14}"]
    lines += [f"{row.part:<16}{row.parameters:>16,}{trained[row.part]:>16,}{row.flops / 1e9:>14.2f}" for row in table]
    total = [sum(row.parameters for row in table), sum(trained.values()), sum(row.flops for row in table)]
    return [*lines, f"{'all':<16}{total[0]:>16,}{total[1]:>16,}{total[2] / 1e9:>14.2f}"]
