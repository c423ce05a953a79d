"""Putting a reader's texts together into a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mirasol_cli.datasets.example import ClipSpan, Split, Text
from mirasol_cli.errors import DataError

SPLIT_WORDS = {
    "train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
"""Words for splits, in columns and file names, and the name each gets here."""


def split_word(text: str) -> str | None:
    """The split that a file name or path mentions as a word of its own, `vatex_validation_v1.0` -> `val`; None if none does."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)


def clips_of(texts: Iterable[Text]) -> tuple[ClipSpan, ...]:
    """Every clip once, in the order of its first text."""
    clips: dict[str, ClipSpan] = {}
    for text in texts:
        clips.setdefault(text.clip.key, text.clip)
    return tuple(clips.values())


def unique_ids(texts: Sequence[Text]) -> tuple[list[Text], int]:
    """The texts with repeated ids told apart (`id`, `id#2`, `id#3`), and how many had to be changed."""
    taken: set[str] = {text.id for text in texts}
    seen: set[str] = set()
    unique, changed = [], 0
    for text in texts:
        name, number = text.id, 2
        while name in seen or (name != text.id and name in taken):
            name, number = f"{text.id}#{number}", number + 1
        seen.add(name)
        changed += name != text.id
        unique.append(text if name == text.id else replace(text, id=name))
    return unique, changed


def build_split(name: str, task: str, texts: Sequence[Text], *, labels: Sequence[str] = (), notes: Sequence[str] = ()) -> Split:
    """A split whose text ids are unique and whose clips are those of its texts."""
    unique, changed = unique_ids(texts)
    if changed:
        notes = [*notes, f"{changed} repeated ids got a number, as in '{next(t.id for t in unique if '#' in t.id)}'"]
    return Split(name=name, task=task, clips=clips_of(unique), texts=tuple(unique), labels=tuple(labels), notes=tuple(notes))


def share_clips(splits: Sequence[Split]) -> list[Split]:
    """The splits with every task of one split pointing into the same clips (sorted by key), so that they share media shards."""
    together: dict[str, dict[str, ClipSpan]] = {}
    for split in splits:
        together.setdefault(split.name, {}).update((clip.key, clip) for clip in split.clips)
    return [replace(split, clips=tuple(clip for _, clip in sorted(together[split.name].items()))) for split in splits]


def finish(splits: Sequence[Split], task: str | None, title: str, notes: Sequence[str] = ()) -> list[Split]:
    """What a reader returns: the splits of one task (None: of all), tasks sharing their clips, with the reader's notes.

    Raises:
        DataError: the annotations at hand hold no such task.
    """
    return of_task(share_clips(splits) if len({split.task for split in splits}) > 1 else splits, task, title, notes)


def of_task(splits: Sequence[Split], task: str | None, title: str, notes: Sequence[str] = ()) -> list[Split]:
    """The splits of one task (None: of all), with the reader's notes. Raises DataError if there are none."""
    wanted = [split for split in splits if task in (None, split.task)]
    if not wanted:
        raise DataError(f"the annotations of {title} at hand have no task '{task}', only {', '.join(sorted({s.task for s in splits}))}")
    return [replace(split, notes=(*notes, *split.notes)) for split in wanted]
