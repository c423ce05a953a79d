"""What the names of a model's parameters tell, and how to say a long list of them."""

from __future__ import annotations

from collections.abc import Sequence


def part_named(name: str) -> str:
    """The part of the model that a parameter belongs to, as `--dry-run` lists them: two encoders count as one."""
    first = name.split(".", 1)[0]
    return "encoder" if first.endswith("_encoder") else first


def first_names(names: Sequence[str]) -> str:
    """`a, b, c, d and 3 more`."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
