"""The commands: parse, call, and turn every outcome into output and an exit code. The work is done elsewhere.

Nothing heavy is imported here: each command imports what does its work when it runs, so that `--help` and
completion answer at once.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mirasol_cli import __version__
from mirasol_cli.cli.ask import ask
from mirasol_cli.cli.doctor import doctor
from mirasol_cli.cli.evaluate import evaluate
from mirasol_cli.cli.export import export
from mirasol_cli.cli.output import environment_problem, report_bug, report_error, report_expected
from mirasol_cli.cli.prepare import PrepareCommand, prepare
from mirasol_cli.cli.recipes import recipes_app
from mirasol_cli.cli.train import HELP, training_command
from mirasol_cli.errors import Interrupted, MirasolError, RecipeError
from mirasol_cli.runtime.console import guard_stderr, print_result, run_alone, use_any_encoding

EXIT_CODES = """\b
Exit codes:
  0 done                                     4 data, shard or checkpoint missing or corrupt
  1 internal error, please report it         5 environment (device, decoder, disk)
  2 usage or recipe                          6 training diverged
  3 done, but too many samples failed        129 SIGHUP, 130 Ctrl-C, 143 SIGTERM: stopped"""

DISTRIBUTED = ("pretrain", "finetune", "eval")
"""Commands that several processes run together, as RANK and WORLD_SIZE say."""
AFTER_CTRL_C = {
    "prepare": "run the same command again to resume",
    "pretrain": "use --resume to continue from the newest checkpoint",
    "finetune": "use --resume to continue from the newest checkpoint",
    "eval": "run the same command again to resume; the answers so far are kept",
}


class _Commands(TyperGroup):
    """The commands; what Typer itself would answer without a word is said here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            name = ctx.invoked_subcommand
            raise Interrupted(f"Ctrl-C stopped `mirasol {name}`", Interrupted.CTRL_C, AFTER_CTRL_C.get(name)) from None
        except BrokenPipeError as error:  # not that of stdout or stderr, which `console` knows
            raise RuntimeError("the pipe to another process is broken") from error


app = typer.Typer(
    cls=_Commands,
    name="mirasol",
    help="An open implementation of Mirasol3B: video, audio and text in, text out.\n\nprepare -> pretrain -> finetune -> eval -> ask",
    epilog=EXIT_CODES,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(recipes_app, name="recipes")


def _version(wanted: bool) -> None:
    if wanted:
        print_result(f"mirasol {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Holds --version, and tells the console which commands speak for one process alone."""
    run_alone(context.invoked_subcommand not in DISTRIBUTED)


app.command(cls=PrepareCommand)(prepare)
for _stage, _help in HELP.items():
    app.command(_stage, help=_help)(training_command(_stage))
app.command("eval")(evaluate)
app.command()(ask)
app.command()(export)
app.command()(doctor)


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
        return f"no such option: {option}", f"recipe keys take no dashes: write {key}={value}"
    near = getattr(error, "possibilities", None) or []
    return f"no such option: {option}" + (f"; did you mean {near[0]}?" if near else ""), help_hint


def _recipe_key(option: str, arguments: list[str]) -> str | None:
    """The recipe key that an unknown option names, exactly or by its usual name, where the command takes recipe keys."""
    if not arguments or arguments[0] not in ("prepare", "pretrain", "finetune", "eval"):
        return None
    from mirasol_cli.config.reader import USUAL_NAMES, known_keys

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
        return report_expected(error, as_json=as_json)
    except MirasolError as error:
        return report_expected(error, as_json=as_json)
    except Exception as error:
        if not hasattr(error, "format_message"):  # which Typer's own errors have: a wrong option, command or value
            problem = environment_problem(error)
            return report_expected(problem, as_json=as_json) if problem else report_bug(error, as_json=as_json)
        if type(error).__name__ == "NoArgsIsHelpError":
            print_result(error.format_message())
            return 2
        message, hint = _usage_error(error, arguments)
        report_error("usage", message, hint, as_json=as_json)
        return 2
    finally:
        run_alone(False)


def main() -> None:
    """The entry point `mirasol`."""
    use_any_encoding()
    guard_stderr()
    code = run(sys.argv[1:])
    if code == Interrupted.CTRL_C:  # else Python may end itself by the signal on its way out, and then there is no exit code
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.exit(code)
