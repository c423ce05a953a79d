"""`mirasol pretrain` and `mirasol finetune`: two names and two helps of one command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import typer

from mirasol_cli.cli.options import (
    AcceptData,
    Device,
    DryRun,
    Json,
    Limit,
    Overrides,
    Processes,
    RecipeName,
    Resume,
    Threads,
    command_words,
    load_recipe,
    set_threads,
)
from mirasol_cli.config.hub import download_all
from mirasol_cli.errors import UsageError
from mirasol_cli.runtime import console

HELP = {
    "pretrain": """Pretrain on captioned video.

    Trains all parts of the model, from random weights or from `init.*`.

    Ctrl-C, SIGTERM and SIGHUP save a checkpoint after the current step, then stop. A second Ctrl-C stops without saving.

    \b
    Examples:
      mirasol pretrain demo-pretrain
      mirasol pretrain pretrain --nproc 8 train.global_batch_size=512
      mirasol pretrain pretrain --resume
      mirasol pretrain pretrain --dry-run model.preset=mirasol3b
    """,
    "finetune": """Finetune on questions, captions or labels.

    Usually starts from a pretrained checkpoint (`init.checkpoint`).

    \b
    Examples:
      mirasol finetune demo
      mirasol finetune msrvtt init.checkpoint=runs/pretrain train.lr=3e-5
      mirasol finetune activitynet --nproc 8 --resume
      mirasol finetune my-recipe.yaml data.shards=shards
    """,
}
"""Stage -> its help."""


def training_command(stage: str) -> Callable[..., None]:
    """The command of a stage, for Typer: it reads the arguments off the signature."""

    def train_stage(
        context: typer.Context,
        recipe: RecipeName,
        overrides: Overrides = None,
        resume: Resume = False,
        accept_data: AcceptData = False,
        dry_run: DryRun = False,
        nproc: Processes = None,
        limit: Limit = None,
        device: Device = "auto",
        threads: Threads = None,
        json: Json = False,
    ) -> None:
        set_threads(threads)
        if accept_data and not resume:
            raise UsageError("--accept-data needs --resume: a new run accepts any data", "add --resume or drop --accept-data")
        loaded = load_recipe(recipe, overrides)
        if not dry_run and not resume and download_all(loaded.init):
            loaded = load_recipe(recipe, overrides)  # now that the folders are there, with their sizes
        if nproc is not None and nproc > 1 and not dry_run:
            from mirasol_cli.checkpoints.runs import correct_exit_code
            from mirasol_cli.runtime.launch import launch

            correct = partial(correct_exit_code, Path(loaded.run_dir))
            raise typer.Exit(launch(command_words(context, without="nproc"), nproc, correct=correct))
        if dry_run:
            from mirasol_cli.training.dry_run import dry_run as estimate

            say = console.say if json else console.print_result
            result = estimate(loaded, stage=stage, device=device, limit=limit, processes=nproc or 1, say=say)
            text = None
        else:
            from mirasol_cli.evaluation.validation import validator
            from mirasol_cli.training.loop import train

            validate = validator(loaded, console.say)
            result = train(
                loaded, stage=stage, resume=resume, accept_data=accept_data, limit=limit, device=device, threads=threads, validate=validate
            )
            text = f"{result['run']}: finished after {result['step']} steps\nnext: {shlex.join(['mirasol', 'eval', result['run']])}"
        if json:
            console.print_json(result)
        elif text:
            console.print_result(text)

    return train_stage
