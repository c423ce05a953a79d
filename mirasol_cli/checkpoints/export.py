"""A checkpoint to hand on: weights in half precision (the averaged ones where there are any), no training state.

python -m mirasol_cli.checkpoints.export runs/demo mirasol_cli/assets/demo
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from mirasol_cli.checkpoints.folder import Contents, write_checkpoint
from mirasol_cli.checkpoints.load import load_model, model_tensors
from mirasol_cli.checkpoints.runs import resolve_checkpoint
from mirasol_cli.errors import MirasolError, UsageError


def export(source: Path, out: Path) -> None:
    """Write the best checkpoint of a run (or the checkpoint `source`) to `out`, half as large or less.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UsageError: `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"'{out}' is not empty", "give a new folder")
    loaded = load_model(resolve_checkpoint(source))
    tensors = {name: tensor.detach().to(torch.float16) for name, tensor in model_tensors(loaded.model).items()}
    kept = {name: (loaded.path / name).read_bytes() for name in ("config.json", "recipe.yaml")} | loaded.vocabulary.files
    files = {**kept, "state.json": (json.dumps({"step": loaded.step}) + "\n").encode()}
    written = write_checkpoint(out.parent / f".{out.name}.export", loaded.step, Contents(files, {"model": tensors}))
    out.mkdir(parents=True, exist_ok=True)
    for path in written.iterdir():
        path.rename(out / path.name)
    shutil.rmtree(written.parent)


if __name__ == "__main__":
    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    except IndexError:
        sys.exit("usage: python -m mirasol_cli.checkpoints.export RUN OUT")
    except MirasolError as error:
        sys.exit(f"error: {error.message}" + (f"\nhint:  {error.hint}" if error.hint else ""))
