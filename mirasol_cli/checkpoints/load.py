"""From a checkpoint folder to a model: tensors by name, verified and copied in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.checkpoints.folder import FROZEN, verify
from mirasol_cli.config.renamed import old_keys
from mirasol_cli.errors import CheckpointError, MirasolError
from mirasol_cli.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from mirasol_cli.checkpoints.tensor_files import StoredTensors
    from mirasol_cli.config.schema import Recipe
    from mirasol_cli.geometry import ClipGeometry
    from mirasol_cli.model.config import ModelConfig
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.text.tokenizer import Vocabulary


def read_tensors(checkpoint: Path, *stems: str) -> dict[str, Tensor] | None:
    """All tensors of these stems (`model`: `model.safetensors` or its numbered files), whole; None if there is none.

    Raises:
        CheckpointError: a file is not readable as safetensors.
    """
    from mirasol_cli.checkpoints.tensor_files import StoredTensors

    stored = StoredTensors(checkpoint, *stems)
    return dict(stored) if stored.stems else None


def stored_model(checkpoint: Path) -> StoredTensors:
    """The checkpoint's model, trained and frozen, to be read. Raises CheckpointError if there is none, or it is damaged."""
    from mirasol_cli.checkpoints.tensor_files import StoredTensors

    stored = StoredTensors(checkpoint, FROZEN, "model")
    if "model" not in stored.stems:
        raise CheckpointError(f"'{checkpoint / 'model.safetensors'}' is missing", "use another checkpoint")
    return stored


def read_model(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint's model, whole. Raises as `stored_model`."""
    return dict(stored_model(checkpoint))


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, on the CPU in evaluation mode."""

    model: Mirasol
    vocabulary: Vocabulary
    recipe: Recipe
    geometry: ClipGeometry
    path: Path
    step: int
    averaged: bool  # the weights are the moving average (EMA)
    usual_clip_s: float | None = None  # seconds that 95 % of its training clips did not exceed, where known


def load_model(checkpoint: Path) -> LoadedModel:
    """Verify and load a checkpoint; averaged weights are taken where it has them. What only training needs is not read.

    Raises:
        CheckpointError: it is missing, damaged, or does not fit its own config.
    """
    from mirasol_cli.config.reader import parse_recipe
    from mirasol_cli.geometry import ClipGeometry
    from mirasol_cli.model.config import ModelConfig
    from mirasol_cli.text.tokenizer import TOKENIZER_FILES, Vocabulary

    manifest = verify(checkpoint, ("model", FROZEN, "ema"))
    tokenizer = next((name for name in TOKENIZER_FILES if name in manifest["files"]), TOKENIZER_FILES[0])
    for name in ("config.json", "recipe.yaml", "state.json", tokenizer):
        if name not in manifest["files"]:
            raise CheckpointError(f"'{checkpoint / name}' is missing", "use another checkpoint")
    config = checked_config(checkpoint)
    try:
        geometry = ClipGeometry.from_plain(config["clip"])
        model = empty_model(ModelConfig.from_plain(config["model"]), geometry, int(config["vocab_size"]), config["losses"])
        step = int(read_json(checkpoint / "state.json")["step"])
        path = checkpoint / "recipe.yaml"
        recipe = parse_recipe(path.read_text(encoding="utf-8"), str(path))
    except (KeyError, TypeError, ValueError, MirasolError) as error:
        raise CheckpointError(
            f"'{checkpoint}' describes a model that this version cannot build: {error}", "use a matching mirasol"
        ) from error
    weights = read_model(checkpoint)
    averages = read_tensors(checkpoint, "ema")
    _fill(model, {**weights, **(averages or {})}, str(checkpoint))
    vocabulary = Vocabulary.from_file(checkpoint / tokenizer)
    if vocabulary.size != int(config["vocab_size"]):
        raise CheckpointError(
            f"'{checkpoint}': the tokenizer has {vocabulary.size} pieces, the model {config['vocab_size']}", "use another checkpoint"
        )
    usual = config.get("usual_clip_s")
    usual_clip_s = float(usual) if isinstance(usual, (int, float)) and usual > 0 else None
    return LoadedModel(model.eval(), vocabulary, recipe, geometry, checkpoint, step, averages is not None, usual_clip_s)


def empty_model(config: ModelConfig, geometry: ClipGeometry, vocab_size: int, losses: Sequence[str]) -> Mirasol:
    """The model without memory for its parameters: random numbers that a checkpoint replaces would cost a large model its time."""
    import torch

    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.model.tokens import TubeTokens, build_audio_tokens

    with torch.device("meta"):
        model = Mirasol(config, geometry, vocab_size, losses)
    # Small, and with tables of positions that no checkpoint holds.
    model.video_tokens = TubeTokens(geometry, config.video_trunk.width)
    model.audio_tokens = build_audio_tokens(geometry.audio, config.audio_trunk.width)
    return model


def _fill(model: Mirasol, tensors: Mapping[str, Tensor], source: str) -> None:
    """Make `tensors` the parameters of an empty model, in the model's types. Raises CheckpointError as `load_weights`."""
    own = model_tensors(model)
    _check_fit(own, tensors, source)
    model.load_state_dict({name: tensors[name].to(tensor.dtype) for name, tensor in own.items()}, assign=True)


def checked_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Raises CheckpointError where it holds keys that were renamed or removed since."""
    config = read_json(checkpoint / "config.json")
    old = list(old_keys(config)) if isinstance(config, dict) else []
    if old:
        said = [f"{before} is called {now} now" if now else f"{before} no longer exists" for before, now in old]
        names = ", ".join(said[:4]) + (", ..." if len(said) > 4 else "")
        raise CheckpointError(f"'{checkpoint}' uses outdated names of keys and tensors: {names}", "train it again")
    return config


def load_weights(model: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into the model; of a sharded one each process reads the rows that it holds.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    own = model_tensors(model)
    _check_fit(own, tensors, source)
    for name, tensor in own.items():
        copy_stored(tensor, tensors, name)


def copy_stored(target: Tensor, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy a tensor, or the rows of it that this process holds, into `target`."""
    import torch

    from mirasol_cli.checkpoints.tensor_files import rows_of
    from mirasol_cli.runtime.distributed import local_rows

    local, first = local_rows(target.detach())
    with torch.no_grad():
        local.copy_(tensors[name] if local.shape == target.shape else rows_of(tensors, name, first, len(local)))


def _check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    from mirasol_cli.checkpoints.tensor_files import shapes_of

    shapes = shapes_of(tensors)
    problems = [f"{name} is missing" for name in own.keys() - shapes.keys()]
    problems += [f"{name} is unknown to the model" for name in shapes.keys() - own.keys()]
    problems += [
        f"{name} has shape {list(shapes[name])}, the model {list(own[name].shape)}"
        for name in own.keys() & shapes.keys()
        if tuple(own[name].shape) != shapes[name]
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(
            f"the weights of '{source}' do not match the model: {shown}", "use the recipe that the checkpoint was trained with"
        )


def model_tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, in the sharding of this run."""
    return dict(model.state_dict(keep_vars=True))
