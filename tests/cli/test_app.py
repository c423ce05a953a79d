"""The command line as a contract: help, options, JSON, exit codes, one helpful line for everything that is misspelt."""

import errno
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from mirasol_cli import __version__, errors
from mirasol_cli.cli import app
from mirasol_cli.config.reader import dump_recipe, load_recipe, parse_recipe
from mirasol_cli.runtime import console
from mirasol_cli.runtime import launch as launcher

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    *("prepare", "pretrain", "finetune", "eval", "ask", "export", "doctor"),
    *("recipes ls", "recipes show", "recipes cp", "recipes validate"),
]
CONTRACT = {
    "prepare": "--root --out --recipe --split --workers --engine --part --merge --retry-failed --dry-run --inspect --verify --max-failed "
    "--strict --keep-truncated --allow-audio-only --limit --json",
    "pretrain": "--resume --dry-run --nproc --limit --device --threads --json",
    "finetune": "--resume --dry-run --nproc --limit --device --threads --json",
    "eval": "--checkpoint --split --control --predictions --baseline --limit --device --threads --json",
    "export": "--merge-lora --half --json",
    "ask": "--questions --context --checkpoint --start --end --why --limit --device --threads --json",
    "doctor": "--json",
    "recipes ls": "--json",
    "recipes show": "--json",
    "recipes cp": "--json",
    "recipes validate": "--json",
}

Output = pytest.CaptureFixture[str]


def run(capsys: Output, *arguments: str) -> tuple[int, str, str]:
    code = app.run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def command_of(path: str) -> Any:
    command: Any = typer.main.get_command(app.app)
    for part in path.split():
        command = command.commands[part]
    return command


def fake(monkeypatch: pytest.MonkeyPatch, target: str, result: Any) -> list[inspect.BoundArguments]:
    """Replace a function by one that notes its arguments, after checking that the true one would take them."""
    module_name, _, name = target.rpartition(".")
    module = pytest.importorskip(module_name)
    signature = inspect.signature(getattr(module, name))
    calls: list[inspect.BoundArguments] = []

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        calls.append(signature.bind(*args, **kwargs))
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(module, name, stand_in)
    return calls


# ---------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("path", COMMANDS)
def test_help_has_every_option_of_the_contract_examples_and_a_text_for_each_option(path: str, capsys: Output) -> None:
    code, out, _ = run(capsys, *path.split(), "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"mirasol {path}" in out.partition("Examples:")[2]
    for option in CONTRACT[path].split():
        assert option in out
    for parameter in command_of(path).params:
        assert getattr(parameter, "help", None), f"{path}: {parameter.name} has no help"


def test_no_summary_is_cut_short(capsys: Output) -> None:
    for arguments in (["--help"], ["recipes", "--help"]):
        _, out, _ = run(capsys, *arguments)
        listed = out.partition("Commands:")[2].partition("Exit codes")[0]
        assert listed.count("\n") > 4
        assert "..." not in listed


def test_prepare_help_shows_the_licences(capsys: Output) -> None:
    _, out, _ = run(capsys, "prepare", "--help")
    assert "CC BY-NC 4.0" in out
    assert "non-commercial" in out.replace("-\n", "-")


def test_no_arguments_print_the_help_and_exit_2(capsys: Output) -> None:
    code, out, _ = run(capsys)
    assert code == 2
    assert "Exit codes:" in out


def test_version(capsys: Output) -> None:
    assert run(capsys, "--version") == (0, f"mirasol {__version__}\n", "")


HEAVY = ("torch", "numpy", "av", "decord", "torchaudio", "sentencepiece", "rich", "tqdm")


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--help"], {}),
        (["finetune", "--help"], {}),
        (["--version"], {}),
        ([], {"_MIRASOL_COMPLETE": "complete_bash", "COMP_WORDS": "mirasol finetune act", "COMP_CWORD": "2"}),
    ],
)
def test_help_and_completion_import_nothing_heavy(arguments: list[str], environment: dict[str, str]) -> None:
    code = f"""
        import atexit, sys
        atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr))
        sys.argv = ["mirasol", *{arguments}]
        from mirasol_cli.cli.app import main
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().splitlines()[-1] == "[]"
    if environment:
        assert done.stdout.split() == ["activitynet", "activitynet-512", "activitynet-public"]


# ---------------------------------------------------------------------------------------------- what is misspelt


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["finetun", "demo"], "no such command 'finetun'. Did you mean 'finetune'?"),
        (["finetune", "dmeo"], "unknown recipe 'dmeo'; did you mean demo"),
        (["finetune", "demo", "--lr", "3"], "write train.lr=3"),
        (["finetune", "demo", "--lr=3"], "write train.lr=3"),
        (["finetune", "demo", "--batch-size", "4"], "write train.global_batch_size=4"),
        (["finetune", "demo", "--train.lr", "3"], "write train.lr=3"),
        (["finetune", "demo", "--resum"], "no such option: --resum; did you mean --resume?"),
        (["finetune", "demo", "--frobnicate"], "no such option: --frobnicate"),
        (["finetune", "demo", "lr=3"], "unknown key `lr`; did you mean `train.lr`?"),
        (["finetune", "demo", "train.lr"], "is not key=value"),
        (["finetune", "train.lr=3", "demo"], "put the recipe first"),
        (["finetune", "missing.yaml"], "the recipe file 'missing.yaml' does not exist"),
        (["finetune"], "missing argument 'RECIPE'"),
        (["eval", "demo", "--limit", "zero"], "invalid value for '--limit'"),
        (["recipes", "sho", "demo"], "Did you mean 'show'?"),
        (["ask"], "missing argument 'VIDEO'"),
        (["prepare", "msrvt"], "msrvtt"),
    ],
)
def test_what_is_misspelt_gets_one_helpful_line_and_exit_2(arguments: list[str], line: str, capsys: Output) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert line in err
    assert out == ""
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err


def test_errors_as_json_are_one_object_on_stdout(capsys: Output) -> None:
    for arguments in (["finetune", "dmeo", "--json"], ["finetun", "--json"], ["finetune", "demo", "lr=3", "--json"]):
        code, out, err = run(capsys, *arguments)
        assert (code, err) == (2, "")
        assert set(json.loads(out)["error"]) == {"kind", "message", "hint"}
    assert json.loads(out)["error"]["kind"] == "recipe"


def test_json_never_holds_a_number_that_is_not_finite(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    result = {"run": "r", "step": 3, "metrics": {"loss": math.nan, "validation": {"n": 2, "scores": (math.inf, 0.5)}}}
    fake(monkeypatch, "mirasol_cli.training.loop.train", result)
    code, out, _ = run(capsys, "finetune", "demo", "--json")
    assert (code, "NaN" in out) == (0, False)
    assert json.loads(out)["metrics"] == {"loss": None, "validation": {"n": 2, "scores": [None, 0.5]}}


def test_all_problems_of_a_recipe_are_printed(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "r.yaml").write_text("schema: 1\nname: x\ntrain: {lrr: 1, steps: no}\n")
    code, _, err = run(capsys, "recipes", "validate", str(tmp_path / "r.yaml"), "eval.beams=0")
    assert code == 2
    assert err.startswith("error: ")
    assert all(fragment in err for fragment in ("r.yaml:3: unknown key `train.lrr`", "the text 'no' was given", "`eval.beams`: 0 is below"))


# ---------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (errors.UsageError("u"), 2, "usage"),
        (errors.TooManyFailures("f"), 3, "failures"),
        (errors.ShardError("s", "prepare it again"), 4, "shard"),
        (errors.EnvironmentProblem("e"), 5, "environment"),
        (errors.Diverged("d"), 6, "diverged"),
        (errors.Interrupted("saved", 143), 143, "interrupted"),
        (errors.Interrupted("saved", 130), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "shard-00000"), 5, "environment"),
        (PermissionError(errno.EACCES, "Permission denied", "shard-00000"), 5, "environment"),
        (MemoryError(), 5, "environment"),
        (OSError(errno.EIO, "I/O error", "x"), 1, "bug"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oh"), 1, "bug"),
    ],
)
def test_each_outcome_has_its_exit_code(
    error: BaseException, code: int, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake(monkeypatch, "mirasol_cli.cli.doctor.examine", error)
    assert run(capsys, "doctor")[0] == code
    got, out, _ = run(capsys, "doctor", "--json")
    assert got == code
    assert json.loads(out)["error"]["kind"] == kind


@pytest.mark.parametrize(
    ("arguments", "target", "hint"),
    [
        (["ask", "demo", "what is playing?"], "mirasol_cli.inference.command.ask", None),
        (["eval", "demo"], "mirasol_cli.evaluation.command.evaluate", "run the same command again to resume; the answers so far are kept"),
        (["finetune", "demo"], "mirasol_cli.training.loop.train", "use --resume to continue from the newest checkpoint"),
        (["prepare", "demo"], "mirasol_cli.prepare.command.prepare", "run the same command again to resume"),
    ],
)
def test_ctrl_c_says_what_happened(
    arguments: list[str], target: str, hint: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    fake(monkeypatch, target, KeyboardInterrupt())
    message = f"Ctrl-C stopped `mirasol {arguments[0]}`"
    assert run(capsys, *arguments) == (130, "", f"error: {message}\n" + (f"hint:  {hint}\n" if hint else ""))
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (130, "")
    assert json.loads(out) == {"error": {"kind": "interrupted", "message": message, "hint": hint}}


def test_ctrl_c_ends_with_its_code_wherever_it_strikes(tmp_path: Path) -> None:
    lines = ["import sys", "from mirasol_cli.cli import app, doctor"]
    lines += ["doctor.examine = lambda: exec('raise KeyboardInterrupt')"]  # as many libraries call it while they are imported
    lines += ["sys.argv = ['mirasol', 'doctor']", "app.main()"]
    (tmp_path / "struck.py").write_text("\n".join(lines))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-m", "struck"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "error: Ctrl-C stopped `mirasol doctor`\n")


def mirasol(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "mirasol_cli", *arguments]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=60, check=False, **options)


def test_a_reader_who_has_gone_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = mirasol("recipes", "ls", stdout=writing)
    os.close(writing)
    assert done.returncode == 0
    assert b"mirasol recipes show" in done.stderr  # what goes elsewhere is still written
    assert b"Error" not in done.stderr


def test_nobody_reading_the_messages_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "mirasol_cli", "recipes", "ls"], cwd=ROOT, stdout=subprocess.PIPE, stderr=writing, check=False
    )
    os.close(writing)
    assert done.returncode == 0
    assert b"demo" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_disk_under_stdout_is_the_environments_fault() -> None:
    for more in ([], ["--json"]):
        with open("/dev/full", "wb") as full:
            done = mirasol("recipes", "ls", *more, stdout=full)
        assert done.returncode == 5
        assert b"error: cannot write to stdout: No space left on device" in done.stderr


def test_a_terminal_of_another_encoding_gets_question_marks(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("# \u0645\u0631\u062d\u0628\u0627\nschema: 1\nname: x\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = mirasol("recipes", "show", str(tmp_path / "r.yaml"), stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, b"# ?????")


def test_json_loses_nothing_to_the_encoding_of_a_terminal(tmp_path: Path) -> None:
    name = "\u0645\u0631\u062d\u0628\u0627"
    (tmp_path / "r.yaml").write_text(f"schema: 1\nname: {name}\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = mirasol("recipes", "show", str(tmp_path / "r.yaml"), "--json", stdout=subprocess.PIPE, env=environment)
    assert json.loads(done.stdout)["name"] == name


def test_a_bug_saves_its_traceback_to_a_file_that_one_line_names(monkeypatch: pytest.MonkeyPatch, capsys: Output, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake(monkeypatch, "mirasol_cli.cli.doctor.examine", ZeroDivisionError("oh"))
    code, out, err = run(capsys, "doctor")
    (saved,) = tmp_path.iterdir()
    assert (code, out) == (1, "")
    assert "ZeroDivisionError: oh" in err
    assert str(saved) in err.splitlines()[0]
    assert "Traceback (most recent call last)" in saved.read_text()
    assert "Traceback" not in err


def test_too_many_failures_still_give_the_summary(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    error = errors.TooManyFailures("12 % failed", "see failures.jsonl")
    error.summary = {"splits": {}, "out": "x"}
    fake(monkeypatch, "mirasol_cli.prepare.command.prepare", error)
    code, out, _ = run(capsys, "prepare", "demo", "--json")
    assert code == 3
    error_json = {"kind": "failures", "message": "12 % failed", "hint": "see failures.jsonl"}
    assert json.loads(out) == {"splits": {}, "out": "x", "error": error_json}


# ---------------------------------------------------------------------------------------------- wiring


def test_prepare_passes_every_option_on(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    calls = fake(monkeypatch, "mirasol_cli.prepare.command.prepare", {"splits": {}, "out": "o"})
    line = (
        "prepare msrvtt --root r --out o --recipe msvd --split train --split val --task qa --workers 3 --engine ray --part 1/2 "
        "--retry-failed --dry-run --inspect 4 --verify --max-failed 7 --strict --keep-truncated --allow-audio-only "
        "--classes 31 --held-out 0.1 --limit 9 "
        "clip.size=112 --json"
    )
    code, out, _ = run(capsys, *line.split())
    given = calls[0].arguments
    assert (code, json.loads(out)) == (0, {"splits": {}, "out": "o"})
    assert (given["dataset"], given["root"], given["out"], given["recipe"]) == ("msrvtt", Path("r"), Path("o"), "msvd")
    assert (list(given["overrides"]), list(given["splits"]), given["task"]) == (["clip.size=112"], ["train", "val"], "qa")
    assert (given["workers"], given["engine"], given["part"], given["merge"]) == (3, "ray", "1/2", False)
    assert (given["inspect"], given["max_failed"], given["limit"]) == (4, 7.0, 9)
    for flag in ("retry_failed", "dry_run", "verify", "strict", "keep_truncated", "allow_audio_only"):
        assert given[flag] is True
    assert (given["options"].classes, given["options"].held_out) == ("31", 0.1)
    run(capsys, "prepare", "msrvtt", "--merge")
    assert calls[1].arguments["merge"] is True


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_training_passes_every_option_on(stage: str, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    calls = fake(monkeypatch, "mirasol_cli.training.loop.train", {"run": "runs/demo", "step": 5, "metrics": {}})
    code, out, err = run(capsys, stage, "demo", "train.lr=1", "--resume", "--limit", "3", "--device", "cpu", "--json")
    given = calls[0].arguments
    assert (code, json.loads(out), err) == (0, {"run": "runs/demo", "step": 5, "metrics": {}}, "")
    assert given["recipe"] == load_recipe("demo", ["train.lr=1"])
    assert (given["stage"], given["resume"], given["limit"], given["device"]) == (stage, True, 3, "cpu")
    assert run(capsys, stage, "demo", "train.lr=1")[1] == "runs/demo: finished after 5 steps\nnext: mirasol eval runs/demo\n"


def test_dry_run_passes_every_option_on(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    result = {"parameters": {"total": 1, "trainable": 1, "by_part": {}}, "flops_per_clip": 1, "memory_bytes": 1, "steps": 1}
    calls = fake(monkeypatch, "mirasol_cli.training.dry_run.dry_run", result)
    code, out, _ = run(capsys, "pretrain", "demo", "--dry-run", "--json", "--nproc", "2")
    assert (code, json.loads(out)) == (0, result)
    assert (calls[0].arguments["stage"], calls[0].arguments["processes"]) == ("pretrain", 2)


RESULTS = {
    "dataset": "demo", "split": "test", "n": 4, "missing": 1, "metrics": {"exact_match": 0.5}, "intervals": {"exact_match": [0.25, 0.75]},
    "by_type": {"order": {"n": 2, "exact_match": 1.0}}, "protocol": "exact",
}  # fmt: skip


def test_eval_passes_every_option_on(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    calls = fake(monkeypatch, "mirasol_cli.evaluation.command.evaluate", RESULTS)
    line = "eval demo --checkpoint latest --split val --control text-only --control all --predictions p --baseline b"
    code, out, _ = run(capsys, *line.split(), "--limit", "2", "--device", "cpu", "--json")
    options = calls[0].arguments["options"]
    assert (code, json.loads(out)) == (0, RESULTS)
    assert (options.checkpoint, options.split, options.controls) == ("latest", "val", ("text-only", "all"))
    assert (options.predictions, options.baseline, options.limit, options.device) == (Path("p"), Path("b"), 2, "cpu")
    _, table, _ = run(capsys, "eval", "demo")
    assert "exact_match                  0.5000  [0.2500, 0.7500]" in table
    assert "type order" in table
    fake(monkeypatch, "mirasol_cli.evaluation.command.evaluate", {**RESULTS, "by_type": {"": {"n": 4, "exact_match": 0.5}}})
    assert "type" not in run(capsys, "eval", "demo")[1]  # the questions have none


def test_eval_takes_a_run_folder_wherever_it_lies_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    calls = fake(monkeypatch, "mirasol_cli.evaluation.command.evaluate", RESULTS)
    moved = tmp_path / "moved here"
    moved.mkdir()
    (moved / "recipe.yaml").write_text(dump_recipe(load_recipe("demo", ["run.dir=runs/elsewhere", "train.lr=3"])))
    assert run(capsys, "eval", str(moved), "eval.decode=beam")[0] == 0
    recipe = calls[0].arguments["recipe"]
    assert (recipe.run_dir, recipe.train.lr, recipe.eval.decode) == (str(moved), 3.0, "beam")
    assert run(capsys, "eval", str(moved), f"run.dir={tmp_path}")[0] == 0
    assert calls[1].arguments["recipe"].run_dir == str(tmp_path)
    code, _, err = run(capsys, "eval", str(tmp_path))
    assert code == 2
    assert "is not a run folder: it has no recipe.yaml" in err


@pytest.mark.parametrize(
    "key", ["model.combiner.kind=mean", "train.lr=1", "loss.text=1", "init.vocab_size=300", "train={lr: 1}", "data.limit=3"]
)
def test_eval_refuses_keys_that_it_does_not_read(key: str, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    calls = fake(monkeypatch, "mirasol_cli.evaluation.command.evaluate", RESULTS)
    code, _, err = run(capsys, "eval", "demo", key, "eval.batch_size=3")
    name = key.partition("=")[0]
    if name == "train":  # a section that holds a key which is read
        assert code == 0
    else:
        assert code == 2
        assert f"`eval` does not use {name}: a checkpoint is evaluated as it was trained" in err
        assert not calls
    read = ["clip.size=48", "data.task=qa", "train.precision=float32", "run.dir=x", "eval={decode: beam}"]
    assert run(capsys, "eval", "demo", *read)[0] == 0


def test_ask_passes_every_option_on(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    calls = fake(monkeypatch, "mirasol_cli.inference.command.ask", {"answer": "a horn"})
    line = ["ask", "v.mp4", "what?", "--questions", "q.txt", "--context", "t", "--checkpoint", "c", "--start", "1", "--end", "2.5", "--why"]
    code, out, _ = run(capsys, *line, "--device", "cpu", "--json")
    given = calls[0].arguments
    assert (code, json.loads(out)) == (0, {"answer": "a horn"})
    assert (given["video"], given["question"], given["why"], given["device"]) == ("v.mp4", "what?", True, "cpu")


def test_threads_are_set_before_torch_is_imported() -> None:
    code = (
        "import os, sys; from mirasol_cli.cli import app, options; options.set_threads(3); "
        "print(os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["3", "False"]


# ---------------------------------------------------------------------------------------------- recipes, doctor


def test_recipes_commands(tmp_path: Path, capsys: Output) -> None:
    code, out, _ = run(capsys, "recipes", "ls")
    assert code == 0
    assert any(line.startswith("demo  ") for line in out.splitlines())
    assert {"name", "title"} == set(json.loads(run(capsys, "recipes", "ls", "--json")[1])["recipes"][0])

    _, out, _ = run(capsys, "recipes", "show", "demo", "train.lr=0.5")
    assert parse_recipe(out, "shown") == load_recipe("demo", ["train.lr=0.5"])
    assert out.startswith("# The demo world")
    assert "# peak learning rate" in out
    as_json = run(capsys, "recipes", "show", "demo", "--json")[1]
    assert parse_recipe(as_json, "shown") == load_recipe("demo")  # JSON is YAML, and what is shown is a recipe again

    target = tmp_path / "new" / "mine.yaml"
    assert run(capsys, "recipes", "cp", "demo", str(target))[0] == 0
    assert load_recipe(str(target)) == replace(load_recipe("demo"), name="mine")  # so that its runs go to a folder of their own
    assert target.read_text().splitlines()[0].startswith("# The demo world")
    code, _, err = run(capsys, "recipes", "cp", "demo", str(target))
    assert code == 2
    assert "already exists" in err
    assert run(capsys, "recipes", "cp", "msvd", str(target), "--force")[0] == 0
    assert load_recipe(str(target)).data.dataset == "msvd"
    spaced = tmp_path / "my dir" / "r.yaml"
    assert f"next: mirasol recipes validate '{spaced}'" in run(capsys, "recipes", "cp", "demo", str(spaced))[1]
    assert "cannot name a folder" in run(capsys, "recipes", "cp", "demo", str(tmp_path / " .yaml"))[2]
    assert run(capsys, "recipes", "cp", "demo", str(tmp_path))[0] == 0
    assert (tmp_path / "demo.yaml").is_file()

    code, out, _ = run(capsys, "recipes", "validate", "demo", "data.shards=here")
    assert code == 0
    assert "reads here; writes runs/demo" in out
    assert json.loads(run(capsys, "recipes", "validate", "demo", "--json")[1])["ok"] is True


SMALL_CLIPS = ["clip.frames=32", "clip.chunks=4", "clip.size=48", "clip.audio.n_mels=64", "clip.audio.columns=64", "model.preset=demo"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["msrvtt", *SMALL_CLIPS],
            "model.combiner.num_outputs: M = 32 outputs are more than the N = 31 tokens of a chunk; set it to 31 or less",
        ),
        (["demo", "freeze=['nosuch.*']"], "freeze: 'nosuch.*' matches no parameter"),
        (
            ["demo", "init.video_encoder=a", "init.audio_encoder=b", "model.encoder.share=true"],
            "would both fill the encoder that audio and video share",
        ),
        (["demo", "data.sources.0.ratio=2"], "`data.sources` has no item 0: the recipe gives none"),
        (["demo", "data.sources=[{dataset: a}]", "data.sources.1.ratio=2"], "`data.sources` has no item 1: the recipe gives 1"),
    ],
)
def test_validate_refuses_what_training_would_refuse(arguments: list[str], words: str, capsys: Output) -> None:
    code, _, err = run(capsys, "recipes", "validate", *arguments)
    assert code == 2
    assert words in err


def test_doctor_reports_each_part_and_survives_one_that_breaks(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    from mirasol_cli.cli import doctor

    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert (code, report["ok"], report["version"]) == (0, True, __version__)
    assert set(states) == set(doctor.CHECKS)
    assert {states[name] for name in ("python", "torch", "pyav", "torchaudio", "sentencepiece")} == {"ok"}

    def broken(name: str) -> doctor.Check:
        raise OSError("libcudart.so not found")

    monkeypatch.setattr(doctor, "CHECKS", {"torch": broken, "python": doctor.CHECKS["python"]})
    code, out, _ = run(capsys, "doctor")
    assert code == 5
    assert [line.split()[:2] for line in out.splitlines() if line[0] != " "] == [["fail", "torch"], ["ok", "python"]]


# ---------------------------------------------------------------------------------------------- several processes


def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put a package `mirasol_cli` that does `text` where the copies will find it first."""
    package = tmp_path / "mirasol_cli"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_nproc_starts_a_distributed_run_and_passes_the_exit_code_of_the_first_failure_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path,
        monkeypatch,
        """
        import os, sys, time
        names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
        open("rank" + os.environ["RANK"], "w").write(" ".join(os.environ[n] for n in names) + "|" + " ".join(sys.argv[1:]))
        if len(sys.argv) > 1 and sys.argv[1] == "fail":
            if os.environ["RANK"] == "1":
                sys.exit(6)
            time.sleep(60)
        """,
    )
    assert launcher.launch(["finetune", "demo"], 2) == 0
    seen = [(tmp_path / f"rank{rank}").read_text().split("|") for rank in (0, 1)]
    assert [one[0].split()[:4] for one in seen] == [["0", "0", "2", "2"], ["1", "1", "2", "2"]]
    assert {one[1] for one in seen} == {"finetune demo"}
    assert seen[0][0].split()[4:] == seen[1][0].split()[4:]
    started = time.monotonic()
    assert launcher.launch(["fail"], 2, grace_s=0.2) == 6
    assert time.monotonic() - started < 20


def test_nproc_passes_sigterm_on_and_a_kill_shows_as_128_plus_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        tmp_path,
        monkeypatch,
        """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        if sys.argv[1] == "kill" and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[1] == "term" and os.environ["RANK"] == "1":
            time.sleep(0.3)
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(30)
        """,
    )
    before = signal.getsignal(signal.SIGTERM)
    assert launcher.launch(["term"], 2) == 143
    assert launcher.launch(["kill"], 2, grace_s=0.1) == 137
    assert signal.getsignal(signal.SIGTERM) is before


def test_nproc_hands_the_command_line_on(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(launcher, "launch", lambda arguments, processes, **_: seen.append((arguments, processes)) or 6)
    code, _, _ = run(capsys, "finetune", "demo", "--nproc", "2", "--resume", "--limit", "3", "train.lr=1", "--json")
    assert code == 6
    assert seen == [(["finetune", "--resume", "--limit", "3", "--device", "auto", "--json", "--", "demo", "train.lr=1"], 2)]
    options = ["--checkpoint", "latest", "--split", "val", "--control", "no-audio", "--control", "text-only", "--baseline", "b.jsonl"]
    options += ["--limit", "5", "--device", "cpu", "--threads", "1", "--json"]
    assert run(capsys, "eval", *options, "--nproc", "2", "demo", "eval.batch_size=2", "eval.beams=3")[0] == 6
    assert seen[1] == (["eval", *options, "--", "demo", "eval.batch_size=2", "eval.beams=3"], 2)


def test_progress_without_a_terminal_counts_speed_from_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bar("clip", said.append) as progress:
        for done in range(500, 561, 5):  # 500 lay there from an interrupted evaluation
            progress(done, 1000)
            now[0] += 1.0
    assert said == ["550 of 1000 clips, 5.0 clips/s, 0:01:30 left"]


def test_nproc_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run(capsys, "finetune", "demo", "--nproc", "2")
    assert code == 2
    assert "remove --nproc" in err


@pytest.mark.parametrize("arguments", [["recipes", "ls"], ["doctor"], ["recipes", "validate", "demo"], ["recipes", "validate", "dmeo"]])
def test_a_rank_left_in_the_environment_silences_no_command_of_one_process(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, out, err = run(capsys, *arguments)
    assert out or err


def test_what_all_processes_meet_alike_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for error, told in ((errors.UsageError("u"), False), (errors.Interrupted("saved", 143), False), (errors.ShardError("s"), True)):
        fake(monkeypatch, "mirasol_cli.training.loop.train", error)
        code, _, err = run(capsys, "finetune", "demo")
        assert (code, bool(err)) == (error.exit_code, told)


def test_a_rank_without_a_world_means_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("RANK", "1")  # as a cluster may leave it in every container
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    console.say("talk")
    assert capsys.readouterr() == ("", "talk\n")


def test_accept_data_goes_with_resume(capsys: Output) -> None:
    code, _, err = run(capsys, "finetune", "demo", "--accept-data")
    assert code == 2
    assert "--accept-data needs --resume" in err


def test_further_processes_keep_quiet(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    console.say("talk")
    console.print_json({})
    assert capsys.readouterr() == ("", "")
    fake(monkeypatch, "mirasol_cli.evaluation.command.evaluate", {})  # they have no results
    assert run(capsys, "eval", "demo") == run(capsys, "eval", "demo", "--json") == (0, "", "")
