"""What is evaluated on what, and how: the options of `mirasol eval` and what follows from them and the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mirasol_cli.config.paths import source_shards
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import UsageError
from mirasol_cli.evaluation.protocols import Protocol, protocol_of
from mirasol_cli.evaluation.subsets import SUBSETS, Subset
from mirasol_cli.shards.index import check_geometry

if TYPE_CHECKING:
    from mirasol_cli.shards.reader import ShardSplit


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `mirasol eval` beside the recipe."""

    checkpoint: str = "best"  # best, latest, demo, or a folder
    split: str | None = None  # the recipe's eval_split by default
    controls: tuple[str, ...] = ()
    predictions: Path | None = None  # score this file; no model is loaded
    baseline: Path | None = None  # predictions to compare with
    limit: int | None = None  # only the first clips
    device: str = "auto"
    report: bool = True


@dataclass(frozen=True)
class EvaluationJob:
    """What is evaluated on what."""

    recipe: Recipe
    dataset: str
    task: str
    split: str  # as asked for: a prepared split, or a subset of one
    protocol: Protocol
    folder: Path  # <run>/eval/<split>
    shards: Path

    @staticmethod
    def of(recipe: Recipe, options: Options) -> EvaluationJob:
        source = recipe.data.training_sources()[0]
        split = options.split or recipe.eval_split
        if not split or Path(split).name != split or split in (".", ".."):
            raise UsageError(f"'{split}' is no name of a split")
        folder = Path(recipe.run_dir) / "eval" / split
        protocol, shards = protocol_of(source.dataset, source.task), source_shards(source, recipe.clip)
        return EvaluationJob(recipe, source.dataset, source.task, split, protocol, folder, shards)

    @property
    def subset(self) -> Subset | None:
        return SUBSETS.get(self.split)

    def open_split(self) -> ShardSplit:
        """The prepared split, of which a subset is a part. Raises ShardError where its geometry is not the recipe's."""
        from mirasol_cli.shards.reader import ShardFolder

        split = ShardFolder(self.shards).split(self.subset.split if self.subset else self.split)
        check_geometry(self.recipe.clip, split.geometry, split.path)
        return split
