"""A manifest: anybody's own data as JSON lines or CSV, one line per clip.

    video[, start, end][, context], caption | question + answer[, choices, type, split, id]

`start` and `end` are seconds or `HH:MM:SS.mmm`. A line with both a caption and a question gives two texts. `choices` is a
JSON list, or in CSV a cell with `|` between them; the answer is one of them, or (a number in JSON) the place of one. Without
`split` a line belongs to train; without `id` its line number is its id. Other keys are ignored. All faults are reported at once.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mirasol_cli.datasets.example import CAPTION_PROMPT, Candidate, ClipSpan, Split, Text
from mirasol_cli.datasets.resolver import is_hostile
from mirasol_cli.datasets.splits import build_split
from mirasol_cli.datasets.tables import LONGEST_CELL, as_text, read_text, seconds
from mirasol_cli.errors import DataError

NAME, TITLE = "manifest", "a manifest"
LICENCE = "a manifest states no licence: yours to know"
SOURCE = "your own file"
TASKS = ("qa",)
FAULTS_SHOWN = 20
SUFFIXES = (".jsonl", ".json", ".csv")


class Fault(Exception):
    """What is wrong with one line."""


def candidates(clip: ClipSpan) -> list[Candidate]:
    """The file as named; a span is a span of that file."""
    return [Candidate(clip.video, whole=clip.start_s is None)]


def read_manifest(path: Path) -> list[Split]:
    """The splits of a manifest, in the order in which they first appear; the task is always `qa`.

    Raises:
        DataError: the file is missing, empty, of another kind, or has faulty lines (at most 20 of them are shown).
    """
    faults: list[str] = []
    texts: dict[str, list[Text]] = {}
    line_of: dict[str, int] = {}
    for number, row in _rows(path, faults):
        try:
            split, found = _texts(row, number)
            for text in found:
                if text.id in line_of:
                    raise Fault(f"id '{text.id}' is that of line {line_of[text.id]} already")
                line_of[text.id] = number
            texts.setdefault(split, []).extend(found)
        except Fault as fault:
            faults.append(f"line {number}: {fault}")
    if faults:
        shown = faults[:FAULTS_SHOWN] + ([f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else [])
        many = f"{len(faults)} faulty lines" if len(faults) > 1 else "a faulty line"
        raise DataError(f"'{path}' has {many}:\n  " + "\n  ".join(shown), "mend them and run the command again")
    if not texts:
        raise DataError(f"'{path}' holds no lines", 'a line is, for example, {"video": "a.mp4", "caption": "a dog barks"}')
    return [build_split(split, "qa", rows) for split, rows in texts.items()]


def _rows(path: Path, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, row); lines that cannot be read become faults."""
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"'{path}' is no manifest: its name ends with none of {', '.join(SUFFIXES)}")
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, text, faults)
    elif text.lstrip().startswith("["):
        yield from _json_list(path, text, faults)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield from _json_row(number, line, faults)


def _json_row(number: int, line: str, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        faults.append(f"line {number}: not valid JSON: {error}")
        return
    if isinstance(row, dict):
        yield number, row
    else:
        faults.append(f"line {number}: not a JSON object")


def _json_list(path: Path, text: str, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"'{path}' line {error.lineno} is not valid JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not valid JSON: {error}") from None
    for number, row in enumerate(rows, 1):  # in a list, the number of the entry
        if isinstance(row, dict):
            yield number, row
        else:
            faults.append(f"line {number}: not a JSON object")


def _csv_rows(path: Path, text: str, faults: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip().lower() for cell in cells]
                if "video" not in header:
                    raise DataError(f"'{path}' line 1: there is no column 'video'; the columns are {', '.join(header)}")
            elif len(cells) > len(header) and any(cell.strip() for cell in cells[len(header) :]):
                faults.append(f"line {reader.line_num}: {len(cells)} cells, the header has {len(header)} (quote cells that hold commas)")
            else:
                yield reader.line_num, {key: cell for key, cell in zip(header, cells, strict=False) if cell.strip()}
    except csv.Error as error:
        faults.append(f"line {reader.line_num}: not valid CSV: {error}")


def _texts(row: Mapping[str, Any], number: int) -> tuple[str, list[Text]]:
    """The split and the one or two texts of a line."""
    clip = _clip(row)
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


def _clip(row: Mapping[str, Any]) -> ClipSpan:
    video = _text(row, "video")
    if not video:
        raise Fault("'video' is missing")
    if not isinstance(row["video"], str):
        raise Fault(f"'video' is not text: {video}")
    if is_hostile(video):
        raise Fault(f"'{video}' leads out of the video folder; give a path inside it")
    start_s, end_s = (_seconds(row, key) for key in ("start", "end"))
    if end_s is not None and end_s <= (start_s or 0.0):
        raise Fault(f"the span ends at {end_s:g} s, before or where it starts ({start_s or 0.0:g} s)")
    if start_s is None and end_s is not None:
        start_s = 0.0
    return ClipSpan(video=video, start_s=start_s, end_s=end_s)


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
