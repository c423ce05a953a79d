"""Recipes: strict YAML in, the frozen dataclasses of `config.schema` out, with every error at once.

Reading goes in three steps: text -> `Value` tree (every value knows where it was written) -> presets, recipe and
command-line overrides laid over one another -> dataclasses. Unknown keys, wrong types and values out of range are
collected on the way, each with its place and the fix. `config.yaml` holds the first step.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mirasol_cli.config.families import recipe_keys
from mirasol_cli.config.paths import find_recipe, shipped_recipes
from mirasol_cli.config.renamed import RENAMED, RETIRED
from mirasol_cli.config.schema import SCHEMA, Recipe
from mirasol_cli.config.yaml import Value, dump_value, from_plain, lay_over, parse_scalar, parse_yaml
from mirasol_cli.errors import RecipeError
from mirasol_cli.fields import FieldError, check_folder_name, keys_of, to_plain, value_problem
from mirasol_cli.geometry import NAMED_TUBES, ClipGeometry, Tube
from mirasol_cli.model.config import PRESETS, ModelConfig

# What other trainers call these keys; difflib alone would not find them.
USUAL_NAMES = {
    "learning_rate": "train.lr", "batch_size": "train.global_batch_size", "batch": "train.global_batch_size", "max_steps": "train.steps",
    "epochs": "train.steps", "num_frames": "clip.frames", "num_chunks": "clip.chunks", "image_size": "clip.size",
    "resolution": "clip.size", "wd": "train.weight_decay", "warmup": "train.warmup_steps", "grad_clip": "train.max_grad_norm",
    "gradient_accumulation_steps": "train.micro_batch_size", "output_dir": "run.dir", "audio": "data.audio",
    "vocab_size": "init.vocab_size", "init_from": "init.checkpoint", "save_every": "train.checkpoint_every",
}  # fmt: skip

RUN_RECIPE = "recipe.yaml"
"""The file of a run folder that holds its recipe, every key written out."""


# ------------------------------------------------------------------------------------------------ loading


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a file, with the model preset filled in below it and `key=value` overrides on top.

    Raises:
        RecipeError: with one line per fault, all of them.
    """
    return _read(find_recipe(name_or_path), overrides)


def is_run(name_or_path: str) -> bool:
    """Whether the word names a folder rather than a recipe; a shipped recipe's name wins over a folder in the current one."""
    return Path(name_or_path).is_dir() and (name_or_path not in shipped_recipes() or os.sep in name_or_path)


def load_run_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run was trained with, `<folder>/recipe.yaml`, whose run folder is this one wherever it lies now.

    Raises:
        RecipeError: the folder is no run, or an override is wrong.
    """
    path = folder / RUN_RECIPE
    if not path.is_file():
        raise RecipeError([f"'{folder}' is not a run folder: it has no {RUN_RECIPE}"], "give a run folder, a recipe's name or a YAML file")
    recipe = _read(path, overrides)
    moved = any(override.partition("=")[0].strip() in ("run", "run.dir") for override in overrides)
    return recipe if moved else dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, dir=str(folder)))


def _read(path: Path, overrides: Sequence[str]) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"cannot read '{path}': {error}"]) from None
    return parse_recipe(text, str(path), overrides)


def parse_recipe(text: str, source_name: str, overrides: Sequence[str] = ()) -> Recipe:
    """`load_recipe` for the text of a recipe; `source_name` names it in messages."""
    tree = parse_yaml(text, source_name)
    if not isinstance(tree.content, dict):
        raise RecipeError([f"{tree.where}: a recipe is a set of `section: ...` lines, not {describe(tree)}"])
    reader = _Reader()
    reader.check_schema(tree)
    written, whole = tree, tree
    for override in overrides:
        whole = reader.override(whole, override)
    tree = _with_sizes(written, whole)
    for override in overrides:
        tree = reader.override(tree, override)
    tree = _with_trunks(_with_preset(tree))
    recipe = reader.section(Recipe, tree, "")
    if reader.problems or recipe is None:
        raise RecipeError(list(dict.fromkeys(reader.problems)))
    return recipe


def _with_preset(tree: Value) -> Value:
    """The tree with the preset that `model.preset` names laid below its `model` section."""
    model = tree.get("model")
    if model is not None and not isinstance(model.content, dict):
        return tree
    chosen = model.get("preset") if model is not None else None
    default = ModelConfig().preset
    name = chosen.content if chosen is not None else default
    if not isinstance(name, str) or name not in PRESETS:
        return tree
    preset = from_plain({"model": PRESETS[name]}, f"preset {name}")
    return lay_over(preset, tree)


FOLDERS = ("video_encoder", "audio_encoder", "text_decoder")
"""Keys of `init` that name model folders."""


def _with_sizes(tree: Value, whole: Value) -> Value:
    """The recipe as it is written, with what the model folders that `init` names say of sizes: those of a recipe's own folders lie below
    what it says, and above the preset; those of folders that came by an override (`whole` has all of them) lie above the recipe."""
    named = {key: value.content for key in FOLDERS if (value := _inner(whole, "init", key)) is not None and isinstance(value.content, str)}
    share = _inner(whole, "model", "encoder", "share")
    shares = share.content if share is not None and isinstance(share.content, bool) else None
    if any(_inner(whole, "model", key) is not None for key in ("video_encoder", "audio_encoder")):
        shares = False  # one of them has sizes of its own
    if shares is None and {"video_encoder", "audio_encoder"} <= named.keys():
        tree = lay_over(from_plain({"model": {"encoder": {"share": False}}}, "init"), tree)
    for key, keys in recipe_keys(named, share=shares).items():
        own, sizes = _inner(tree, "init", key), from_plain(keys, f"'{named[key]}/config.json'")
        tree = lay_over(sizes, tree) if own is not None and own.content == named[key] else lay_over(tree, sizes)
    return tree


def _with_trunks(tree: Value) -> Value:
    """The tree with `model.encoder` laid below the trunks that have sections of their own."""
    encoder = _inner(tree, "model", "encoder")
    if encoder is None or not isinstance(encoder.content, dict):
        return tree
    sizes = dataclasses.replace(encoder, content={key: value for key, value in encoder.content.items() if key != "share"})
    for key in ("video_encoder", "audio_encoder"):
        own = _inner(tree, "model", key)
        if own is not None and isinstance(own.content, dict):
            model = Value({key: sizes}, encoder.where)
            tree = lay_over(Value({"model": model}, encoder.where), tree)
    return tree


def _inner(tree: Value | None, *keys: str) -> Value | None:
    """The value below a path of keys, or None."""
    for key in keys:
        tree = tree.get(key) if tree is not None else None
    return tree


class _Reader:
    """Maps a `Value` tree onto dataclasses and collects what is wrong with it."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def problem(self, where: str, message: str) -> None:
        self.problems.append(f"{where}: {message}")

    def check_schema(self, tree: Value) -> None:
        schema = tree.get("schema")
        if schema is None:
            self.problem(tree.where, f"`schema: {SCHEMA}` is missing; write it as the first line")
        elif schema.content != SCHEMA or isinstance(schema.content, bool):
            # Every other line may mean something else in another schema: report this alone.
            raise RecipeError([f"{schema.where}: `schema` {schema.text} is not supported; this version of mirasol reads schema {SCHEMA}"])

    def override(self, tree: Value, override: str) -> Value:
        """The tree with one `a.b.c=value` laid over it."""
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            self.problems.append(f"'{override}' is not key=value, as in train.lr=1e-4")
            return tree
        where = f"'{override}'"
        try:
            value = parse_scalar(text, where)
        except RecipeError as error:
            self.problems.extend(error.problems)
            return tree
        if number := self.no_such_item(tree, parts):
            self.problems.append(f"{where}: {number}")
            return tree
        return tree.with_item(parts, value, where)

    @staticmethod
    def no_such_item(tree: Value, parts: Sequence[str]) -> str | None:
        """What is wrong with a key such as `data.sources.2.ratio` that names an item which the list does not have; else None."""
        section: Value | None = tree
        for position, part in enumerate(parts):
            if part.isdecimal() and not (section is not None and isinstance(section.content, list) and int(part) < len(section.content)):
                name = ".".join(parts[:position])
                count = len(section.content) if section is not None and isinstance(section.content, list) else 0
                return (
                    f"`{name}` has no item {part}: the recipe gives {count or 'none'}, counted from 0; write the whole list, {name}=[...]"
                )
            if section is not None:
                section = section.content[int(part)] if part.isdecimal() else section.get(part)
        return None

    def section(self, cls: type, value: Value, prefix: str) -> Any:
        """An instance of the dataclass `cls`, or None if anything in it is wrong (the problems then say what)."""
        if value.content is None:  # `eval:` with all its keys commented out
            value = dataclasses.replace(value, content={})
        if not isinstance(value.content, dict):
            keys = ", ".join(keys_of(cls))
            self.problem(value.where, f"`{prefix}` is a section with the keys {keys}; {describe(value)} was given")
            return None
        found_before = len(self.problems)
        fields, hints = keys_of(cls), _type_hints(cls)
        values: dict[str, Any] = {}
        for key, item in value.content.items():
            name = f"{prefix}.{key}" if prefix else key
            if name in RENAMED:
                self.problem(item.where, f"`{name}` was renamed to `{RENAMED[name]}`")
                continue
            if name in RETIRED:
                self.problem(item.where, f"`{name}` is not a recipe key: {RETIRED[name]}")
                continue
            if key not in fields:
                self.problem(item.where, _unknown_key(name, fields))
                continue
            values[key] = self.field(hints[key], item, name)
            wrong = value_problem(values[key], fields[key].metadata)
            if wrong:
                self.problem(item.where, f"`{name}`: {wrong}")
        for key, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and key not in value.content:
                self.problem(value.where, f"`{f'{prefix}.{key}' if prefix else key}` is missing: {field.metadata.get('help', '')}")
        if len(self.problems) > found_before:
            return None
        try:
            return cls(**values)
        except FieldError as error:
            name = prefix if error.key.split(".")[0] not in fields else f"{prefix}.{error.key}" if prefix else error.key
            self.problem(_where(value, error.key), f"`{name}`: {error.message}")
            return None

    def field(self, hint: Any, value: Value, name: str) -> Any:
        """`value` as the type `hint`; None, with a problem noted, if it is not one."""
        content = value.content
        if name == "clip.tubes" and isinstance(content, str):
            return self.named_tubes(value)
        if get_origin(hint) in (types.UnionType, typing.Union):
            if content is None:
                return None
            hint = next(option for option in get_args(hint) if option is not types.NoneType)
        if dataclasses.is_dataclass(hint):
            return self.section(typing.cast(type, hint), value, name)
        if get_origin(hint) is tuple:
            return self.items(get_args(hint), value, name)
        if hint is bool and isinstance(content, bool):
            return content
        if hint is str and isinstance(content, str):
            return content
        if hint in (int, float) and isinstance(content, (int, float)) and not isinstance(content, bool):
            return self.number(hint, value, name)
        self.problem(value.where, f"`{name}` is {_TYPE_WORDS[hint]}; {describe(value)} was given{_type_hint(hint, value)}")
        return None

    def number(self, hint: type, value: Value, name: str) -> int | float | None:
        number = value.content
        if abs(number) > 1e300 or not math.isfinite(number):  # in this order: `isfinite` takes no whole number beyond a float
            self.problem(value.where, f"`{name}` must be a finite number; {value.text} was given")
            return None
        if hint is float:
            return float(number)
        if number != int(number) or abs(number) >= 2**63:
            self.problem(value.where, f"`{name}` is a whole number; {value.text} was given")
            return None
        return int(number)  # 1e4 is a whole number too

    def items(self, hints: tuple[Any, ...], value: Value, name: str) -> tuple | None:
        if not isinstance(value.content, list):
            self.problem(value.where, f"`{name}` is a list, such as [a, b]; {describe(value)} was given")
            return None
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(value.content)
        elif len(hints) != len(value.content):
            self.problem(value.where, f"`{name}` takes {len(hints)} values; {len(value.content)} were given")
            return None
        return tuple(self.field(hint, item, f"{name}.{i}") for i, (hint, item) in enumerate(zip(hints, value.content, strict=True)))

    def named_tubes(self, value: Value) -> tuple[Tube, ...] | None:
        if value.content in NAMED_TUBES:
            return NAMED_TUBES[value.content]
        self.problem(value.where, f"`clip.tubes`: {value.content!r} is not one of {', '.join(NAMED_TUBES)}, nor a list of tubes")
        return None


_TYPE_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def describe(value: Value) -> str:
    """What was given, in words: `the text 'off'`, `the number 3`, `a list`."""
    content = value.content
    if isinstance(content, dict):
        return "a section"
    if isinstance(content, list):
        return "a list"
    if content is None:
        return "null"
    if isinstance(content, bool):
        return str(content).lower()
    return f"the text {content!r}" if isinstance(content, str) else f"the number {value.text}"


def _where(section: Value, key: str) -> str:
    """Where a (dotted) key of a section is written: its own line, else that of the innermost section around it."""
    for part in key.split("."):
        inner = section.get(part)
        if inner is None:
            break
        section = inner
    return section.where


def _type_hint(hint: Any, value: Value) -> str:
    """The way out of a wrong type, where there is an obvious one."""
    content = value.content
    if hint is bool and isinstance(content, str) and content.lower() in ("on", "yes", "off", "no"):
        return f"; write {'true' if content.lower() in ('on', 'yes') else 'false'}"
    if hint is str and not isinstance(content, (dict, list, type(None))):
        return f'; put it in quotes: "{value.text}"' + (" (inside the shell's own)" if value.where.startswith("'") else "")
    return ""


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def known_keys(cls: type = Recipe, prefix: str = "") -> tuple[str, ...]:
    """Every dotted key a recipe may hold, sections included, in declaration order."""
    return tuple(_walk_keys(cls, prefix))


def _walk_keys(cls: type, prefix: str) -> Iterator[str]:
    hints = _type_hints(cls)
    for name in keys_of(cls):
        hint = hints[name]
        if get_origin(hint) in (types.UnionType, typing.Union):
            hint = next(option for option in get_args(hint) if option is not types.NoneType)
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from _walk_keys(typing.cast(type, hint), f"{prefix}{name}.")


def unread_keys(overrides: Sequence[str], read: Sequence[str]) -> list[str]:
    """The recipe's keys that `overrides` set and that a command which reads only `read` (keys or sections) would ignore."""
    keys = {override.partition("=")[0].strip() for override in overrides} & set(known_keys())
    return sorted(key for key in keys if not any(f"{key}.".startswith(f"{one}.") or f"{one}.".startswith(f"{key}.") for one in read))


def nearest_key(key: str) -> str | None:
    """The known dotted key that `key` most likely means: by its usual name elsewhere, by its last part, by spelling."""
    last = key.rpartition(".")[2].replace("-", "_").lower()
    if last in USUAL_NAMES:
        return USUAL_NAMES[last]
    same_section = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.8)
    if same_section:
        return same_section[0]
    by_last: dict[str, str] = {}
    for known in known_keys():
        by_last.setdefault(known.rpartition(".")[2], known)
    near = difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)
    return by_last[near[0]] if near else None


def _unknown_key(name: str, fields: dict[str, Any]) -> str:
    near = nearest_key(name)
    if near and near != name:
        return f"unknown key `{name}`; did you mean `{near}`?"
    return f"unknown key `{name}`; known here: {', '.join(fields)}"


# ------------------------------------------------------------------------------------------------ writing


def renamed(text: str, name: str) -> str:
    """The text of a recipe with another `name`, and all else, comments included, as it was.

    Raises:
        RecipeError: the name cannot name a run folder.
    """
    try:
        check_folder_name("name", name)
    except FieldError as error:
        raise RecipeError([f"`name`: {error.message}"], "choose another file name") from None
    return re.sub(r"^name:.*$", lambda _: f"name: {dump_value(name)}", text, count=1, flags=re.MULTILINE)


def dump_recipe(recipe: Recipe, *, explain: bool = False) -> str:
    """The recipe with every key written out, as YAML that loads back equal; `explain` adds each key's help as a comment."""
    ordered = ["schema", "name", *(name for name in keys_of(recipe) if name not in ("schema", "name"))]
    return "\n".join(_lines(recipe, ordered, "", explain)) + "\n"


def _lines(section: Any, names: Sequence[str], indent: str, explain: bool) -> Iterator[str]:
    fields = keys_of(section)
    for name in names:
        value, help_text = getattr(section, name), fields[name].metadata.get("help", "")
        comment = f"  # {help_text}" if explain and help_text else ""
        if dataclasses.is_dataclass(value):
            yield f"{indent}{name}:{comment}"
            yield from _lines(value, list(keys_of(value)), indent + "  ", explain)
            continue
        named = next((tubes for tubes, kinds in NAMED_TUBES.items() if isinstance(section, ClipGeometry) and kinds == value), None)
        yield f"{indent}{name}: {named or dump_value(to_plain(value))}{comment}"
