"""A manifest: your own data as JSON lines or CSV, one line per text.

    video[, start, end][, context], caption | question + answer[, choices, type, split, id]

`start` and `end` are seconds or `HH:MM:SS.mmm`. A line with both a caption and a question gives two texts. `choices` is a
JSON list, or in CSV a cell with `|` between them; the answer is one of them, or (a number in JSON) the place of one. Without
`split` a line belongs to train ("Train", "validation" and the like are read as train, val and test); without `id` its line
number is its id. Other keys are ignored. All faults are reported at once.
"""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mirasol_cli.datasets.example import CAPTION_PROMPT, Candidate, ClipSpan, Split, Text
from mirasol_cli.datasets.resolver import AUDIO_SUFFIXES, VIDEO_SUFFIXES, is_hostile
from mirasol_cli.datasets.row_tables import ClipTable, TextTable
from mirasol_cli.datasets.splits import SPLIT_WORDS
from mirasol_cli.datasets.tables import (
    LONGEST_CELL,
    as_text,
    csv_fault,
    first_character,
    json_items,
    open_text,
    read_text,
    seconds,
)
from mirasol_cli.errors import DataError

NAME, TITLE = "manifest", "a manifest"
LICENCE = "unknown (check the licence of your videos)"
SOURCE = "your own file"
TASKS = ("qa",)
FAULTS_SHOWN = 20
SUFFIXES = (".jsonl", ".json", ".csv")
COLUMNS = ("video", "start", "end", "context", "caption", "question", "answer", "choices", "type", "split", "id")


class Fault(Exception):
    """What is wrong with one line."""


def candidates(clip: ClipSpan) -> list[Candidate]:
    """The file as named, then without blanks around the name, then with `\\` between folders as on Windows; a span is one of that file."""
    names = dict.fromkeys([clip.video, clip.video.strip(), clip.video.strip().replace("\\", "/")])
    return [Candidate(name, whole=clip.start_s is None) for name in names]


def read_manifest(path: Path, root: Path | None = None) -> list[Split]:
    """The splits of a manifest, in the order in which they first appear; the task is always `qa`.

    Args:
        root: the folder of the videos, so that absolute paths into it are told from those that lead out.

    Raises:
        DataError: the file is missing, empty, of another kind, or has faulty lines (at most 20 of them are shown).
    """
    faults: list[str] = []
    found: dict[str, _Found] = defaultdict(_Found)
    renamed: dict[str, str] = {}
    for number, row in _rows(path, faults):
        try:
            word, texts = _texts(row, number, root)
            split = SPLIT_WORDS.get(word.lower(), word)
            if split != word:
                renamed[word] = split
            for text in texts:
                line = next((line for its in found.values() if (line := its.line_of(text.id))), None)
                if line is not None:
                    raise Fault(f"id '{text.id}' is that of line {line} already")
                found[split].add(text, number)
        except Fault as fault:
            faults.append(f"line {number}: {fault}")
    if faults:
        shown = faults[:FAULTS_SHOWN] + ([f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else [])
        many = f"{len(faults)} faulty lines" if len(faults) > 1 else "a faulty line"
        raise DataError(f"'{path}' has {many}:\n  " + "\n  ".join(shown), "fix them and run the command again")
    if not found:
        raise DataError(f"'{path}' is empty", 'a line is, for example, {"video": "a.mp4", "caption": "a dog barks"}')
    notes = {split: [f"split '{word}' is read as '{split}'" for word, its in renamed.items() if its == split] for split in found}
    return [Split(name=split, task="qa", clips=its.clips, texts=its.texts, notes=tuple(notes[split])) for split, its in found.items()]


class _Found:
    """The texts of one split, their clips, and the line of each text."""

    def __init__(self) -> None:
        self.texts, self.clips, self._lines = TextTable(), ClipTable(), array("q")

    def add(self, text: Text, line: int) -> None:
        self.texts.add(text)
        self.clips.add(text.clip)
        self._lines.append(line)

    def line_of(self, name: str) -> int | None:
        """Of the text of this id."""
        number = self.texts.number_of(name)
        return None if number is None else self._lines[number]


def _rows(path: Path, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, row); lines that cannot be read become faults."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"'{path}' is not a manifest: its name must end with one of {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, faults)
    elif first_character(path) == "[":
        yield from _json_list(path, faults)
    else:
        _check_one_a_line(path)
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield from _json_row(number, line, faults)


def _check_one_a_line(path: Path) -> None:
    """Raises DataError if the whole file is one object around a list of lines."""
    with open_text(path) as lines:
        first = next((line for line in lines if line.strip()), "")
        several = next((True for line in lines if line.strip()), False)
    try:
        whole = json.loads(first)
        if several:
            return
    except (ValueError, RecursionError):
        try:
            whole = json.loads(read_text(path))
        except (ValueError, RecursionError):
            return
    lists = [key for key, value in whole.items() if isinstance(value, list)] if isinstance(whole, dict) and "video" not in whole else []
    if lists:
        raise DataError(
            f"'{path}' is one JSON object around a list: a manifest is that list alone, or one object a line",
            f"save only what is under '{lists[0]}'",
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' is there twice")
    return row


def _json_row(number: int, line: str, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        faults.append(f"line {number}: not valid JSON: {error}")
        return
    if isinstance(row, dict):
        yield number, row
    else:
        faults.append(f"line {number}: not a JSON object")


def _json_list(path: Path, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in enumerate(json_items(path), 1):  # in a list, the number of the entry
        if isinstance(row, dict):
            yield number, row
        else:
            faults.append(f"line {number}: not a JSON object")


def _csv_rows(path: Path, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open_text(path, newline="") as lines:
        yield from _csv_cells(path, csv.reader(lines, strict=True), faults)


def _csv_cells(path: Path, reader: Any, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    header: list[str] = []
    begins, ends = 1, 0
    try:
        for cells in reader:
            begins, ends = ends + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip().lower() for cell in cells]
                _check_header(path, header)
            elif swallowed := _swallowed_row(cells, header):
                faults.append(
                    f"line {begins}: a quoted cell runs on over '{swallowed}', which reads like a line of its own: close its quote"
                )
            elif len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                faults.append(f"line {reader.line_num}: {len(cells)} cells, the header has {len(header)} (quote cells that hold commas)")
            else:
                yield reader.line_num, {key: cell for key, cell in zip(header, cells, strict=False) if cell.strip()}
    except csv.Error as error:
        faults.append(f"line {ends + 1}: not valid CSV: {csv_fault(error)}")


def _check_header(path: Path, header: list[str]) -> None:
    """Raises DataError unless the columns can be those of a manifest."""
    if "video" not in header:
        separator = next((words for mark, words in ((";", "';'"), ("\t", "tabs")) if mark in header[0] and len(header) == 1), None)
        if separator:
            raise DataError(f"'{path}' line 1: the columns are separated by {separator}", "save it as CSV with commas, or as JSON lines")
        raise DataError(f"'{path}' line 1: there is no column 'video'; the columns are {', '.join(header)}")
    doubled = [column for column in COLUMNS if header.count(column) > 1]
    if doubled:
        raise DataError(f"'{path}' line 1: column '{doubled[0]}' is there twice", "keep one of them")


def _swallowed_row(cells: list[str], header: list[str]) -> str | None:
    """A line inside a cell that has as many cells as the header, the name of a video or sound file where it belongs; else None."""
    for cell in cells:
        for line in cell.splitlines()[1:]:
            parts = line.split(",")
            name = parts[header.index("video")].strip() if len(parts) >= len(header) > 1 else ""
            if os.path.splitext(name)[1].lower() in (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES):
                return line if len(line) <= 60 else line[:60] + "..."
    return None


def _texts(row: Mapping[str, Any], number: int, root: Path | None) -> tuple[str, list[Text]]:
    """The split and the one or two texts of a line."""
    clip = _clip(row, root)
    name = _text(row, "id") or str(number)
    context, kind = _text(row, "context") or "", _text(row, "type") or ""
    caption, question, answer = _text(row, "caption"), _text(row, "question"), _text(row, "answer")
    choices = _choices(row)
    if question and not answer:
        raise Fault("'question' without 'answer'")
    if answer and not question:
        raise Fault("'answer' without 'question'")
    if not caption and not question:
        raise Fault("neither 'caption' nor 'question' and 'answer'")
    if choices and not question:
        raise Fault("'choices' without 'question'")
    both = bool(caption and question)
    texts = []
    if caption:
        key, its_kind = (f"{name}/caption", "") if both else (name, kind)
        texts.append(Text(id=key, clip=clip, question=CAPTION_PROMPT, answer=caption, context=context, type=its_kind))
    if question:
        key, answer = f"{name}/question" if both else name, _chosen(row["answer"], str(answer), choices)
        texts.append(Text(id=key, clip=clip, question=question, answer=answer, choices=choices, context=context, type=kind))
    split = _text(row, "split") or "train"
    if is_hostile(split) or "/" in split or "\\" in split or split.startswith("."):
        raise Fault(f"'{split}' cannot be the name of a split")
    return split, texts


def _text(row: Mapping[str, Any], key: str) -> str | None:
    """The value as text; None if it is absent, null or blank. Numbers become text, as do "none", "null" and "NA"."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, (list, dict)):
        raise Fault(f"'{key}' is not text")
    text = as_text(value)
    if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Fault(f"'{key}' is not valid Unicode")
    return text or None


def _clip(row: Mapping[str, Any], root: Path | None) -> ClipSpan:
    video = _text(row, "video")
    if not video:
        raise Fault("'video' is missing")
    if not isinstance(row["video"], str):
        raise Fault(f"'video' is not text: {video}")
    if root is not None and os.path.isabs(video):
        video = _below(root, video)
    elif not is_hostile(video):
        video = row["video"]  # a file's name may begin with a blank
    if is_hostile(video) or is_hostile(video.strip()):
        raise Fault(f"'{video}' leads out of the video folder; use a path inside it")
    start_s, end_s = (_seconds(row, key) for key in ("start", "end"))
    if end_s is not None and end_s <= (start_s or 0.0):
        raise Fault(f"the span ends at {end_s:g} s, before or where it starts ({start_s or 0.0:g} s)")
    if start_s is None and end_s is not None:
        start_s = 0.0
    return ClipSpan(video=video, start_s=start_s, end_s=end_s)


def _below(root: Path, video: str) -> str:
    """An absolute path relative to `root` if it lies there, else as it is."""
    for base, path in ((os.path.abspath(root), os.path.normpath(video)), (os.path.realpath(root), os.path.realpath(video))):
        if "\0" not in video and path.startswith(base.rstrip(os.sep) + os.sep):
            return Path(path).relative_to(base).as_posix()
    return video


def _seconds(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        return seconds(value)
    except ValueError as error:
        raise Fault(f"'{key}': {error}") from None


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("choices")
    if value is None or value in ("", []):
        return ()
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list) or any(isinstance(part, (list, dict)) or part is None for part in parts):
        raise Fault("'choices' is neither a list nor text with '|' between the choices")
    choices = tuple(as_text(part) for part in parts)
    if len(choices) < 2 or "" in choices or len(set(choices)) < len(choices):
        raise Fault("'choices' needs two or more different choices")
    return choices


def _chosen(value: Any, answer: str, choices: tuple[str, ...]) -> str:
    if not choices or answer in choices:
        return answer
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return choices[value]
    raise Fault(f"the answer '{answer}' is not one of the choices")
