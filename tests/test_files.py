"""Files that are complete or absent, and paths that stay inside."""

import errno
import math
import os
import zlib
from pathlib import Path

import pytest

from mirasol_cli.errors import DataError, EnvironmentProblem
from mirasol_cli.files import crc32_of, inside, read_json, read_jsonl, write_atomic, write_json, write_jsonl


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentProblem, match=r"no space left while writing .*a\.json"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_read_only_disk_is_told_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("builtins.open", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(EnvironmentProblem, match=r"cannot write '.*/a\.json': Read-only file system"):
        write_atomic(tmp_path / "a.json", "new")


def test_any_text_survives_jsonl(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x85c\nd\u2029"}, {"text": ""}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_what_is_written_is_json_everywhere(tmp_path: Path) -> None:
    value = {"a": [1.5, math.nan, {"b": (-math.inf, True, 7)}], "c": "NaN"}
    plain = {"a": [1.5, None, {"b": [None, True, 7]}], "c": "NaN"}
    write_json(tmp_path / "a.json", value)
    write_jsonl(tmp_path / "a.jsonl", [value])
    assert read_json(tmp_path / "a.json") == plain
    assert read_jsonl(tmp_path / "a.jsonl") == [plain]


def test_damage_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl' line 2"):
        read_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"none\.json' is missing"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["../out.mp4", "a/../../out.mp4", "/etc/passwd", "a\0b", "link/out.mp4"])
def test_nothing_leads_outside_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    assert inside(root, name) is None


@pytest.mark.parametrize("name", ["-abc.mp4", "a b/c.mp4", "v_v_x.mp4", "a/../c.mp4"])
def test_odd_names_inside_are_fine(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_the_fast_crc32_is_the_common_one() -> None:
    content = os.urandom(100_003)
    assert crc32_of([content[:1], memoryview(content)[1:70_000], b"", content[70_000:]]) == zlib.crc32(content)
    assert crc32_of([]) == 0
