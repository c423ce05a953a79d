"""The validation that `pretrain` and `finetune` call every `train.eval_every` steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import DataError
from mirasol_cli.evaluation.job import EvaluationJob, Options
from mirasol_cli.evaluation.predict import Plan, batches_of, predict
from mirasol_cli.inference.answerer import Answerer, Question

if TYPE_CHECKING:
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.runtime.distributed import World
    from mirasol_cli.text.tokenizer import Vocabulary

VALIDATION_SPLIT = "val"


def validator(recipe: Recipe, say: Callable[[str], None]) -> Callable[[Mirasol, Vocabulary, World], Mapping[str, float]] | None:
    """Loss and exact match on `train.val_clips` clips of `val`, or None where nothing is to be validated on.

    They are always the same clips, drawn as those of `minival` are. The test split never chooses a checkpoint: without a
    `val` split there is no validation, and one line says so. Only a recipe that is evaluated on its own training split
    (`memorise`) is validated there.
    """
    if not recipe.train.eval_every:
        return None
    own = {source.split for source in recipe.data.training_sources()}
    name = recipe.eval_split if recipe.eval_split in own else VALIDATION_SPLIT
    job = EvaluationJob.of(recipe, Options(split=name))
    sample, seed = recipe.train.val_clips, recipe.eval.seed
    try:
        plan = Plan.of(job.open_split(), job.task, job.protocol, sample=sample, seed=seed)
    except DataError as error:
        if job.shards.is_dir():  # else training itself will say what is missing
            say(f"no validation during training: {error.message}")
        return None
    return lambda model, vocabulary, world: validation_figures(model, vocabulary, plan, recipe, world)


def validation_figures(model: Mirasol, vocabulary: Vocabulary, plan: Plan, recipe: Recipe, world: World) -> dict[str, float]:
    """Figures of a model in training, on the device where it is; it returns to the mode it was in. Each process takes every n-th batch
    of clips, and all get the same figures.

    Answers are decoded greedily. Class names are only generated: ranking hundreds of them takes too long while training waits.

    Returns:
        n, the number of labelled questions about clips that are present, the fractions `exact_match` and `exact_match_normalised` of
        them, and `loss`, the cross-entropy of their answers in nats a token, with teacher forcing (absent if there is no answer).
    """
    was_training = model.training
    settings, device = replace(recipe.eval, decode="greedy"), next(model.parameters()).device
    answerer = Answerer(model, vocabulary, settings, device, **recipe.data.modalities, precision=recipe.train.precision)
    try:
        sums = world.waiting.together(lambda: _sums(replace(plan, labels=()), answerer, world.rank, world.size))
    finally:
        model.train(was_training)
    n, correct, normalised, loss, tokens = world.waiting.sum(sums)
    return {
        **({"loss": loss / tokens} if tokens else {}),
        "n": n,
        "exact_match": correct / n if n else 0.0,
        "exact_match_normalised": normalised / n if n else 0.0,
    }


def _sums(plan: Plan, answerer: Answerer, rank: int, size: int) -> list[float]:
    """Questions, right answers, right ones normalised, loss and tokens of this process's batches."""
    batches = predict(plan, answerer, range(rank, batches_of(plan, answerer.settings.batch_size), size))
    rows = [row for batch in batches for row in batch if row["correct"] is not None and not row.get("missing")]
    return [
        float(len(rows)), sum(row["correct"] for row in rows), sum(row["correct_normalised"] for row in rows),
        *_loss(plan, answerer, rank, size),
    ]  # fmt: skip


def _loss(plan: Plan, answerer: Answerer, rank: int, size: int) -> tuple[float, float]:
    """The loss of the answers, summed over their tokens, and how many these are."""
    each = answerer.settings.batch_size
    texts = {
        clip: [(Question(row["question"], row["context"]), row["answer"]) for row in rows if row["answer"] is not None]
        for clip, rows in plan.clips
        if plan.split.has(clip)
    }
    clips = [clip for clip, rows in texts.items() if rows]
    total, tokens = 0.0, 0.0
    for start in range(rank * each, len(clips), size * each):
        batch = clips[start : start + each]
        text_kv = answerer.encode([plan.split.media(clip) for clip in batch])
        part, count = answerer.loss(text_kv, [texts[clip] for clip in batch])
        total, tokens = total + part, tokens + count
    return total, tokens
