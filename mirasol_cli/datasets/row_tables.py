"""Clips and texts in temporary tables on disk, so that reading a list takes the same memory whether it has a thousand rows or ten million.

A table is a private SQLite database without a name: it stays in a small cache while it fits there, spills to the folder for temporary
files beyond that, and is gone with its last user.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from mirasol_cli.datasets.example import ClipSpan, Text
from mirasol_cli.errors import EnvironmentProblem

CACHE_KB = 32_000
"""Of one table, in memory."""
Item = TypeVar("Item", ClipSpan, Text)


class _Table(Sequence[Item], Generic[Item]):
    """Items in the order in which they were added, each with a name that no other has."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KB}"):
            self._rows.execute(f"PRAGMA {setting}")
        self._rows.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, name BLOB UNIQUE, item TEXT)")
        self._rows.execute("BEGIN")  # never ended: each row a transaction of its own would take a hundred times as long
        self._length = 0

    def __del__(self) -> None:
        self._rows.close()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        return (self._read(item) for (item,) in self._rows.execute("SELECT item FROM rows ORDER BY number"))

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            first, last, step = number.indices(len(self))
            if step == 1:
                found = self._rows.execute("SELECT item FROM rows WHERE number >= ? AND number < ? ORDER BY number", (first, last))
                return tuple(self._read(item) for (item,) in found)
            return tuple(self[each] for each in range(first, last, step))
        place = int(number) + (len(self) if number < 0 else 0)
        found = self._rows.execute("SELECT item FROM rows WHERE number = ?", (place,)).fetchone()
        if found is None:
            raise IndexError(f"there are {len(self)} rows, not {number}")
        return self._read(found[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def number_of(self, name: str) -> int | None:
        """The place of the item of this name, if there is one."""
        found = self._rows.execute("SELECT number FROM rows WHERE name = ?", (_bytes(name),)).fetchone()
        return None if found is None else int(found[0])

    def _insert(self, name: str, item: str) -> bool:
        """Add an item, unless there is one of this name. Raises EnvironmentProblem where the disk is full."""
        try:
            added = self._rows.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?)", (self._length, _bytes(name), item)).rowcount > 0
        except sqlite3.OperationalError as error:
            raise EnvironmentProblem(
                f"a list cannot be put down in the folder for temporary files: {error}", "free some space there, or set TMPDIR to another"
            ) from None
        self._length += added
        return added

    def _read(self, item: str) -> Item:
        raise NotImplementedError


class ClipTable(_Table[ClipSpan]):
    """Clips by their keys."""

    def __init__(self, clips: Iterable[ClipSpan] = ()) -> None:
        super().__init__()
        for clip in clips:
            self.add(clip)

    def add(self, clip: ClipSpan) -> bool:
        """False if it is there already."""
        return self._insert(clip.key, json.dumps(_plain(clip)))

    def put(self, clip: ClipSpan) -> int:
        """Its number; a clip of this key that is there already gets this one's aliases, where it has any."""
        if self.add(clip):
            return self._length - 1
        number = self.number_of(clip.key)
        assert number is not None
        if clip.aliases:
            self._rows.execute("UPDATE rows SET item = ? WHERE number = ?", (json.dumps(_plain(clip)), number))
        return number

    def by_key(self) -> Iterator[ClipSpan]:
        """All clips, sorted by key."""
        return (self._read(item) for (item,) in self._rows.execute("SELECT item FROM rows ORDER BY name"))

    def _read(self, item: str) -> ClipSpan:
        return _clip(json.loads(item))


class TextTable(_Table[Text]):
    """Texts by their ids."""

    def add(self, text: Text) -> bool:
        """False if there is one of this id already."""
        row = (_plain(text.clip), text.question, text.answer, text.references, text.choices, text.type, text.context)
        return self._insert(text.id, json.dumps((text.id, *row)))

    def add_renamed(self, text: Text) -> bool | None:
        """Add a text, under `id#2`, `id#3` and so on if its id is taken by another. None if this very text is there; True if renamed."""
        number, new = 1, text
        while not self.add(new):
            there = self.number_of(new.id)
            if there is not None and replace(self[there], id=text.id) == text:
                return None
            number += 1
            new = replace(text, id=f"{text.id}#{number}")
        return number > 1

    def _read(self, item: str) -> Text:
        name, clip, question, answer, references, choices, kind, context = json.loads(item)
        return Text(
            id=name, clip=_clip(clip), question=question, answer=answer, references=tuple(references), choices=tuple(choices), type=kind,
            context=context,
        )  # fmt: skip


def _plain(clip: ClipSpan) -> tuple[Any, ...]:
    return clip.video, clip.start_s, clip.end_s, clip.aliases


def _clip(plain: Sequence[Any]) -> ClipSpan:
    video, start_s, end_s, aliases = plain
    return ClipSpan(video=video, start_s=start_s, end_s=end_s, aliases=tuple(aliases))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")
