"""Checks of a run's data before its first step: changed data, texts that are cut, losses with nothing to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mirasol_cli.batches.sources import OpenSource
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import DataError
from mirasol_cli.text.prompt import cut_tokens, encode_target
from mirasol_cli.training.data import TrainingData

MOST_TEXTS = 50_000
"""Texts that are looked at for what is cut; of more, every n-th."""


def changed_data(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between two fingerprints of training data, a line per source."""
    if len(before) != len(now):
        return [f"{len(before)} sources before, {len(now)} now"]
    lines = []
    for old, new in zip(before, now, strict=True):
        parts = [f"{old.get(key)} {key} before, {new[key]} now" for key in ("clips", "texts") if old.get(key) != new[key]]
        others = [key for key in new if key not in ("source", "clips", "texts") and old.get(key) != new[key]]
        parts += [f"other {key}" for key in others]
        if parts:
            lines.append(f"{new['source']}: {'; '.join(parts)}")
    return lines


def cut_texts(data: TrainingData) -> list[str]:
    """One sentence if questions, contexts or answers are longer than the model's limits, with how many of each."""
    limits, vocabulary = data.recipe.model.text, data.vocabulary
    count = sum(len(source.by_clip.positions) for source in data.sources)
    every = -(-count // MOST_TEXTS)
    most = (limits.max_context, limits.max_question, limits.max_answer)
    cut, looked_at, first = {"answers": 0, "questions": 0, "contexts": 0}, 0, 0
    for source in data.sources:
        positions = source.by_clip.positions[first::every]
        first, looked_at = (first - len(source.by_clip.positions)) % every, looked_at + len(positions)
        # A token is at least a byte, so that most texts need not be read to know that they fit.
        for position in positions[(source.texts.length[positions] >= most).any(axis=1)]:
            text = source.texts[position]
            left_out = cut_tokens(vocabulary, text["question"], text["context"], limits)
            cut["answers"] += encode_target(vocabulary, text["answer"], limits).cut > 0
            cut["questions"] += left_out.question > 0
            cut["contexts"] += left_out.context > 0
    if not any(cut.values()):
        return []
    texts = f"{looked_at:,} texts" if every == 1 else f"{looked_at:,} texts, sampled from {count:,}"
    parts = [
        f"{number:,} {name} (model.text.max_{name[:-1]}={getattr(limits, f'max_{name[:-1]}')})" for name, number in cut.items() if number
    ]
    return [f"of {texts}, these are longer than the model reads and are cut: {', '.join(parts)}"]


def empty_losses(recipe: Recipe, sources: Sequence[OpenSource]) -> list[str]:
    """A sentence for every loss that no clip has anything for.

    Raises:
        DataError: that is so of all losses.
    """
    reasons: dict[str, str] = {}
    if recipe.clip.chunks == 1:
        reasons = dict.fromkeys(("latent", "video", "audio"), "a clip is one chunk (clip.chunks=1), so there is no next one")
    else:
        reasons = {name: f"data.{name} is false" for name in ("video", "audio") if not getattr(recipe.data, name)}
    if "audio" not in reasons and "audio" in recipe.loss.weights and not any(source.audible for source in sources):
        reasons["audio"] = f"none of the {sum(len(source.by_clip) for source in sources):,} clips has audio"
    wanted = list(recipe.loss.weights)
    empty = [f"loss.{name} has nothing to learn from: {reasons[name]}" for name in wanted if name in reasons]
    if wanted and len(empty) == len(wanted):
        raise DataError("; ".join(empty), "train on other clips, or give another loss a weight")
    return empty
