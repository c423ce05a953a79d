"""A documented, range-checked field of a frozen settings dataclass.

Every key that a recipe may hold is declared once, with `setting(...)`; the recipe loader,
`mirasol recipes show` and the documentation all read that one declaration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


def setting(
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
    The checks are made by `check_settings`, which every settings class calls in `__post_init__`.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "above": above, "choices": choices}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class SettingError(ValueError):
    """A value that its key does not allow. `key` is the field's name inside its own section."""

    def __init__(self, key: str, message: str):
        super().__init__(f"{key}: {message}")
        self.key, self.message = key, message


def check_settings(section: Any) -> None:
    """Raise `SettingError` for the first field of `section` whose value is out of its range or choices."""
    for field in dataclasses.fields(section):
        value, meta = getattr(section, field.name), field.metadata
        if value is None or not meta:
            continue
        if meta.get("choices") and value not in meta["choices"]:
            raise SettingError(field.name, f"{value!r} is not one of {', '.join(meta['choices'])}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if meta.get("minimum") is not None and value < meta["minimum"]:
                raise SettingError(field.name, f"{value} is below the least allowed value {meta['minimum']}")
            if meta.get("maximum") is not None and value > meta["maximum"]:
                raise SettingError(field.name, f"{value} is above the largest allowed value {meta['maximum']}")
            if meta.get("above") is not None and value <= meta["above"]:
                raise SettingError(field.name, f"{value} must be greater than {meta['above']}")


def to_plain(section: Any) -> Any:
    """The section as dicts, lists and scalars, ready for JSON or YAML; tuples become lists."""
    if dataclasses.is_dataclass(section) and not isinstance(section, type):
        return {field.name: to_plain(getattr(section, field.name)) for field in dataclasses.fields(section)}
    if isinstance(section, Mapping):
        return {str(key): to_plain(value) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [to_plain(value) for value in section]
    return section


def leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) for every leaf of a settings dataclass, in declaration order."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value
