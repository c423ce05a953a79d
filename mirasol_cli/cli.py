"""The commands: parse, call, and turn every outcome into output and an exit code. The work is done elsewhere.

Nothing heavy is imported here: each command imports what does its work when it runs, so that `--help` and
completion answer at once.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mirasol_cli import __version__, console
from mirasol_cli.cli_arguments import (
    Device,
    Json,
    Limit,
    Overrides,
    Processes,
    RecipeOrRun,
    Threads,
    complete_dataset,
    complete_recipe,
    load_evaluated,
    option_words,
    set_threads,
)
from mirasol_cli.cli_recipes import recipes_app
from mirasol_cli.cli_train import HELP, training_command
from mirasol_cli.errors import EnvironmentProblem, Interrupted, MirasolError, RecipeError

EXIT_CODES = """\b
Exit codes:
  0 done                                     4 data, shard or checkpoint missing or corrupt
  1 internal error, please report it         5 environment (device, decoder, disk)
  2 usage or recipe                          6 training diverged
  3 more samples failed than allowed         130 Ctrl-C, 143 SIGTERM, 129 SIGHUP after a save"""

DISTRIBUTED = ("pretrain", "finetune", "eval")
"""Commands that several processes run together, as RANK and WORLD_SIZE say."""
AFTER_CTRL_C = {
    "prepare": "run the same command again: it resumes",
    "pretrain": "--resume goes on from the newest checkpoint, if there is one",
    "finetune": "--resume goes on from the newest checkpoint, if there is one",
    "eval": "run the same command again: the answers made so far are kept",
}


class _Commands(TyperGroup):
    """The commands; what Typer itself would answer without a word is said here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            name = ctx.invoked_subcommand
            raise Interrupted(f"`mirasol {name}` was stopped by Ctrl-C", Interrupted.CTRL_C, AFTER_CTRL_C.get(name)) from None
        except BrokenPipeError as error:  # not that of stdout or stderr, which `console` knows
            raise RuntimeError("the pipe to another process is broken") from error


app = typer.Typer(
    cls=_Commands,
    name="mirasol",
    help="Mirasol3B, open: video, sound and text in, text out.\n\nprepare -> pretrain -> finetune -> eval -> ask",
    epilog=EXIT_CODES,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(recipes_app, name="recipes")


# ------------------------------------------------------------------------------------------------ mirasol


def _version(wanted: bool) -> None:
    if wanted:
        console.print_result(f"mirasol {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Holds --version, and tells the console which commands speak for one process alone."""
    console.run_alone(context.invoked_subcommand not in DISTRIBUTED)


# ------------------------------------------------------------------------------------------------ prepare


class _PrepareCommand(TyperCommand):
    """`prepare`, whose help ends in the licences of the data sets (their readers are imported for it only then)."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from mirasol_cli.datasets.catalogue import licences

        with formatter.section("Licences of the data sets"):
            formatter.write_dl(list(licences().items()))


@app.command(cls=_PrepareCommand)
def prepare(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Name of a data set, or a JSONL or CSV manifest.", autocompletion=complete_dataset)
    ],
    overrides: Overrides = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Folder of annotations and videos; default data/DATASET, or the manifest's own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Shard folder; default data/NAME/shards/GEOMETRY, NAME of data set or manifest.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Recipe whose `clip:` to use.", autocompletion=complete_recipe)] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be repeated.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only this task's texts: qa, mc, oe, caption or label.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, metavar="N", help="Decoding processes; default all cores.")] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="local|ray", help="Workers here, or on a Ray cluster.")] = "local",
    part: Annotated[str | None, typer.Option("--part", metavar="I/N", help="Only part I of N, for array jobs; --merge ends them.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Check the parts and write the index.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the clips again that failed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, estimate bytes and time; write nothing.")] = False,
    inspect: Annotated[int, typer.Option("--inspect", min=0, metavar="N", help="Contact sheets of N clips per split.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every file with its checksum.")] = False,
    max_failed: Annotated[float, typer.Option("--max-failed", metavar="PCT", help="Percent of clips that may fail.")] = 1.0,
    strict: Annotated[bool, typer.Option("--strict", help="Count missing files as failed.")] = False,
    keep_truncated: Annotated[bool, typer.Option("--keep-truncated", help="Keep what is left of files cut short, marked.")] = False,
    allow_audio_only: Annotated[bool, typer.Option("--allow-audio-only", help="Keep files without a picture, masked.")] = False,
    classes: Annotated[str, typer.Option("--classes", metavar="31|32|34", help="kinetics-sounds: which class list.")] = "32",
    held_out: Annotated[float, typer.Option("--held-out", metavar="SHARE", help="vggsound: share of train that becomes val.")] = 0.02,
    limit: Limit = None,
    json: Json = False,
) -> None:
    """Videos and annotations into shards.

    Files that cannot be used cost a line in failures.jsonl and nothing else. A killed run goes on where it stopped.

    \b
    Examples:
      mirasol prepare demo
      mirasol prepare demo-long clip.frames=512 clip.chunks=64
      mirasol prepare msrvtt --root /videos/msrvtt --workers 16
      mirasol prepare my.jsonl --root my-videos --out shards clip.size=112
      mirasol prepare vggsound --part 3/8        (then once: mirasol prepare vggsound --merge)
    """
    from mirasol_cli.datasets.example import DatasetOptions
    from mirasol_cli.prepare import prepare as run_prepare

    result = run_prepare(
        dataset,
        root=root,
        out=out,
        recipe=recipe,
        overrides=overrides or (),
        splits=split or (),
        task=task,
        workers=workers,
        engine=engine,
        part=part,
        merge=merge,
        retry_failed=retry_failed,
        dry_run=dry_run,
        inspect=inspect,
        verify=verify,
        max_failed=max_failed,
        strict=strict,
        keep_truncated=keep_truncated,
        allow_audio_only=allow_audio_only,
        limit=limit,
        options=DatasetOptions(classes=classes, held_out=held_out),
        say=console.say,
    )
    if json:
        console.print_json(result)


# ------------------------------------------------------------------------------------------------ pretrain, finetune

for _stage, _help in HELP.items():
    app.command(_stage, help=_help)(training_command(_stage))


# ------------------------------------------------------------------------------------------------ eval


@app.command("eval")
def evaluate(
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
        str | None, typer.Option("--split", help="Split to evaluate on, or minitrain, minival: always the same 500 clips of train, val.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="C",
            help="Evaluate again with one input removed or exchanged: no-sound, no-picture, text-only, shuffle-chunks, swap-media, or all.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Score this file (at least id and prediction on each line); no model is loaded.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Predictions of another model, for a paired comparison.")] = None,
    nproc: Processes = None,
    limit: Limit = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Answer and score a split.

    Scores follow the benchmark's own protocol. Writes results.json, predictions.jsonl and report.html to <run>/eval/<split>/, which
    holds the run's best checkpoint on all questions; anything else goes to a folder beside it, named after what differs.

    \b
    Examples:
      mirasol eval runs/demo
      mirasol eval demo
      mirasol eval demo --control swap-media --control text-only
      mirasol eval msrvtt --split val --checkpoint latest --limit 100
      mirasol eval msrvtt --split minitrain      (memorized? 500 clips of train, always the same)
      mirasol eval msrvtt --predictions theirs.jsonl --baseline runs/msrvtt/eval/test/predictions.jsonl
    """
    set_threads(threads)
    loaded = load_evaluated(recipe, overrides)
    if nproc is not None and nproc > 1:
        from mirasol_cli.training.launch import launch

        options = ["--checkpoint", checkpoint, *option_words("--split", split), *option_words("--predictions", predictions)]
        options += [*option_words("--baseline", baseline), *option_words("--limit", limit)]
        options += ["--device", device, *option_words("--threads", threads), *["--json"] * json]
        options += [part for one in control or [] for part in ("--control", one)]
        raise typer.Exit(launch(["eval", *options, "--", recipe, *(overrides or [])], nproc))

    from mirasol_cli.evaluation.evaluate import evaluate as run_evaluation
    from mirasol_cli.evaluation.setting import Options

    options_given = Options(
        checkpoint=checkpoint,
        split=split,
        controls=tuple(control or ()),
        predictions=predictions,
        baseline=baseline,
        limit=limit,
        device=device,
    )
    with console.progress_bar("clip") as progress:
        results = run_evaluation(loaded, options_given, say=console.say, progress=progress)
    if json:
        console.print_json(results)
    elif results:  # there are none in the further processes of a distributed run
        console.print_result(console.metrics_table(results))


# ------------------------------------------------------------------------------------------------ ask


@app.command()
def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="A video file; `demo` is the sample clip in the package.")],
    question: Annotated[str | None, typer.Argument(metavar="[QUESTION]", help="Left out on a terminal: ask one after the other.")] = None,
    questions: Annotated[Path | None, typer.Option("--questions", help="A text file with one question per line.")] = None,
    context: Annotated[str, typer.Option("--context", metavar="TEXT", help="Title, description or subtitles.")] = "",
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="DIR", help="Run or checkpoint folder; default the newest finished run.")
    ] = None,
    start: Annotated[float | None, typer.Option("--start", min=0, metavar="S", help="Seconds: from here.")] = None,
    end: Annotated[float | None, typer.Option("--end", min=0, metavar="S", help="Seconds: to here.")] = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Also say which chunks and which modality the answer rests on; outside a session also drawn as `<video>-why.png` "
            "in the current folder.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N questions of the file.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Answer questions about one video.

    \b
    Examples:
      mirasol ask clip.mp4 "what is playing?"
      mirasol ask clip.mp4 "who speaks?" --context "a talk about birds" --start 10 --end 30
      mirasol ask clip.mp4 --questions questions.txt --json
      mirasol ask clip.mp4 "what is playing?" --checkpoint runs/demo --why
    """
    set_threads(threads)
    from mirasol_cli.media.workers import start_ahead

    start_ahead()  # importing torch takes most of the time of a short clip's answer, here and in the decoder: side by side
    from mirasol_cli.ask import ask as run_ask

    result = run_ask(
        video,
        question,
        questions=questions,
        context=context,
        checkpoint=checkpoint,
        start_s=start,
        end_s=end,
        why=why,
        limit=limit,
        device=device,
        stream=None if json else sys.stdout,
        say=console.say,
    )
    if json:
        console.print_json(result)


# ------------------------------------------------------------------------------------------------ doctor


@app.command()
def doctor(json: Json = False) -> None:
    """Check the environment.

    Python, torch, device, decoders, disk, memory, one line each.

    \b
    Examples:
      mirasol doctor
      mirasol doctor --json
    """
    from mirasol_cli.doctor import examine, summary

    checks = []
    for check in examine():
        checks.append(check)
        if not json:
            console.print_result(check.line())
    if json:
        console.print_json(summary(checks))
    if not summary(checks)["ok"]:
        raise typer.Exit(EnvironmentProblem.exit_code)


# ------------------------------------------------------------------------------------------------ errors, main


def _usage_error(error: Any, arguments: list[str]) -> tuple[str, str | None]:
    """One line and a hint for what Typer refuses. For an option that is a recipe key, the hint is what to write instead."""
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    help_hint = f"see: {context.command_path} --help" if context is not None else None
    option = getattr(error, "option_name", None)
    if not option or not message.startswith("no such option"):
        return message, help_hint
    if key := _recipe_key(option, arguments):
        at = next((i for i, argument in enumerate(arguments) if argument.partition("=")[0] == option), len(arguments))
        inline = "".join(arguments[at : at + 1]).partition("=")[2]
        value = inline or "".join(arguments[at + 1 : at + 2]) or "VALUE"
        return f"no such option: {option}", f"recipe keys are written without dashes: use {key}={value}"
    near = getattr(error, "possibilities", None) or []
    return f"no such option: {option}" + (f"; did you mean {near[0]}?" if near else ""), help_hint


def _recipe_key(option: str, arguments: list[str]) -> str | None:
    """The recipe key that an unknown option names, exactly or by its usual name, where the command takes recipe keys."""
    if not arguments or arguments[0] not in ("prepare", "pretrain", "finetune", "eval"):
        return None
    from mirasol_cli.recipe import USUAL_NAMES, known_keys

    name = option.lstrip("-").replace("-", "_")
    if name in known_keys():
        return name if "." in name else None
    exact = (key for key in known_keys() if key.rpartition(".")[2] == name)
    return USUAL_NAMES.get(name) or next(exact, None)


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. Every outcome is reported here."""
    as_json = "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
    try:
        command = typer.main.get_command(app)
        return int(command.main(args=arguments, prog_name="mirasol", standalone_mode=False) or 0)
    except RecipeError as error:
        error.message = "\n       ".join(error.problems) if not as_json else "\n".join(error.problems)
        return console.report_expected(error, as_json=as_json)
    except MirasolError as error:
        return console.report_expected(error, as_json=as_json)
    except Exception as error:
        if not hasattr(error, "format_message"):  # which Typer's own errors have: a wrong option, command or value
            problem = console.environment_problem(error)
            return console.report_expected(problem, as_json=as_json) if problem else console.report_bug(error, as_json=as_json)
        if type(error).__name__ == "NoArgsIsHelpError":
            console.print_result(error.format_message())
            return 2
        message, hint = _usage_error(error, arguments)
        console.report_error("usage", message, hint, as_json=as_json)
        return 2
    finally:
        console.run_alone(False)


def main() -> None:
    """The entry point `mirasol`."""
    console.use_any_encoding()
    console.guard_stderr()
    code = run(sys.argv[1:])
    if code == Interrupted.CTRL_C:  # else Python may end itself by the signal on its way out, and then there is no exit code
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.exit(code)
