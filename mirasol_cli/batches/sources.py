"""The shards of a training mixture, opened: splits, texts, and which texts belong to which clip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mirasol_cli.batches.order import texts_by_clip
from mirasol_cli.config.paths import source_shards
from mirasol_cli.config.schema import Recipe, SourceRecipe
from mirasol_cli.errors import ShardError
from mirasol_cli.sample import AudioState
from mirasol_cli.shards.index import FAILURES, check_geometry
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from mirasol_cli.text.prompt import vocabulary_lines


@dataclass(frozen=True)
class OpenSource:
    """One source of the mixture, with its texts in memory and its media on disk."""

    recipe: SourceRecipe
    split: ShardSplit
    texts: list[dict[str, Any]]
    by_clip: dict[int, list[int]]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What is learned from, told by checksums that the index holds: the same data wherever they lie."""
        index, each = self.split.index, self.split.index.clips_per_shard
        read = {clip // each for clip in self.by_clip}
        records = [record for record in index.shards if record.number in read]
        return {
            "source": f"{self.recipe.dataset}/{self.recipe.split}",
            "clips": len(self.by_clip),
            "texts": sum(map(len, self.by_clip.values())),
            "names of the clips": _digest(record.clips_digest for record in records),
            "questions, answers or contexts": index.tasks[self.recipe.task].sha256,
            "pictures or sound": _digest(record.sha256 for record in records),
        }

    @property
    def audible(self) -> int:
        """How many of the clips that are trained on have sound."""
        states = {clip: state for record in self.split.index.shards for clip, state in zip(record.kept, record.audio, strict=True)}
        return sum(states[clip] == AudioState.AUDIBLE for clip in self.by_clip)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_sources(recipe: Recipe) -> list[OpenSource]:
    """The shards and texts of the recipe's mixture.

    Raises:
        ShardError: shards are missing, damaged, of another geometry, or without a text to train on.
    """
    sources = []
    for source in recipe.data.training_sources():
        path = source_shards(source, recipe.clip)
        split = ShardFolder(path).split(source.split)
        check_geometry(recipe.clip, split.geometry, split.path)
        texts = split.texts(source.task)
        by_clip = texts_by_clip(split, texts, recipe.data.limit)
        if not split.kept:
            counts = {name: sum(len(getattr(record, name)) for record in split.index.shards) for name in ("failed", "missing")}
            raise ShardError(
                f"no clip of '{split.path}' could be read: {counts['failed']} failed, {counts['missing']} are missing",
                f"'{split.path / FAILURES}' says why; `mirasol prepare ... --retry-failed` tries them again",
            )
        if not by_clip:
            raise ShardError(
                f"'{split.path}' has no text with an answer for task '{source.task}'", "train on a split with answers (data.split)"
            )
        sources.append(OpenSource(source, split, texts, by_clip))
    return sources


def training_lines(sources: Sequence[OpenSource]) -> Iterator[str]:
    """All texts that are trained on, as a vocabulary sees them: prompts and answers, in the annotation's order."""
    for source in sources:
        for positions in source.by_clip.values():
            for position in positions:
                text = source.texts[position]
                yield from vocabulary_lines(text["question"], text["answer"], text["context"])
