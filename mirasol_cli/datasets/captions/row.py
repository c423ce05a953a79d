"""What the reader of one caption format yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mirasol_cli.datasets.example import Text


class Row(NamedTuple):
    """A text with the split and the task it belongs to."""

    split: str
    task: str
    text: Text


Reader = Callable[[Path, list[str]], Iterable[Row]]
"""(file, notes) -> rows; what had to be left out is appended to the notes."""
