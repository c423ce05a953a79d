"""`mirasol export`: a checkpoint to hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirasol_cli.cli.options import Json
from mirasol_cli.runtime import console


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder (its best checkpoint is taken), or a checkpoint folder.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="New folder.")],
    merge_lora: Annotated[bool, typer.Option("--merge-lora", help="Make LoRA's products part of the weights.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Weights in half precision (float16).")] = False,
    json: Json = False,
) -> None:
    """Write a run's weights as one folder.

    To hand on, or to start from. It holds the averaged weights where the run has them, the tokenizer and the recipe, and no training state.

    \b
    Examples:
      mirasol export runs/demo my-model
      mirasol export runs/vggsound-public my-model --merge-lora --half
      mirasol ask clip.mp4 "what is playing?" --checkpoint my-model
    """
    from mirasol_cli.checkpoints.export import export as write

    taken = write(source, out, half=half, merge=merge_lora)
    size = sum(path.stat().st_size for path in out.iterdir())
    if json:
        console.print_json({"checkpoint": str(taken), "out": str(out), "bytes": size})
    else:
        console.print_result(f"'{out}': {size / 1e6:.1f} MB from '{taken}'")
