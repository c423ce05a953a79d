"""`mirasol eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirasol_cli.cli.options import (
    Device,
    Json,
    Limit,
    Overrides,
    Processes,
    RecipeOrRun,
    Threads,
    command_words,
    load_evaluated,
    set_threads,
)
from mirasol_cli.cli.output import metrics_table
from mirasol_cli.runtime.console import print_json, print_result, progress_bar, say


def evaluate(
    context: typer.Context,
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint",
            metavar="best|latest|demo|DIR",
            help="Checkpoint to evaluate: best or latest of the run, the packaged demo, or a run or checkpoint folder.",
        ),
    ] = "best",
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split to evaluate. minitrain and minival are fixed samples of 500 clips of train and val."),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="C",
            help="Also evaluate with an input removed or replaced (no-audio, no-video, text-only, shuffle-chunks, swap-media), or without "
            "information from other chunks (own-chunk, no-memory, last-chunk). `all` runs every control that applies. Repeatable.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Score this file instead of running a model. Each line needs at least id and prediction."),
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Predictions of another model for a paired comparison.")] = None,
    nproc: Processes = None,
    limit: Limit = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Evaluate a model on a split.

    Scores follow the benchmark's own protocol. The best checkpoint's results on all questions go to <run>/eval/<split>/ (results.json,
    predictions.jsonl, report.html). Any other evaluation goes to a folder next to it, named after what differs.

    \b
    Examples:
      mirasol eval runs/demo
      mirasol eval demo
      mirasol eval demo --control swap-media --control text-only
      mirasol eval msrvtt --split val --checkpoint latest --limit 100
      mirasol eval msrvtt --split minitrain      (a fixed sample of 500 train clips: did it memorize?)
      mirasol eval msrvtt --predictions theirs.jsonl --baseline runs/msrvtt/eval/test/predictions.jsonl
    """
    set_threads(threads)
    loaded = load_evaluated(recipe, overrides)
    if nproc is not None and nproc > 1:
        from mirasol_cli.runtime.launch import launch

        raise typer.Exit(launch(command_words(context, without="nproc"), nproc))

    from mirasol_cli.evaluation.command import evaluate as run_evaluation
    from mirasol_cli.evaluation.job import Options

    options_given = Options(
        checkpoint=checkpoint,
        split=split,
        controls=tuple(control or ()),
        predictions=predictions,
        baseline=baseline,
        limit=limit,
        device=device,
    )
    with progress_bar("clip") as progress:
        results = run_evaluation(loaded, options_given, say=say, progress=progress)
    if json:
        print_json(results)
    elif results:  # there are none in the further processes of a distributed run
        print_result(metrics_table(results))
