"""The recipe that `prepare` works by, with the spectrogram that its audio encoder's weights need."""

from __future__ import annotations

from collections.abc import Sequence

from mirasol_cli.config.hub import HUB, download
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import CheckpointError
from mirasol_cli.geometry import AudioGeometry


def recipe_with_front_end(name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe. An audio encoder that is on the hub is downloaded if only its config.json tells what its weights need.

    Raises:
        RecipeError: a fault of the recipe.
        CheckpointError: `init.audio_encoder` names no folder that tells it; other shards than training needs would come of that.
        DataError, EnvironmentProblem: the download is refused or impossible.
    """
    recipe = load_recipe(name, overrides)
    encoder, untold = recipe.init.audio_encoder, AudioGeometry().frontend  # what the weights of no encoder take
    if encoder is not None and encoder.startswith(HUB) and recipe.clip.audio.frontend == untold:
        download(encoder)
        recipe = load_recipe(name, overrides)
    if encoder is not None and recipe.clip.audio.frontend == untold:
        raise CheckpointError(
            f"init.audio_encoder: '{encoder}' is no folder of an AST or Whisper, whose config.json would tell what spectrogram to make",
            "give such a folder, or remove the key",
        )
    return recipe
