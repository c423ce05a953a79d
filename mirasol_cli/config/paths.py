"""Where recipes, data sets and shards lie."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from mirasol_cli.config.schema import SourceRecipe
from mirasol_cli.errors import RecipeError
from mirasol_cli.geometry import ClipGeometry


def recipes_folder() -> Path:
    """The shipped recipes: inside an installed package, beside the package in a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe, sorted by name."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"), key=lambda path: path.stem)}


def find_recipe(name_or_path: str) -> Path:
    """The file of a shipped recipe's name (`demo`) or of a path.

    Raises:
        RecipeError: no such name or file; it lists near names.
    """
    shipped = shipped_recipes()
    looks_like_path = name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path or os.sep in name_or_path
    if not looks_like_path and name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError([f"'{name_or_path}' is a folder, not a recipe"], "pass a YAML file or a name listed by `mirasol recipes ls`")
    near = difflib.get_close_matches(path.stem, shipped, n=3, cutoff=0.5)
    what = f"the recipe file '{name_or_path}' does not exist" if looks_like_path else f"unknown recipe '{name_or_path}'"
    raise RecipeError([what + (f"; did you mean {' or '.join(near)}?" if near else "")], "run `mirasol recipes ls` to list them")


def recipe_header(path: Path) -> str:
    """The comment at the top of a recipe file, without the `#` marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return "\n".join(lines).strip()


def default_shards(dataset: str, geometry: ClipGeometry) -> Path:
    """The shard folder that `prepare` writes and `data.shards: null` reads: one function, so that they agree by construction."""
    return data_root(dataset) / "shards" / geometry.folder_name


def source_shards(source: SourceRecipe, geometry: ClipGeometry) -> Path:
    """Where one source's shards lie: where its recipe says, else in the default folder."""
    return Path(source.shards) if source.shards else default_shards(source.dataset, geometry)


def data_root(dataset: str) -> Path:
    """Where a data set's files are looked for: `data/<dataset>`; the environment variable MIRASOL_DATA replaces `data`."""
    return Path(os.environ.get("MIRASOL_DATA") or "data") / dataset
