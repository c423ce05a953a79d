"""From the order of units to micro-batches: media and texts, augmented."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mirasol_cli.batches.collate import media_batch, text_batch
from mirasol_cli.batches.length_windows import LengthWindows
from mirasol_cli.batches.order import Unit, UnitOrder
from mirasol_cli.batches.read_ahead import ReadAhead
from mirasol_cli.batches.sources import OpenSource
from mirasol_cli.batches.transfer import Parts, Sent, send
from mirasol_cli.config.schema import Recipe
from mirasol_cli.model.batch import MediaBatch, TextBatch, TrainingInputs
from mirasol_cli.text.prompt import encode_prompt, encode_target
from mirasol_cli.text.tokenizer import Vocabulary
from mirasol_cli.training.augment import Draw, StepDraw, augmented, mixed, retuned

Encoded = list[tuple[list[int], list[int]]]
"""Texts of one clip, each as prompt and target."""


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once."""

    media: MediaBatch
    text: TextBatch
    extra: TrainingInputs
    units: tuple[Unit, ...]
    sent: Sent | None = None  # the same, once it is on its way to a GPU

    @property
    def questions(self) -> int:
        return sum(len(unit.text_indices) for unit in self.units)

    def pinned(self) -> MicroBatch:
        """In pinned memory."""
        return replace(self, media=self.media.pinned(), text=self.text.pinned(), extra=self.extra.pinned())

    def sent_to(self, device: torch.device) -> MicroBatch:
        """With its copy to a GPU begun."""
        return replace(self, sent=send((self.media, self.text, self.extra), device))

    def on(self, device: torch.device) -> Parts:
        """What the model takes, there."""
        return (self.media.to(device), self.text.to(device), self.extra.to(device)) if self.sent is None else self.sent.received()


class TrainingData:
    """Micro batches of any step, for any share of the global batch."""

    def __init__(self, recipe: Recipe, sources: Sequence[OpenSource], vocabulary: Vocabulary):
        self.recipe, self.sources, self.vocabulary = recipe, sources, vocabulary
        self.order: UnitOrder | LengthWindows = UnitOrder(
            [source.by_clip for source in sources],
            [source.recipe.ratio for source in sources],
            recipe.data.questions_per_clip,
            recipe.train.seed,
        )
        if recipe.data.length_window > 1:
            size = {"batch": recipe.train.global_batch_size, "window": recipe.data.length_window}
            self.order = LengthWindows(self.order, [source.texts for source in sources], **size, seed=recipe.train.seed)
        self._readers = ThreadPoolExecutor(recipe.data.readers, thread_name_prefix="read-clip")

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """Of the clips and texts of all sources in their order."""
        return [source.fingerprint for source in self.sources]

    @cached_property
    def usual_clip_s(self) -> float:
        """Seconds that 95 % of the training clips do not exceed: what `ask` takes for an ordinary length."""
        seconds = np.concatenate([source.seconds for source in self.sources])
        place = int(0.95 * (len(seconds) - 1))
        return round(float(np.partition(seconds, place)[place]), 3)

    def step_units(self, step: int) -> list[Unit]:
        """The units of the global batch of a step (from 0)."""
        batch = self.recipe.train.global_batch_size
        return [self.order.unit(i) for i in range(step * batch, (step + 1) * batch)]

    def ahead(self, steps: range, share: range, device: torch.device) -> ReadAhead[list[MicroBatch]]:
        """The micro batches of consecutive steps, made ahead of time; on a GPU, the next ones are copied while it computes."""
        on_gpu, readers = device.type == "cuda", self.recipe.data.readers

        def make(step: int) -> list[MicroBatch]:
            batches = self.micro_batches(step, share)
            return [batch.pinned() for batch in batches] if on_gpu else batches

        def sent(batches: list[MicroBatch]) -> list[MicroBatch]:
            return [batch.sent_to(device) for batch in batches]

        early = max(2, -(-readers // len(share)))  # clips enough to keep all readers busy
        return ReadAhead(make, steps, ahead=early, threads=readers, send=sent if on_gpu else None)

    def micro_batches(self, step: int, share: range) -> list[MicroBatch]:
        """The units of `share` (positions in the global batch), at most `train.micro_batch_size` at once."""
        units = self.step_units(step)
        size = self.recipe.train.micro_batch_size or len(share)
        pieces = [share[start : start + size] for start in range(0, len(share), size)]
        step_draw = StepDraw.of(step_generator(self.recipe.train.seed, step), self.recipe.train.augment)
        return [self._micro_batch(units, piece, step_draw) for piece in pieces]

    def describe(self, unit: Unit) -> dict[str, Any]:
        """Names that a person can look up: data set, split, clip, texts."""
        source = self.sources[unit.source]
        return {
            "dataset": source.recipe.dataset,
            "split": source.recipe.split,
            "clip": source.split.clips[unit.clip]["key"],
            "texts": [source.texts[position]["id"] for position in unit.text_indices],
        }

    def _micro_batch(self, step_units: Sequence[Unit], positions: Sequence[int], step: StepDraw) -> MicroBatch:
        recipe, units = self.recipe, [step_units[position] for position in positions]
        rows, weights = [self._texts(unit) for unit in units], None
        if recipe.train.augment.mixup == 0:
            draws, media = self._recorded(units)
        else:
            # A clip's partner is the next one of the global batch, so that a sample is the same whoever makes it.
            partners = [(position + 1) % len(step_units) for position in positions]
            read = list(dict.fromkeys([*positions, *partners]))  # each once
            draws, media = self._recorded([step_units[position] for position in read])
            draws, others = draws[: len(units)], media.clips([read.index(partner) for partner in partners])
            media, shares = mixed(media.clips(range(len(units))), others, draws, recipe.clip)
            rows, weights = self._mixed_texts(rows, [step_units[partner] for partner in partners], shares)
        media, extra = augmented(media, draws, step, recipe.clip, keep_audio="audio" in recipe.loss.weights)
        return MicroBatch(media, text_batch(rows, weights), extra, tuple(units))

    def _recorded(self, units: Sequence[Unit]) -> tuple[list[Draw], MediaBatch]:
        """The clips' draws, and their media with what is done to each clip's sound alone."""
        recipe = self.recipe
        splits = [self.sources[unit.source].split for unit in units]
        draws = [
            Draw.of(sample_generator(recipe.train.seed, unit), recipe.train.augment, recipe.clip, split.views)
            for unit, split in zip(units, splits, strict=True)
        ]
        # Several readers, since on a shared store a clip takes its delay, however fast it is.
        read = self._readers.map(lambda split, unit, draw: split.media(unit.clip, draw.view), splits, units, draws)
        media = media_batch(list(read), recipe.clip, **recipe.data.modalities)
        return draws, retuned(media, draws, recipe.clip.audio)

    def _texts(self, unit: Unit) -> Encoded:
        texts = self.sources[unit.source].texts
        return [self._encode(texts[position]) for position in unit.text_indices]

    def _mixed_texts(
        self, rows: Sequence[Encoded], others: Sequence[Unit], shares: Sequence[float]
    ) -> tuple[list[Encoded], list[list[float]]]:
        """Each clip's own texts and those of the one mixed into it, and what each counts: its clip's share."""
        both, weights = [], []
        for row, other, share in zip(rows, others, shares, strict=True):
            others_row = self._texts(other) if share < 1 else []
            both.append([*row, *others_row])
            weights.append([share] * len(row) + [1 - share] * len(others_row))
        return both, weights

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
