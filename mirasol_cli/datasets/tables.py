"""Reading annotation tables as strangers write them: CSV with or without header, JSON lists, JSON lines.

Every value stays text ("none", "null" and "NA" are answers); BOM, CRLF and blank lines are tolerated. What cannot be read
raises one DataError that names file and line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from mirasol_cli.errors import DataError

LONGEST_CELL = 1 << 27
"""Panda-70M keeps all captions of a video in one cell; the csv module's own limit is 128 KiB."""


PIECE = 1 << 20
"""Characters of a file that are read at a time."""
CLOCK = re.compile(r"\d+(?::\d+){0,2}(?:\.\d*)?|\.\d+|\d+(?:\.\d*)?[eE][+-]?\d+", re.ASCII)
"""Seconds, MM:SS or HH:MM:SS, with a fraction or without."""


def read_text(path: Path) -> str:
    """The whole file as text, without BOM, newlines as they are."""
    try:
        content = path.read_bytes()
        check_utf8(path, content)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"'{path}' is missing") from None
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text (byte {error.start})", "save it again as UTF-8") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from None


@contextmanager
def open_text(path: Path, newline: str = "\n") -> Iterator[TextIO]:
    """A file as text without BOM, to be read in pieces or line by line.

    Raises DataError if it is missing, cannot be read, or, as soon as that is met, is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            check_utf8(path, file.read(100))
        with open(path, encoding="utf-8-sig", newline=newline) as text:
            yield text
    except FileNotFoundError:
        raise DataError(f"'{path}' is missing") from None
    except UnicodeDecodeError:
        read_text(path)  # says at which byte
        raise
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from None


def check_utf8(path: Path, head: bytes) -> None:
    """Raises DataError if a file that begins with these bytes is UTF-16 text, with a byte order mark or without."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head[:100]:
        raise DataError(f"'{path}' is not UTF-8 text: it looks like UTF-16", "save it again as UTF-8")


def read_head(path: Path, size: int = 1 << 16) -> str:
    """The first bytes as text, to see what a file holds; what is not UTF-8 is replaced."""
    try:
        with open(path, "rb") as file:
            return file.read(size).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from None


def csv_rows(path: Path, *, comments: bool = False, spaces: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not blank.

    Args:
        comments: leave out lines that start with `#`.
        spaces: a space after a separator belongs to it (AudioSet: `, "a,b"` is a quoted cell).
    """
    csv.field_size_limit(LONGEST_CELL)
    try:
        with open(path, "rb") as file:
            head = file.read(100)
        if not head:
            raise DataError(f"'{path}' is empty", "fetch it again")
        check_utf8(path, head)
        with open(path, encoding="utf-8-sig", newline="") as file:
            # a comment may hold a lone quote, so it must not reach the csv module; a blank line in its place keeps the count
            lines = ("\n" if line.lstrip().startswith("#") else line for line in file) if comments else file
            reader = csv.reader(lines, skipinitialspace=spaces, strict=True)
            begins = 1
            try:
                for cells in reader:
                    begins = reader.line_num + 1
                    if any(cell.strip() for cell in cells):
                        yield reader.line_num, cells
            except csv.Error as error:
                raise DataError(f"'{path}' line {begins} is not valid CSV: {csv_fault(error)}") from None
    except FileNotFoundError:
        raise DataError(f"'{path}' is missing") from None
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text ({error.reason})", "save it again as UTF-8") from None
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from None


def csv_fault(error: csv.Error) -> str:
    """What the csv module found, in words that say what to mend."""
    words = str(error)
    if "unexpected end of data" in words:
        return "a quote is opened and never closed"
    if "expected after" in words:
        return "text follows the closing quote of a cell (a quote inside a quoted cell is written twice)"
    return words


def csv_header(path: Path) -> list[str]:
    """The cells of the first row, stripped; empty for an empty file."""
    if path.is_file() and not path.stat().st_size:
        return []
    for _, cells in csv_rows(path):
        return [cell.strip() for cell in cells]
    return []


def csv_records(path: Path, needs: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> cell) of every row below the header, whatever the order of its columns.

    Raises:
        DataError: a column of `needs` is missing, or a row has too few cells or too many.
    """
    rows = csv_rows(path)
    _, header = next(rows, (0, []))
    columns = [cell.strip() for cell in header]
    doubled = [column for column in needs if columns.count(column) > 1]
    if doubled:
        raise DataError(f"'{path}' line 1: column '{doubled[0]}' is there twice")
    absent = [column for column in needs if column not in columns]
    if absent:
        raise DataError(f"'{path}' line 1: column '{absent[0]}' is missing; the header is: {', '.join(columns) or 'empty'}")
    for number, cells in rows:
        while len(cells) > len(columns) and not cells[-1].strip():  # spreadsheets pad rows
            cells.pop()
        if len(cells) != len(columns):
            raise DataError(f"'{path}' line {number} has {len(cells)} cells, the header has {len(columns)}", "quote cells that hold commas")
        yield number, dict(zip(columns, cells, strict=True))


def json_value(path: Path) -> Any:
    """The parsed file. Raises DataError naming file and line."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"'{path}'{line} is not valid JSON: {error}") from None


def json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) for each object of a JSON list (number: 1-based entry) or of JSON lines (number: line), read one by one."""
    first = first_character(path)
    if not first:
        raise DataError(f"'{path}' is empty", "fetch it again")
    if first == "[":
        yield from _checked(path, "entry", enumerate(json_items(path), 1))
    else:
        yield from _checked(path, "line", _json_lines(path))


def first_character(path: Path) -> str:
    """The first character that is no white space; empty if there is none."""
    with open_text(path) as file:
        while piece := file.read(PIECE):
            if piece := piece.lstrip():
                return piece[0]
    return ""


def json_items(path: Path) -> Iterator[Any]:
    """The entries of a JSON list, read one by one. Raises DataError naming file and line if it is not valid JSON."""
    decoder, space = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")
    with open_text(path) as file:
        text, at, open_ended = file.read(PIECE), 0, True

        def refill() -> bool:
            nonlocal text, at, open_ended
            piece = file.read(max(PIECE, len(text) - at))
            text, at, open_ended = text[at:] + piece, 0, bool(piece)
            return open_ended

        def next_character() -> str:
            nonlocal at
            while True:
                found = space.match(text, at)
                at = found.end() if found else at
                if at < len(text) or not refill():
                    return text[at : at + 1]

        mark = next_character()  # "[", which the caller has seen
        while mark in ("[", ","):
            at += 1
            if next_character() == "]" and mark == "[":
                break
            while True:
                try:
                    item, end = decoder.raw_decode(text, at)
                    if end < len(text) or not open_ended or not refill():  # a number may go on in the next piece
                        break
                except (ValueError, RecursionError):
                    if not open_ended or not refill():
                        _not_a_list(path)
            at = end
            yield item
            mark = next_character()
        if next_character() != "]":
            _not_a_list(path)
        at += 1
        if next_character():
            _not_a_list(path)


def _not_a_list(path: Path) -> NoReturn:
    json_value(path)  # says where
    raise DataError(f"'{path}' is not valid JSON")


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"'{path}' line {number} is not valid JSON: {error}") from None


def _checked(path: Path, word: str, values: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError(f"'{path}' {word} {number} is not a JSON object")
        yield number, value


def records(path: Path, needs: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a CSV, JSON or JSONL file by its suffix, each with all keys of `needs`."""
    if path.suffix.lower() in (".csv", ".tsv"):
        yield from csv_records(path, needs)
        return
    for number, row in json_records(path):
        for key in needs:
            if key not in row:
                raise DataError(f"'{path}' entry {number}: key '{key}' is missing")
        yield number, row


def as_text(value: Any) -> str:
    """A JSON or CSV scalar as the text it was written as: 2 -> "2", true -> "true"; surrounding blanks go."""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False)


def text_of(path: Path, number: int, row: Mapping[str, Any], *keys: str) -> str:
    """The value of the first of `keys` that the row has, as text.

    Raises:
        DataError: none is there, or it holds null, a list or an object, or nothing; it names file and row.
    """
    value = next((row[key] for key in keys if key in row), None)
    if value is None or isinstance(value, (list, dict)) or not as_text(value):
        raise DataError(f"'{path}' row {number}: '{keys[0]}' is missing or is not text")
    return as_text(value)


def seconds(value: Any) -> float:
    """Seconds from a number, its text, or `HH:MM:SS.mmm`.

    Raises:
        ValueError: it is none of these, negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not a time")
    if isinstance(value, str) and not CLOCK.fullmatch(value.strip().lstrip("+-")):
        raise ValueError(f"{value!r} is not a time")
    parts = str(value).strip().split(":")
    try:
        numbers = [float(part) for part in parts]
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a time") from None
    if any(number >= 60 for number in numbers[1:]):
        raise ValueError(f"{value!r} is not a time: minutes and seconds after a colon go up to 59")
    total = 0.0
    for number in numbers:
        total = total * 60 + number
    # rounding away what base 60 left behind, so that keys of clips are the same on every machine
    total = round(total, 6)
    if len(parts) > 3 or not 0 <= total < 1e7 or any(number < 0 for number in numbers):
        raise ValueError(f"{value!r} is not a time of 0 s or more")
    return total


def span_at(path: Path, number: int, start: Any, end: Any) -> tuple[float, float]:
    """(start, end) in seconds; raises DataError naming file and line unless 0 <= start < end."""
    try:
        start_s, end_s = seconds(start), seconds(end)
    except ValueError as error:
        raise DataError(f"'{path}' line {number}: {error}") from None
    if end_s <= start_s:
        raise DataError(f"'{path}' line {number}: the span ends at {end_s} s, before or where it starts ({start_s} s)")
    return start_s, end_s
