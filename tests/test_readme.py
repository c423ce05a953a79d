"""The README's commands: the quick ones run, the others are parsed and their recipes loaded; the long ones run with --slow."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from mirasol_cli.cli import app
from mirasol_cli.cli.recipes import _check_trainable
from mirasol_cli.config.paths import shipped_recipes
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.datasets.registry import open_dataset
from mirasol_cli.errors import UsageError
from mirasol_cli.prepare.command import recipe_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "tests" / "benchmarks" / "results"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)
SHELL = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
LINES = [line for line in SHELL if line and not line.startswith(("#", "export"))]
PARTS = [part.strip() for line in LINES for part in line.split("&&")]
MIRASOL = [part for part in PARTS if part.startswith("mirasol ")]
QUICK = [part for part in MIRASOL if part.split()[1] in ("--help", "doctor", "recipes") or "--dry-run" in part]


def test_the_readme_has_commands() -> None:
    assert len(MIRASOL) >= 15
    assert len(QUICK) >= 6
    assert LINES[0] == 'pip install -e . && mirasol ask demo "what is playing?"'  # from a fresh machine to an answer
    assert 'pip install -e ".[dev]" && pytest' in LINES  # `.ci/run` reads it here


@pytest.mark.parametrize("command", QUICK)
def test_quick_commands_run(command: str, tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mirasol_cli.cli.app import main; main()"
    arguments = [sys.executable, "-c", code, str(ROOT), *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 40


def recipe_meant(given: dict[str, Any]) -> str:
    """The recipe that a command's arguments lead to: the one that is named, else that of the data set or the manifest."""
    if given["recipe"]:
        return given["recipe"]
    dataset = given["dataset"]
    if not dataset.endswith((".jsonl", ".csv", ".json")):
        open_dataset(dataset)  # `recipe_of` takes any other name for a manifest
    return recipe_of(dataset, given.get("task"))


@pytest.mark.parametrize("command", [*MIRASOL, *(line.partition("mirasol_cli ")[2] for line in LINES if "torchrun" in line)])
def test_every_command_parses_and_its_recipe_loads(command: str) -> None:
    words = shlex.split(command.removeprefix("mirasol "))
    group = typer.main.get_command(app.app)
    if words[0].startswith("-"):
        return
    name, rest = words[0], words[1:]
    subcommand = group.commands[name]  # type: ignore[attr-defined]
    if name == "recipes":
        subcommand, rest = subcommand.commands[rest[0]], rest[1:]
    given = subcommand.make_context(name, rest).params
    if "overrides" in given:
        recipe = load_recipe(recipe_meant(given), given["overrides"] or ())
        if not any(value and value.startswith("hf:") for value in vars(recipe.init).values() if isinstance(value, str)):
            _check_trainable(recipe)


def test_a_wrong_name_in_the_readme_would_fail() -> None:
    assert recipe_meant({"recipe": None, "dataset": "my.jsonl"}) == "memorise"
    assert load_recipe(recipe_meant({"recipe": None, "dataset": "nextqa"})).data.dataset == "nextqa"  # no recipe has its name
    for given in ({"recipe": "demmo"}, {"recipe": None, "dataset": "demmo"}):
        with pytest.raises(UsageError):
            load_recipe(recipe_meant(given))


def test_table_of_recipes_is_complete_and_right() -> None:
    table = README.partition("| recipe |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")]
    named = {name: row for row in rows for name in re.findall(r"`([\w-]+)`", row[0])}
    assert sorted(named) == sorted(shipped_recipes())
    for name, row in named.items():
        recipe = load_recipe(name)
        assert row[1] == f"{recipe.clip.frames} / {recipe.clip.chunks}", name
        assert row[2] == ("yes" if recipe.data.audio else "no"), name
        header = (ROOT / "recipes" / f"{name}.yaml").read_text()
        for figure in re.findall(r"\d\d\.\d", row[3]):
            assert figure in header


def test_tour_names_files_that_exist() -> None:
    tour = README.partition("## The source")[2].partition("\n## ")[0]
    paths = [path for path in re.findall(r"`([\w/]+(?:\.py|/))`", tour)]
    assert len(paths) > 12
    folders = [path for path in paths if path.endswith("/")]
    for path in paths:
        places = [ROOT / "mirasol_cli" / path, *(ROOT / "mirasol_cli" / folder / path for folder in folders)]
        assert any(place.exists() for place in places), path


def test_exit_codes_are_those_of_the_program() -> None:
    from mirasol_cli import errors

    documented = {int(code) for code in re.findall(r"\b(\d{1,3}) [A-Za-z]", app.EXIT_CODES)}
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.MirasolError)]
    assert {error.exit_code for error in classes} <= documented
    assert {0, 129, 130, 143} <= documented


def results(name: str) -> list[dict[str, Any]]:
    """The rows of a result file; the first tells of the machine where the benchmark notes it."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]


def found(name: str, **wanted: Any) -> dict[str, Any]:
    """The one row of a result file with these values, measured more than once or not."""
    rows = [row for row in results(name) if all(row.get(key) == value for key, value in wanted.items())]
    return {key: value for row in rows for key, value in row.items()}


def ratio(name: str, key: str, one: dict[str, Any], other: dict[str, Any], **both: Any) -> float:
    return found(name, **one, **both)[key] / found(name, **other, **both)[key]


def measured() -> dict[str, tuple[str, str]]:
    """What stands in the table of measurements: first cell -> (result file, figures), computed from the result files."""
    ours, theirs = {"impl": "mirasol"}, {"impl": "mirasol-pytorch/sdpa"}
    steps = [ratio("rival", "train_step_s", ours, theirs, frames=frames) for frames in (16, 64, 256, 512)]
    memory = [ratio("rival", "rss_mb", ours, theirs, frames=frames) for frames in (16, 64, 256, 512)]
    generation = ratio("rival", "gen_tok_s", ours, theirs, frames=512)
    many, one = {"questions": 10}, {"questions": 1}
    once = [ratio("encode_once", "questions_per_s", many, one, stage=stage) for stage in ("training", "evaluation")]
    real_size = [
        ratio("prepare_real_size", "steady_s", {"who": "prepare"}, {"who": "bare"}, set=s) for s in ("10 s of 720p", "3 min of 360p")
    ]
    layouts = {"layout": "ours"}, {"layout": "tar, in order"}
    reading = [ratio("shard_reading", "clips_per_s", *layouts, size=size) for size in ("short clips", "long clips")]
    ttm, history = {"combiner": "ttm"}, {"combiner": "history"}
    combiner_s = ratio("ttm_against_transformer", "median_s", ttm, history, preset="small", chunks=16)
    gflops = found("ttm_against_transformer", preset="small", chunks=16)["gflops"]
    hours = [row for row in results("one_hour") if "hour" in row.get("video", "")]
    minutes = [row for row in results("one_hour") if "minute" in row.get("video", "")]
    more = max(row["peak_mb"] for row in hours) - min(row["peak_mb"] for row in minutes)
    frozen, all_trained = {"variant": "the same parts frozen, no LoRA"}, {"variant": "all weights trained"}
    lora = [
        ratio("public_weights", "peak_gib", variant, all_trained, recipe="vggsound-public")
        for variant in ({"variant": "as shipped"}, frozen)
    ]
    ten = [row for row in results("ten_million") if "what" in row]
    cold = ratio("startup", "median_s", {"what": "mirasol ask, cold"}, {"what": "import torch, decode the clip"})
    esc10 = {row["split"]: row["exact_match"] for row in results("real") if row.get("condition") == "esc10" and not row.get("again")}
    forest = [row["exact_match"] for row in results("real") if row.get("condition") == "a random forest on MFCC"]
    which = "the five folds" if len(esc10) == 5 else f"folds {', '.join(sorted(fold.removeprefix('fold') for fold in esc10))} of five"
    new_speaker = found("real", condition="digits, a new speaker")["exact_match"]
    digits = found("real", condition="digits", split="test")["exact_match"]
    open_s, private_mb = [row["open_s"] for row in ten], max(row["peak_private_mb"] for row in ten)
    still = [
        [row["still_s"] for row in results("save_stall") if row.get("way") == way][-1] for way in ("beside training", "training waits")
    ]
    padding = [found("text_padding", set="captions", window=window)["padding"] for window in (1, 4)]
    return {
        "a training step against the `mirasol-pytorch` package at one shape, 16 / 64 / 256 / 512 frames": (
            "rival", f"{' / '.join(f'{x:.2f}' for x in steps)} of its time, {min(memory):.2f} to {max(memory):.2f} of its memory"),
        "generation against the same, 512 frames": ("rival", f"{generation:.1f} times as fast"),
        "ten questions about a clip instead of one (`small`, 128 frames): questions/s in training, evaluation": (
            "encode_once", f"{once[0]:.1f} and {once[1]:.1f} times"),
        "`prepare` at 224 px against its own reader alone: 10 s of 720p, 3 min of 360p": (
            "prepare_real_size", f"{real_size[0]:.2f} and {real_size[1]:.2f} of its time"),
        "reading shards against a tar in order: clips of 0.4 MB, of 7 MB": (
            "shard_reading", f"{reading[0]:.1f} and {reading[1]:.1f} times as fast"),
        "opening a split of ten million clips: seconds, private memory of a process": (
            "ten_million", f"{min(open_s):.0f} to {max(open_s):.0f} s, {private_mb:.0f} MB"),
        "how long training stands still for a checkpoint of 5 GiB: saved beside training, against waiting for it": (
            "save_stall",
            f"{still[0] / still[1]:.2f} of the time",
        ),
        "padding of caption batches without and with `data.length_window=4`": (
            "text_padding", f"{100 * padding[0]:.0f} % and {100 * padding[1]:.0f} %"),
        "Token Turing Machine against the Transformer with history, 16 chunks (`small`)": (
            "ttm_against_transformer", f"{gflops['ttm']:.0f} against {gflops['history']:.0f} GFLOP, {combiner_s:.2f} of the time"),
        "`ask` about an hour of 360p against a minute of it": (
            "one_hour", f"+ {more:.0f} MB, {min(row['seconds'] / row['process_s'] for row in hours):.0f} times faster than real time"),
        "a step with LoRA, and with the same parts frozen, against all weights trained (`vggsound-public`)": (
            "public_weights", f"{lora[0]:.2f} and {lora[1]:.2f} of the memory"),
        "`mirasol ask demo`, cold, against importing torch and decoding": ("startup", f"{cold:.2f} of the time"),
        f"ESC-10 from random weights, audio alone: accuracy, mean of {which} (chance 10 %), and of a forest on MFCC": (
            "real", f"{100 * sum(esc10.values()) / len(esc10) + 1e-9:.1f} %, {100 * sum(forest) / len(forest) + 1e-9:.1f} %"),
        "spoken digits from a manifest, audio alone: official split, a speaker held out (chance 10 %)": (
            "real", f"{100 * digits:.1f} %, {100 * new_speaker:.1f} %"),
    }  # fmt: skip


def machine_of(name: str) -> str:
    noted = [row["machine"]["processor"] for row in results(name) if "machine" in row]
    return " ".join(noted[0].replace("(R)", "").replace(" Processor", "").split()) if noted else "not noted"


def test_table_of_measurements_equals_the_result_files() -> None:
    """Where a benchmark was run again, replace the rows that differ by those that are expected here."""
    table = README.partition("## What was measured")[2].partition("\n## ")[0]
    stands = [line for line in table.splitlines() if line.startswith("|")][2:]
    expected = [f"| {what} | {figures} | `{name}` | {machine_of(name)} |" for what, (name, figures) in measured().items()]
    assert stands == expected, "the rows should be:\n" + "\n".join(expected)
    assert all((RESULTS.parent / f"{name}.py").is_file() for name, _ in measured().values())
    assert ("The rows of the AMD EPYC are of an earlier version" in table) == any("| AMD EPYC |" in row for row in expected)
    assert ("Nothing has been run on a GPU" in table) == (not (RESULTS / "gpu.jsonl").exists())


def test_the_figure_of_the_demo_checkpoint_is_that_of_its_card() -> None:
    card = (ROOT / "mirasol_cli" / "assets" / "README.md").read_text()
    (of_card,) = re.findall(r"^\| all \| ([\d.]+) \|", card, flags=re.M)
    assert f"gives {of_card} % exact match" in README


def test_figures_stand_nowhere_else() -> None:
    """Every number with a decimal point is one of the measurements, of the card, or of a recipe's header (tested above)."""
    table = README.partition("## What was measured")[2].partition("\n## ")[0]
    rest = re.sub(r"```.*?```|https?://\S+|`[^`]*`|arXiv [\d.]+", "", README.replace(table, ""), flags=re.S)
    rest = "\n".join(line for line in rest.splitlines() if not line.startswith("|"))
    assert set(re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", rest)) <= {"92.6", "3.11", "2.0"}  # the card's (tested above), Python, Apache


def test_the_picture_is_there_and_small() -> None:
    (path,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert (ROOT / path).read_bytes().startswith(b"\x89PNG")
    assert (ROOT / path).stat().st_size < 150_000


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_the_first_line_gives_the_right_answer(tmp_path: Path) -> None:
    """The one line from a fresh machine to an answer, but for `pip install`; the README of the assets names the clip."""
    from mirasol_cli.demo.world import scenes

    assert "`demo.mp4` is clip `demo0-test-00041`" in (ROOT / "mirasol_cli" / "assets" / "README.md").read_text()
    (heard,) = scenes(0, "test", 42)[41].heard
    words = shlex.split(LINES[0].split("&&")[1])[1:]
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mirasol_cli.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code, str(ROOT), *words], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == heard
    assert "only knows the demo world" in done.stderr


@pytest.mark.slow
def test_the_demo_world_in_the_readme_runs(tmp_path: Path) -> None:
    """Its commands in a small form, shortened by overrides of the same kind; the world's first clips are the same in any size."""
    (block,) = [text for language, text in BLOCKS if language == "sh" and text.startswith("mirasol prepare demo")]
    short = {"prepare": ["data.clips=72"], "finetune": ["train.steps=60", "train.eval_every=0"], "eval": ["--limit", "8"]}
    for line in block.strip().splitlines():
        name, *words = shlex.split(line)[1:]
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mirasol_cli.cli.app import main; main()"
        command = [sys.executable, "-c", code, str(ROOT), name, *words, *short.get(name, [])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert done.stdout.strip()
