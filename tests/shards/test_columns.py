"""What there is per clip and per text lies in columns; an index that tells it itself is read all the same."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mirasol_cli.batches.order import texts_by_clip
from mirasol_cli.errors import ShardError
from mirasol_cli.shards import index as shard_format
from mirasol_cli.shards.columns import ClipColumns, TextColumns, Texts, write_texts
from mirasol_cli.shards.lines import Lines, write_lines
from mirasol_cli.shards.reader import ShardFolder, verify_split
from tests.shards.samples import forget_columns, write_split

ROWS = [
    {"id": "a", "clip": 1, "question": "où?", "answer": "là", "context": "a title"},
    {"id": "\udc80", "clip": 0, "question": "who?", "answer": None, "context": ""},
    {"id": "c", "clip": 1, "question": "", "answer": "", "context": "x" * 70_000},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shard_format, "LARGEST_SHARD", 4)
    write_split(tmp_path / "shards" / "train", 10, failed=(2, 9), missing=(5,))
    return tmp_path / "shards"


def test_an_index_without_columns_opens_and_reads_the_same(folder: Path) -> None:
    new = ShardFolder(folder).split("train")
    media = {int(clip): new.media(clip) for clip in new.kept}
    clips, texts, columns, gathered = list(new.clips), new.texts("qa"), new.columns, texts_by_clip(new, new.texts("qa"))
    listed = list(texts)
    forget_columns(folder / "train")
    assert verify_split(folder / "train") == []
    old = ShardFolder(folder).split("train")
    assert list(old.clips) == clips
    assert list(old.texts("qa")) == listed
    for name in ("status", "audio", "seconds", "missing", "short", "crc32"):
        assert np.array_equal(getattr(old.columns, name), getattr(columns, name)), name
    for name in ("clip", "answered", "length"):
        assert np.array_equal(getattr(old.texts("qa"), name), getattr(texts, name)), name
    assert np.array_equal(texts_by_clip(old, old.texts("qa")).positions, gathered.positions)
    for clip in old.kept:
        assert all(np.array_equal(value, media[int(clip)][name]) for name, value in old.media(clip).items())


def test_lines_come_back_by_number_in_any_order_and_on_any_thread(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written = write_lines(path, ROWS)
    lines = Lines(path, written.offset, written.crc32)
    assert list(lines) == ROWS == lines[:]
    assert lines[-1] == ROWS[2]
    assert lines[np.uint32(1)] == ROWS[1]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda number: lines[number % 3], range(300))) == ROWS * 100
    for number in (3, -4):
        with pytest.raises(IndexError):
            lines[number]
    assert list(Lines.scanned(path, written.sha256)) == ROWS


def test_the_same_lines_are_not_written_again_and_an_error_leaves_the_old_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first = write_lines(path, ROWS)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    assert write_lines(path, iter(ROWS)).sha256 == first.sha256
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before

    def broken():  # type: ignore[no-untyped-def]
        yield ROWS[1]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_lines(path, broken())
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]
    assert list(Lines(path, first.offset, first.crc32)) == ROWS


@pytest.mark.parametrize("old", [ROWS[:1], ROWS[1:], [*ROWS, ROWS[0]], []])
def test_what_begins_alike_is_replaced(tmp_path: Path, old: list) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, old)
    written = write_lines(path, ROWS)
    assert list(Lines(path, written.offset, written.crc32)) == ROWS
    assert list(Lines.scanned(path, written.sha256)) == ROWS


def test_a_changed_line_is_found_when_it_is_read_and_the_others_still_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    written = write_lines(path, ROWS)
    content = bytearray(path.read_bytes())
    content[content.index(b"who?")] ^= 1
    path.write_bytes(content)
    lines = Lines(path, written.offset, written.crc32)
    assert lines[0] == ROWS[0]
    with pytest.raises(ShardError, match=r"rows.jsonl' is damaged: line 2"):
        lines[1]


def test_columns_tell_of_texts_what_would_be_read(tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    _, columns = write_texts(path, ROWS)
    digest = columns.write(tmp_path / "qa.columns")
    texts = Texts.of(path, TextColumns.read(tmp_path / "qa.columns", digest))
    assert list(texts) == ROWS
    assert texts.clip.tolist() == [1, 0, 1]
    assert texts.answered.tolist() == [True, False, True]
    assert texts.length.tolist() == [[7, 4, 3], [0, 4, 0], [70_000, 0, 0]]


def test_columns_of_another_split_are_refused(folder: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "other" / "train", 3)
    content = (tmp_path / "other" / "train" / "clips.columns").read_bytes()
    (folder / "train" / "clips.columns").write_bytes(content)
    with pytest.raises(ShardError, match=r"clips.columns' is damaged: its checksum"):
        ShardFolder(folder).split("train")


def test_columns_are_mapped_and_not_read(tmp_path: Path) -> None:
    """Of a hundred thousand clips, a process holds no array of its own."""
    clips = 100_000
    lines = write_lines(tmp_path / "clips.jsonl", ({"key": str(number)} for number in range(clips)))
    digest = ClipColumns.of([], clips, 1, lines).write(tmp_path / "clips.columns")
    before = anonymous_bytes()
    columns = ClipColumns.read(tmp_path / "clips.columns", digest)
    assert int(columns.offset[-1]) == (tmp_path / "clips.jsonl").stat().st_size
    assert anonymous_bytes() - before < 1_000_000 < columns.seconds.nbytes + columns.offset.nbytes


def anonymous_bytes() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


def test_the_index_stays_small(folder: Path) -> None:
    """It names shards, not clips."""
    plain = json.loads((folder / "train" / "index.json").read_text())
    assert [sorted(shard) for shard in plain["shards"]] == [["bytes", "clips", "clips_digest", "number", "sha256"]] * 3
