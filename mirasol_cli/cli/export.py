"""`mirasol export`: a checkpoint to hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirasol_cli.cli.options import Json
from mirasol_cli.runtime import console


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder (exports its best checkpoint) or checkpoint folder.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder; must be new or empty.")],
    merge_lora: Annotated[bool, typer.Option("--merge-lora", help="Merge LoRA into the weights.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in float16.")] = False,
    json: Json = False,
) -> None:
    """Export a run's weights to one folder.

    To share, or to start another run from. The folder holds the weights (averaged, if the run averages them), the tokenizer and the recipe,
    but no training state.

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
