"""The validation that `pretrain` and `finetune` call every `train.evaluate_every` steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mirasol_cli.errors import ShardError
from mirasol_cli.evaluation.setting import Options, Setting
from mirasol_cli.evaluation.validation import validate, validation_figures
from mirasol_cli.recipe_schema import Recipe

if TYPE_CHECKING:
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.vocabulary import Vocabulary

VALIDATION_SPLIT = "val"


def validator(recipe: Recipe, say: Callable[[str], None]) -> Callable[[Mirasol, Vocabulary], Mapping[str, float]] | None:
    """Exact match on `train.evaluate_limit` clips of `val`, or None where nothing is to be validated on.

    They are always the same clips, drawn as those of `minival` are. The test split never chooses a checkpoint: without a
    `val` split there is no validation, and one line says so. Only a recipe that is evaluated on its own training split
    (`memorise`) is validated there.
    """
    if not recipe.train.evaluate_every:
        return None
    own = {source.split for source in recipe.data.training_sources()}
    name = recipe.eval.split if recipe.eval.split in own else VALIDATION_SPLIT
    setting = Setting.of(recipe, Options(split=name))
    try:
        split = setting.open_split()
    except ShardError as error:
        if setting.shards.is_dir():  # else training itself will say what is missing
            say(f"no validation during training: {error.message}")
        return None

    def figures(model: Mirasol, vocabulary: Vocabulary) -> Mapping[str, float]:
        device = next(model.parameters()).device
        limit = recipe.train.evaluate_limit
        return validation_figures(validate(model, vocabulary, split, recipe, task=setting.task, limit=limit, device=device))

    return figures
