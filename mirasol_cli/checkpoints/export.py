"""A checkpoint to hand on: one folder with all weights (the averaged ones where there are any) and no training state."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from mirasol_cli.checkpoints.folder import Contents, write_checkpoint
from mirasol_cli.checkpoints.load import load_model, model_tensors
from mirasol_cli.checkpoints.runs import resolve_checkpoint
from mirasol_cli.config.reader import dump_recipe
from mirasol_cli.errors import UsageError
from mirasol_cli.files import read_json
from mirasol_cli.model.config import LoraConfig
from mirasol_cli.model.lora import merge_lora


def export(source: Path, out: Path, *, half: bool = False, merge: bool = False) -> Path:
    """Write the best checkpoint of a run (or the checkpoint `source`) to `out`; returns the checkpoint that was taken.

    Args:
        half: float16 weights.
        merge: LoRA's products become part of the weights.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: `out` holds something already, or there is no LoRA to merge.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"'{out}' is not empty", "choose a new folder")
    loaded = load_model(resolve_checkpoint(source))
    config, recipe = read_json(loaded.path / "config.json"), loaded.recipe
    if merge:
        if not recipe.model.lora.parts:
            raise UsageError(f"'{loaded.path}' was trained without LoRA, so there is nothing to merge", "remove --merge-lora")
        merge_lora(loaded.model)
        recipe = replace(recipe, model=replace(recipe.model, lora=LoraConfig()))
        config["model"] = recipe.to_plain()["model"]
    tensors = {name: tensor.detach().to(torch.float16 if half else tensor.dtype) for name, tensor in model_tensors(loaded.model).items()}
    files = loaded.vocabulary.files | {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "recipe.yaml": dump_recipe(recipe).encode() if merge else (loaded.path / "recipe.yaml").read_bytes(),
        "state.json": (json.dumps({"step": loaded.step}) + "\n").encode(),
    }
    written = write_checkpoint(out.parent / f".{out.name}.export", loaded.step, Contents(files, {"model": tensors}))
    out.mkdir(parents=True, exist_ok=True)
    for path in written.iterdir():
        path.rename(out / path.name)
    shutil.rmtree(written.parent)
    return loaded.path
