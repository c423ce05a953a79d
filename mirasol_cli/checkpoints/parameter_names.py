"""How to say a long list of parameters."""

from __future__ import annotations

from collections.abc import Sequence


def first_names(names: Sequence[str]) -> str:
    """`a, b, c, d and 3 more`."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
