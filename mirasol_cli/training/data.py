"""From the order of units to micro-batches: media and texts, augmented."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from mirasol_cli.batches.collate import media_batch, text_batch
from mirasol_cli.batches.order import Unit, UnitOrder
from mirasol_cli.batches.sources import OpenSource
from mirasol_cli.config.schema import Recipe
from mirasol_cli.model.batch import MediaBatch, TextBatch, TrainingInputs
from mirasol_cli.text.prompt import encode_prompt, encode_target
from mirasol_cli.text.tokenizer import Vocabulary
from mirasol_cli.training.augment import Draw, StepDraw, augmented


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once."""

    media: MediaBatch
    text: TextBatch
    extra: TrainingInputs
    units: tuple[Unit, ...]

    @property
    def questions(self) -> int:
        return sum(len(unit.text_indices) for unit in self.units)


class TrainingData:
    """Micro batches of any step, for any share of the global batch."""

    def __init__(self, recipe: Recipe, sources: Sequence[OpenSource], vocabulary: Vocabulary):
        self.recipe, self.sources, self.vocabulary = recipe, sources, vocabulary
        self.order = UnitOrder(
            [source.by_clip for source in sources],
            [source.recipe.ratio for source in sources],
            recipe.data.questions_per_clip,
            recipe.train.seed,
        )

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """Of the clips and texts of all sources in their order."""
        return [source.fingerprint for source in self.sources]

    @cached_property
    def usual_clip_s(self) -> float:
        """Seconds that 95 % of the training clips do not exceed: what `ask` takes for an ordinary length."""
        seconds: list[float] = []
        for source in self.sources:
            records = source.split.index.shards
            lengths = {clip: length for record in records for clip, length in zip(record.kept, record.seconds, strict=True)}
            seconds += [lengths[clip] for clip in source.by_clip]
        return round(sorted(seconds)[int(0.95 * (len(seconds) - 1))], 3)

    def step_units(self, step: int) -> list[Unit]:
        """The units of the global batch of a step (from 0)."""
        batch = self.recipe.train.global_batch_size
        return [self.order.unit(i) for i in range(step * batch, (step + 1) * batch)]

    def micro_batches(self, step: int, share: range) -> list[MicroBatch]:
        """The units of `share` (positions in the global batch), at most `train.micro_batch_size` at once."""
        units = self.step_units(step)
        size = self.recipe.train.micro_batch_size or len(share)
        pieces = [share[start : start + size] for start in range(0, len(share), size)]
        step_draw = StepDraw.of(step_generator(self.recipe.train.seed, step), self.recipe.train.augment)
        return [self._micro_batch([units[position] for position in piece], step_draw) for piece in pieces]

    def describe(self, unit: Unit) -> dict[str, Any]:
        """Names that a person can look up: data set, split, clip, texts."""
        source = self.sources[unit.source]
        return {
            "dataset": source.recipe.dataset,
            "split": source.recipe.split,
            "clip": source.split.clips[unit.clip]["key"],
            "texts": [source.texts[position]["id"] for position in unit.text_indices],
        }

    def _micro_batch(self, units: Sequence[Unit], step: StepDraw) -> MicroBatch:
        augment = self.recipe.train.augment
        samples, draws, rows = [], [], []
        for unit in units:
            source = self.sources[unit.source]
            draw = Draw.of(sample_generator(self.recipe.train.seed, unit), augment, self.recipe.clip, source.split.views)
            samples.append(source.split.media(unit.clip, draw.view))
            draws.append(draw)
            rows.append([self._encode(source.texts[position]) for position in unit.text_indices])
        media = media_batch(samples, self.recipe.clip, **self.recipe.data.modalities)
        media, extra = augmented(media, draws, step, self.recipe.clip, keep_audio="audio" in self.recipe.loss.weights)
        return MicroBatch(media, text_batch(rows), extra, tuple(units))

    def _encode(self, text: dict[str, Any]) -> tuple[list[int], list[int]]:
        limits = self.recipe.model.text
        prompt = encode_prompt(self.vocabulary, text["question"], text["context"], limits)
        return prompt.ids, encode_target(self.vocabulary, text["answer"], limits).ids


def sample_generator(seed: int, unit: Unit) -> torch.Generator:
    """The only source of randomness of a sample: the same for all questions about a clip in one epoch."""
    return _generator(f"{seed}/{unit.source}/{unit.epoch}/{unit.clip}")


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of what is drawn for all clips of a step, on all processes alike."""
    return _generator(f"{seed}/step/{step}")


def _generator(key: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1)
