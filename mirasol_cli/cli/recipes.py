"""`mirasol recipes`: list, show, copy and check recipes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirasol_cli.cli.options import Json, Overrides, RecipeName, load_recipe
from mirasol_cli.errors import UsageError
from mirasol_cli.runtime import console
from mirasol_cli.sample import bytes_per_clip

if TYPE_CHECKING:
    from mirasol_cli.config.schema import Recipe

recipes_app = typer.Typer(help="List, show, copy and check recipes.", rich_markup_mode=None, no_args_is_help=True)


@recipes_app.command("ls")
def recipes_ls(json: Json = False) -> None:
    """List the shipped recipes.

    \b
    Examples:
      mirasol recipes ls
      mirasol recipes ls --json
    """
    from mirasol_cli.config.paths import recipe_header, shipped_recipes

    titles = {name: recipe_header(path).partition("\n")[0] for name, path in shipped_recipes().items()}
    if json:
        console.print_json({"recipes": [{"name": name, "title": title} for name, title in titles.items()]})
    else:
        width = max(map(len, titles))
        console.print_result("\n".join(f"{name:{width}}  {title}" for name, title in titles.items()))
        console.say("\nrun `mirasol recipes show NAME` to see a recipe with every key explained")


@recipes_app.command("show")
def recipes_show(recipe: RecipeName, overrides: Overrides = None, json: Json = False) -> None:
    """Print a recipe with every key explained.

    The output is a valid recipe with all preset and default values filled in.

    \b
    Examples:
      mirasol recipes show activitynet
      mirasol recipes show activitynet model.preset=mirasol3b
    """
    from mirasol_cli.config.paths import find_recipe, recipe_header
    from mirasol_cli.config.reader import dump_recipe

    loaded = load_recipe(recipe, overrides)
    if json:
        console.print_json(loaded.to_plain())
    else:
        header = "".join(f"# {line}".rstrip() + "\n" for line in recipe_header(find_recipe(recipe)).splitlines())
        console.print_result(f"{header}\n{dump_recipe(loaded, explain=True)}".strip())


@recipes_app.command("cp")
def recipes_cp(
    recipe: RecipeName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Output file or folder.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    json: Json = False,
) -> None:
    """Copy a recipe with its comments, for editing.

    The copy takes its name from the file, so its runs get their own folder.

    \b
    Examples:
      mirasol recipes cp msrvtt my-msrvtt.yaml
    """
    from mirasol_cli.config.paths import find_recipe
    from mirasol_cli.config.reader import renamed
    from mirasol_cli.files import write_atomic

    source = find_recipe(recipe)
    target = file / source.name if file.is_dir() else file
    if target.exists() and not force:
        raise UsageError(f"'{target}' already exists", "add --force to overwrite it")
    write_atomic(target, renamed(source.read_text(encoding="utf-8"), target.stem))
    if json:
        console.print_json({"file": str(target), "name": target.stem})
    else:
        console.print_result(f"written: {target}\nnext: {shlex.join(['mirasol', 'recipes', 'validate', str(target)])}")


def _check_trainable(recipe: Recipe) -> None:
    """Build the model as training does, but without memory, and look into the model folders that `init` names.

    Raises RecipeError, UsageError, CheckpointError or DataError for what training would refuse. A checkpoint to start from may be made
    later, and with it the vocabulary.
    """
    from mirasol_cli.text.tokenizer import Vocabulary
    from mirasol_cli.training.setup import build_model, check_folders, check_init, freeze_parts, given_tokenizer

    check_init(recipe)
    given = given_tokenizer(recipe) if recipe.init.checkpoint is None else None
    model = build_model(recipe, Vocabulary.from_file(given).size if given else recipe.init.vocab_size, "meta")
    freeze_parts(model, recipe)
    if recipe.init.checkpoint is None:
        check_folders(model, recipe)


@recipes_app.command("validate")
def recipes_validate(recipe: RecipeName, overrides: Overrides = None, json: Json = False) -> None:
    """Check a recipe without data.

    Lists all errors at once, each with its line and the fix, including everything that training would refuse. Model folders are checked
    as well, from their config.json and file headers alone.

    \b
    Examples:
      mirasol recipes validate my-recipe.yaml
      mirasol recipes validate msrvtt clip.frames=64 clip.chunks=8
    """
    from mirasol_cli.config.paths import source_shards

    loaded = load_recipe(recipe, overrides)
    _check_trainable(loaded)
    clip = loaded.clip
    shards = [str(source_shards(source, clip)) for source in loaded.data.training_sources()]
    facts = {
        "ok": True,
        "name": loaded.name,
        "tokens_per_chunk": {"video": clip.video_tokens, "audio": clip.audio_tokens},
        "bytes_per_clip": bytes_per_clip(clip),
        "shards": shards,
        "run": loaded.run_dir,
    }
    if json:
        console.print_json(facts)
        return
    console.print_result(
        f"{recipe} is valid: {clip.chunks} chunks of {clip.frames_per_chunk} frames, "
        f"{clip.video_tokens} + {clip.audio_tokens} tokens each, {bytes_per_clip(clip) / 1e6:.1f} MB a clip\n"
        f"reads {', '.join(shards)}; writes {loaded.run_dir}"
    )
