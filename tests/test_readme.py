"""The README's commands: the quick ones run, the others are parsed and their recipes loaded; the long ones run with --slow."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from mirasol_cli.cli import app
from mirasol_cli.config.paths import shipped_recipes
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.datasets.registry import open_dataset
from mirasol_cli.errors import UsageError
from mirasol_cli.prepare.command import recipe_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
    assert LINES[1] == 'pip install -e ".[dev]" && pytest'


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
        load_recipe(recipe_meant(given), given["overrides"] or ())


def test_a_wrong_name_in_the_readme_would_fail() -> None:
    assert recipe_meant({"recipe": None, "dataset": "my.jsonl"}) == "memorise"
    assert load_recipe(recipe_meant({"recipe": None, "dataset": "nextqa"})).data.dataset == "nextqa"  # no recipe has its name
    for given in ({"recipe": "demmo"}, {"recipe": None, "dataset": "demmo"}):
        with pytest.raises(UsageError):
            load_recipe(recipe_meant(given))


def test_table_of_recipes_is_complete_and_right() -> None:
    table = README.partition("## Recipes")[2].partition("\nThe question sets")[0]
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
    assert len(paths) > 20
    folders = [path for path in paths if path.endswith("/")]
    for path in paths:
        places = [ROOT / "mirasol_cli" / path, *(ROOT / "mirasol_cli" / folder / path for folder in folders)]
        assert any(place.exists() for place in places), path


def test_exit_codes_are_those_of_the_program() -> None:
    from mirasol_cli import errors

    documented = {int(code) for code in re.findall(r"\| (\d+) \|", README.partition("exit code")[2].partition("As a library")[0])}
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.MirasolError)]
    assert {error.exit_code for error in classes} <= documented
    assert {0, 130, 143} <= documented


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
    block = README.partition("## The demo world")[2].partition("```sh\n")[2].partition("```")[0]
    short = {"prepare": ["data.clips=72"], "finetune": ["train.steps=60", "train.eval_every=0"], "eval": ["--limit", "8"]}
    for line in block.strip().splitlines():
        name, *words = shlex.split(line)[1:]
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mirasol_cli.cli.app import main; main()"
        command = [sys.executable, "-c", code, str(ROOT), name, *words, *short.get(name, [])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert done.stdout.strip()
