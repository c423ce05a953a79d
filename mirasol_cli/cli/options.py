"""Arguments and options that several commands share, what they do, and the completion of names. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirasol_cli.errors import UsageError

if TYPE_CHECKING:
    from mirasol_cli.config.schema import Recipe


def complete_recipe(incomplete: str) -> list[str]:
    from mirasol_cli.config.paths import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def complete_dataset(incomplete: str) -> list[str]:
    from mirasol_cli.datasets.registry import DATASETS

    return [name for name in DATASETS if name.startswith(incomplete)]


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.", autocompletion=complete_recipe)
]
RecipeOrRun = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|RUN", help="A run folder, the name of a shipped recipe, or a YAML file.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe keys to override, such as clip.size=112.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; messages go to stderr.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Use only the first N clips.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Device to use; auto picks a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="Number of CPU threads for torch.")]
Processes = Annotated[int | None, typer.Option("--nproc", min=1, metavar="N", help="Number of processes on this machine, one per GPU.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume from the run's newest complete checkpoint; start from step 0 if there is none.")
]
AcceptData = Annotated[
    bool, typer.Option("--accept-data", help="With --resume: accept shards that were repaired or retried since the run started.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Report parameters, memory and time without training.")]


def load_recipe(name: str, overrides: list[str] | None) -> Recipe:
    """The recipe of a command line, whose first word is the name."""
    from mirasol_cli.config import reader

    if "=" in name and not Path(name).exists():
        raise UsageError(f"expected a recipe, got '{name}'", "put the recipe first, then key=value")
    return reader.load_recipe(name, overrides or [])


READ_BY_EVAL = (
    "schema", "name", "data.dataset", "data.task", "data.shards", "data.fold", "data.folds", "data.sources", "data.audio", "data.video",
    "clip", "eval", "train.precision", "run.dir", "run.process_group_timeout_s",
)  # fmt: skip
"""Recipe keys and sections that an evaluation depends on; the model is the checkpoint's."""


def load_evaluated(name: str, overrides: list[str] | None) -> Recipe:
    """The recipe that `eval` works by: that of a run folder, which is then where results go, or any other.

    Raises:
        UsageError: a key that evaluation does not read is set.
    """
    from mirasol_cli.config.reader import is_run, load_run_recipe, unread_keys

    if unread := unread_keys(overrides or [], READ_BY_EVAL):
        raise UsageError(
            f"`eval` does not use {', '.join(unread)}: a checkpoint is evaluated as it was trained",
            "remove it; `eval` takes eval.*, data.*, clip.*, train.precision and run.dir",
        )
    return load_run_recipe(Path(name), overrides or []) if is_run(name) else load_recipe(name, overrides)


def set_threads(threads: int | None) -> None:
    """For the torch that is imported later, and for one that a library user has imported already."""
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def command_words(context: typer.Context, *, without: str) -> list[str]:
    """The command line that `context` was parsed from, as its words, leaving out one option (by its parameter's name)."""
    options, arguments = [str(context.info_name)], list[str]()
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        values = value if isinstance(value, (list, tuple)) else [value]
        if parameter.param_type_name == "argument":
            arguments += [str(one) for one in values if one is not None]
        elif isinstance(value, bool):
            options += [parameter.opts[0]] * value
        elif parameter.name != without:
            options += [word for one in values if one is not None for word in (parameter.opts[0], str(one))]
    return [*options, "--", *arguments]
