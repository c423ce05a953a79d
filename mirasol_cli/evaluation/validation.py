"""Figures of a model while it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mirasol_cli.evaluation.answerer import Answerer
from mirasol_cli.evaluation.generate import Plan, batches_of, predict
from mirasol_cli.evaluation.protocols import protocol_of
from mirasol_cli.recipe_schema import Recipe

if TYPE_CHECKING:
    import torch

    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.shards.reader import ShardSplit
    from mirasol_cli.vocabulary import Vocabulary


def validate(
    model: Mirasol, vocabulary: Vocabulary, split: ShardSplit, recipe: Recipe, *, task: str, limit: int | None = None,
    device: torch.device | str = "cpu", rank: int = 0, size: int = 1,
) -> dict[str, float]:  # fmt: skip
    """Figures of a model in training on `limit` clips of a split, drawn as for `minival`; the model returns to the mode it was in.

    Returns:
        n, and the sums `exact_match` and `exact_match_normalised` of this process's share of the batches (all of them by
        default), so that several processes add up; `validation_figures` divides.
    """
    protocol = protocol_of(recipe.data.training_sources()[0].dataset, task)
    settings = replace(recipe.eval, decode="greedy")
    was_training = model.training
    answerer = Answerer(model, vocabulary, settings, device, sound=recipe.data.sound, precision=recipe.train.precision)
    try:
        # Class names are only generated: ranking hundreds of them takes too long while training waits.
        plan = replace(Plan.of(split, task, protocol, sample=limit, seed=recipe.eval.seed), labels=())
        numbers = range(rank, batches_of(plan, recipe.eval.batch_clips), size)
        rows = [row for batch in predict(plan, answerer, numbers) for row in batch if row["correct"] is not None and not row.get("missing")]
    finally:
        model.train(was_training)
    return {
        "n": len(rows),
        "exact_match": sum(row["correct"] for row in rows),
        "exact_match_normalised": sum(row["correct_normalised"] for row in rows),
    }


def validation_figures(sums: dict[str, float]) -> dict[str, float]:
    """Fractions from the (added) sums of `validate`."""
    n = sums["n"]
    return {"n": int(n)} | {name: value / n if n else 0.0 for name, value in sums.items() if name != "n"}
