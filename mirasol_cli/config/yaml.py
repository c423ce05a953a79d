"""A small, safe reading of YAML: plain data only, every value with the place where it was written.

It differs from `yaml.safe_load` in what surprises people: `1e-4` is a float; `on`, `off`, `yes`, `no`, dates and
`1:30` stay text; `012` is twelve; a key given twice is an error; there are no tags, anchors, aliases or merge keys.
The very same rules read the value of a `key=value` on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from mirasol_cli.errors import RecipeError

LARGEST_RECIPE = 1 << 20
"""Bytes; a recipe is a page of text, and this one may come from a stranger."""

_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_RESOLVERS = (
    ("float", _FLOAT, list("-+.0123456789")),
    ("int", _INT, list("-+0123456789")),
    ("bool", _BOOL, list("tTfF")),
    ("null", _NULL, ["~", "n", "N", ""]),
)


@dataclass(frozen=True)
class Value:
    """A node of a recipe: `content` is a dict or list of further Values, or a scalar; `where` is 'file:line' or the override."""

    content: Any
    where: str
    text: str = ""  # a scalar as it was written

    def get(self, key: str) -> Value | None:
        return self.content.get(key) if isinstance(self.content, dict) else None

    def with_item(self, parts: Sequence[str], value: Value, where: str) -> Value:
        """A copy in which `value` is laid over the item at the dotted path `parts`; a number picks from a list."""
        if not parts:
            return lay_over(self, value)
        first, rest = parts[0], parts[1:]
        if isinstance(self.content, list) and first.isdecimal() and int(first) < len(self.content):
            changed = list(self.content)
            changed[int(first)] = changed[int(first)].with_item(rest, value, where)
            return replace(self, content=changed)
        items = dict(self.content) if isinstance(self.content, dict) else {}
        items[first] = items.get(first, Value(None, where)).with_item(rest, value, where)
        return Value(items, self.where if isinstance(self.content, dict) else where)


def lay_over(below: Value, above: Value) -> Value:
    """`above` over `below`: sections are merged key by key, everything else is replaced; an empty section changes nothing."""
    if isinstance(below.content, dict) and above.content is None:
        return below
    if not (isinstance(below.content, dict) and isinstance(above.content, dict)):
        return above
    merged = dict(below.content)
    for key, value in above.content.items():
        merged[key] = lay_over(merged[key], value) if key in merged else value
    return replace(above, content=merged)


def from_plain(plain: Any, where: str) -> Value:
    """Dicts, lists and scalars as a Value tree that is all said to come from `where`."""
    if isinstance(plain, Mapping):
        return Value({key: from_plain(value, where) for key, value in plain.items()}, where)
    if isinstance(plain, (list, tuple)):
        return Value([from_plain(value, where) for value in plain], where)
    return Value(plain, where, str(plain))


class _Composer(yaml.SafeLoader):
    """PyYAML's parser with our scalar rules and without anchors, aliases and tags."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  (PyYAML's own way to hold them)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not supported in recipes", event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag} is not supported in recipes", event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that our rules would read as something else."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in _RESOLVERS:
    _Composer.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


def parse_yaml(text: str, source_name: str) -> Value:
    """The text as a Value tree.

    Raises:
        RecipeError: no YAML, an empty document, a key given twice (all of them), a tag, an anchor.
    """
    if len(text) > LARGEST_RECIPE:
        raise RecipeError([f"{source_name}: {len(text)} characters are too many for a recipe"])
    try:
        node = _compose(text)
        if node is None:
            raise RecipeError([f"{source_name}: the recipe is empty"])
        duplicates: list[str] = []
        value = _to_value(node, source_name, duplicates)
    except yaml.YAMLError as error:
        raise RecipeError([_yaml_problem(error, source_name)]) from None
    except RecursionError:
        raise RecipeError([f"{source_name}: it is nested too deeply"]) from None
    if duplicates:
        raise RecipeError(duplicates)
    return value


def parse_scalar(text: str, where: str) -> Value:
    """The value of a `key=value`: a scalar by the rules of a recipe; `[...]`, `{...}` and quoted text work too."""
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        tree = parse_yaml(text, where)
        return _all_from(tree, where)
    tag = _Composer("").resolve(yaml.ScalarNode, text, (True, False))
    return Value(_scalar(tag, text), where, text)


def _all_from(value: Value, where: str) -> Value:
    """The same tree without line numbers: a command-line value has none."""
    if isinstance(value.content, dict):
        return Value({key: _all_from(item, where) for key, item in value.content.items()}, where)
    if isinstance(value.content, list):
        return Value([_all_from(item, where) for item in value.content], where)
    return replace(value, where=where)


def dump_value(plain: Any) -> str:
    """Scalars, lists and dicts as one line of YAML that `parse_yaml` reads back equal."""
    text = _one_line(plain, readable=True)
    return text if text.isprintable() else _one_line(plain, readable=False)


def _one_line(plain: Any, readable: bool) -> str:
    text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, width=1 << 30, allow_unicode=readable, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _compose(text: str) -> yaml.Node | None:
    loader = _Composer(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _to_value(node: yaml.Node, source: str, duplicates: list[str]) -> Value:
    where = f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        items: dict[str, Value] = {}
        for key_node, value_node in node.value:
            place = f"{source}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in items:
                duplicates.append(f"{place}: the key `{key_node.value}` is given twice; its first place is {items[key_node.value].where}")
                continue
            items[key_node.value] = replace(_to_value(value_node, source, duplicates), where=place)
        return Value(items, where)
    if isinstance(node, yaml.SequenceNode):
        return Value([_to_value(item, source, duplicates) for item in node.value], where)
    return Value(_scalar(node.tag, node.value), where, node.value)


def _scalar(tag: str, text: str) -> Any:
    kind = tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text) if len(text) < 400 else float("inf")  # Python refuses to read very long integers
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _yaml_problem(error: yaml.YAMLError, source: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{source}:{mark.line + 1}: {what}" if mark else f"{source}: {what}"
