"""The shards of a training mixture, opened: splits, texts, and which texts belong to which clip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mirasol_cli.batches.order import ClipTexts, texts_by_clip
from mirasol_cli.config.paths import source_shards
from mirasol_cli.config.schema import Recipe, SourceRecipe
from mirasol_cli.errors import ShardError
from mirasol_cli.sample import AudioState
from mirasol_cli.shards.columns import ClipStatus, Texts
from mirasol_cli.shards.index import FAILURES, check_geometry
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from mirasol_cli.text.prompt import vocabulary_lines


@dataclass(frozen=True)
class OpenSource:
    """One source of the mixture: its texts and media on disk, and which texts belong to which clip."""

    recipe: SourceRecipe
    split: ShardSplit
    texts: Texts
    by_clip: ClipTexts

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What is learned from, told by checksums that the index holds: the same data wherever they lie."""
        index = self.split.index
        read = set(np.unique(self.by_clip.clips // index.clips_per_shard).tolist())
        shards = [shard for shard in index.shards if shard.number in read]
        return {
            "source": f"{self.recipe.dataset}/{self.recipe.split}",
            "clips": len(self.by_clip),
            "texts": len(self.by_clip.positions),
            "names of the clips": _digest(shard.clips_digest for shard in shards),
            "questions, answers or contexts": index.tasks[self.recipe.task].sha256,
            "video or audio": _digest(shard.sha256 for shard in shards),
        }

    @property
    def audible(self) -> int:
        """How many of the clips that are trained on have sound."""
        return int(np.count_nonzero(self.split.columns.audio[self.by_clip.clips] == AudioState.AUDIBLE))

    @property
    def seconds(self) -> np.ndarray:
        """float64, how long each clip is that is trained on."""
        return self.split.columns.seconds[self.by_clip.clips]


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
        if not len(split.kept):
            failed, missing = (np.count_nonzero(split.columns.status == status) for status in (ClipStatus.FAILED, ClipStatus.MISSING))
            raise ShardError(
                f"no clip of '{split.path}' could be read: {failed} failed, {missing} are missing",
                f"'{split.path / FAILURES}' says why; `mirasol prepare ... --retry-failed` tries them again",
            )
        if not len(by_clip):
            raise ShardError(
                f"'{split.path}' has no text with an answer for task '{source.task}'", "choose a split with answers (data.split)"
            )
        sources.append(OpenSource(source, split, texts, by_clip))
    return sources


def training_lines(sources: Sequence[OpenSource]) -> Iterator[str]:
    """All texts that are trained on, as a vocabulary sees them: prompts and answers, in the annotation's order."""
    for source in sources:
        for position in source.by_clip.positions:
            text = source.texts[position]
            yield from vocabulary_lines(text["question"], text["answer"], text["context"])
