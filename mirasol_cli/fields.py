"""A documented, range-checked field of a frozen settings dataclass.

Every key that a recipe may hold is declared once, with `checked_field(...)`; the recipe loader,
`mirasol recipes show` and the documentation all read that one declaration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def checked_field(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    factory: Any = dataclasses.MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field with a one-line help text and the values it allows.

    `minimum` and `maximum` are inclusive, `above` is exclusive; `choices` lists the allowed words.
    The checks are made by `check_fields`, which every settings class calls in `__post_init__`.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "above": above, "choices": choices}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class FieldError(ValueError):
    """A value that its key does not allow. `key` is the field's name inside its own section."""

    def __init__(self, key: str, message: str):
        super().__init__(f"{key}: {message}")
        self.key, self.message = key, message


def keys_of(section: Any) -> dict[str, dataclasses.Field]:
    """Name -> field of all that a recipe may set in a settings dataclass (or an instance of one): what is declared with `checked_field`."""
    return {field.name: field for field in dataclasses.fields(section) if field.metadata}


def check_fields(section: Any) -> None:
    """Raise `FieldError` for the first field of `section` whose value is out of its range or choices."""
    for field in keys_of(section).values():
        problem = value_problem(getattr(section, field.name), field.metadata)
        if problem:
            raise FieldError(field.name, problem)


def value_problem(value: Any, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with `value` by the ranges and choices of a field's `metadata`; None if nothing is."""
    if value is None:
        return None
    choices, minimum, maximum, above = (metadata.get(key) for key in ("choices", "minimum", "maximum", "above"))
    if choices and value not in choices:
        return f"{value!r} is not one of {', '.join(choices)}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if minimum is not None and value < minimum:
            return f"{value} is below the least allowed value {minimum}"
        if maximum is not None and value > maximum:
            return f"{value} is above the largest allowed value {maximum}"
        if above is not None and value <= above:
            return f"{value} must be greater than {above}"
    return None


def check_folder_name(key: str, value: str) -> None:
    """Raise `FieldError` unless `value` can be the name of one folder: recipes come from strangers, and paths are made of it."""
    if value in ("", ".", "..") or value != value.strip() or not value.isprintable() or "/" in value or "\\" in value:
        raise FieldError(key, f"{value!r} cannot name a folder; use letters, digits, `-` and `_`")


def to_plain(section: Any) -> Any:
    """The section as dicts, lists and scalars, ready for JSON or YAML; tuples become lists."""
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return {field.name: to_plain(getattr(section, field.name)) for field in dataclasses.fields(section)}
    if isinstance(section, Mapping):
        return {str(key): to_plain(value) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [to_plain(value) for value in section]
    return section
