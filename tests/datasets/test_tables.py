import json
from dataclasses import replace
from pathlib import Path

import pytest

from mirasol_cli.datasets import tables
from mirasol_cli.datasets.example import ClipSpan, Text
from mirasol_cli.datasets.folder import AnnotationFiles, FolderWalk
from mirasol_cli.datasets.row_tables import ClipTable, TextTable
from mirasol_cli.datasets.splits import build_split, share_clips, split_word
from mirasol_cli.datasets.tables import csv_header, csv_records, csv_rows, json_records, records, seconds, span_at, text_of
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import write


def test_csv_with_bom_crlf_blank_lines_padding_and_missing_values_as_text(tmp_path: Path) -> None:
    write(tmp_path, {"t.csv": '\ufeffanswer,label\r\n\r\nnone,"a, b"\r\nNA,null,,\r\n\r\n'})
    path = tmp_path / "t.csv"
    assert csv_header(path) == ["answer", "label"]
    assert list(csv_records(path, needs=("label",))) == [(3, {"answer": "none", "label": "a, b"}), (4, {"answer": "NA", "label": "null"})]


def test_spaces_after_separators_and_comments(tmp_path: Path) -> None:
    write(tmp_path, {"t.csv": '# a, "b\n  # c\nx, 1.0, "l1,l2"\n'})
    assert list(csv_rows(tmp_path / "t.csv", comments=True, spaces=True)) == [(3, ["x", "1.0", "l1,l2"])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "a,b\n1,2\n3\n", "'{}' line 3 has 1 cells, the header has 2"),
        ("t.csv", "a,c\n1,2\n", "'{}' line 1: column 'b' is missing; the header is: a, c"),
        ("t.csv", "", "'{}' is empty"),
        ("t.csv", b"a,b\n1,\xff\n", "'{}' is not UTF-8 text"),
        ("t.csv", "a,b\n".encode("utf-16-le"), "'{}' is not UTF-8 text: it looks like UTF-16"),
        ("t.json", "[]".encode("utf-16"), "'{}' is not UTF-8 text: it looks like UTF-16"),
        ("t.csv", 'a,b\n1,"2\n3,4\n', "'{}' line 2 is not valid CSV: a quote is opened and never closed"),
        ("t.csv", 'a,b\n1,"2"3\n', "'{}' line 2 is not valid CSV: text follows the closing quote of a cell"),
        ("t.csv", "a,b,a\n1,2,3\n", "'{}' line 1: column 'a' is there twice"),
        ("t.json", "", "'{}' is empty"),
        ("t.json", '[{"a": 1,\n"b"}]', "'{}' line 2 is not valid JSON"),
        ("t.json", '[{"a": 1}]', "'{}' entry 1: key 'b' is missing"),
        ("t.json", "[3]", "'{}' entry 1 is not a JSON object"),
        ("t.jsonl", '{"a": 1, "b": 2}\n{', "'{}' line 2 is not valid JSON"),
        ("t.json", "[" * 100_000, "'{}' is not valid JSON"),
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path, {name: content}) / name
    with pytest.raises(DataError) as caught:
        list(records(path, needs=("a", "b")))
    assert caught.value.message.startswith(message.format(path))


def test_json_lists_and_lines(tmp_path: Path) -> None:
    write(tmp_path, {"a.json": '\ufeff [{"a": 1}]', "b.jsonl": '\n{"a": 1}\r\n'})
    assert list(json_records(tmp_path / "a.json")) == [(1, {"a": 1})]
    assert list(json_records(tmp_path / "b.jsonl")) == [(2, {"a": 1})]


@pytest.mark.parametrize(
    ("value", "expected"),
    [("00:07:33.689", 453.689), ("0:00:08.341", 8.341), ("1:02", 62.0), (" 30.000", 30.0), (3, 3.0), ("90:00", 5400.0), ("1e2", 100.0)],
)
def test_times(value: object, expected: float) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize("value", ["", "x", "1:2:3:4", "-1", "1:-2", "1_0", "0:99:99", "1:60", "١", "inf", "nan", None, True, [1], 1e9])
def test_no_times(value: object) -> None:
    with pytest.raises(ValueError):
        seconds(value)


def test_spans_and_texts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t.csv' line 7: the span ends at 1.0 s, before or where it starts \(2.0 s\)"):
        span_at(tmp_path / "t.csv", 7, "2", "1")
    values: tuple[object, ...] = (None, "", "  ", [1], {})
    for value in values:
        with pytest.raises(DataError, match="row 3: 'a' is missing or is not text"):
            text_of(tmp_path, 3, {"a": value}, "a")
    assert text_of(tmp_path, 3, {"b": 7010}, "a", "b") == "7010"


def test_annotation_files_are_found_anywhere_and_the_best_is_taken(tmp_path: Path) -> None:
    write(tmp_path, {"a/b/Test.JSON": "", "a/x/test.json": "", "z/MSVD-qa/deep/test.json": "", "test.json.bak": "", ".git/test.json": ""})
    files = AnnotationFiles(tmp_path, prefer="msvd")
    assert [str(path.relative_to(tmp_path)) for path in files.matching(r"test\.json")] == [
        "z/MSVD-qa/deep/test.json",
        "a/b/Test.JSON",
        "a/x/test.json",
    ]
    assert files.first(r"gone\.json", r"test\.json") == tmp_path / "z/MSVD-qa/deep/test.json"
    assert files.notes == ["3 files are named like 'test.json'; read 'z/MSVD-qa/deep/test.json'"]
    with pytest.raises(DataError, match="does not exist"):
        AnnotationFiles(tmp_path / "gone")


def test_a_walk_is_sorted_and_skips_names_that_are_not_text(tmp_path: Path) -> None:
    write(tmp_path, {"b/2.mp4": "", "b/1.mp4": "", "a.mp4": "", "c.mp4": ""})
    (tmp_path / "b" / b"\xff.mp4".decode("utf-8", "surrogateescape")).touch()
    assert list(FolderWalk(tmp_path)) == ["a.mp4", "c.mp4", "b/1.mp4", "b/2.mp4"]


def text(name: str, video: str) -> Text:
    return Text(id=name, clip=ClipSpan(video=video), answer="x")


def test_repeated_ids_are_told_apart_and_clips_are_kept_once() -> None:
    split = build_split("train", "qa", [text("a", "v2"), text("a", "v1"), text("a#2", "v2"), text("a", "v1")])
    assert [t.id for t in split.texts] == ["a", "a#3", "a#2", "a#4"]
    assert [clip.video for clip in split.clips] == ["v2", "v1"]
    assert split.notes == ("2 repeated ids got a number, as in 'a#3'",)


def test_tasks_of_one_split_share_their_clips() -> None:
    mc, oe = build_split("test", "mc", [text("1", "b")]), build_split("test", "oe", [text("1", "a"), text("2", "b")])
    assert [clip.video for clip in share_clips([mc, oe])[0].clips] == ["a", "b"]
    assert share_clips([mc, oe])[0].clips == share_clips([mc, oe])[1].clips


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("vatex_validation_v1.0", "val"),
        ("results_2M_train", "train"),
        ("MSRVTT_JSFUSION_test", "test"),
        ("latest", None),
        ("train/val-0001", "val"),
    ],
)
def test_words_for_splits(name: str, split: str | None) -> None:
    assert split_word(name) == split


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_list_is_read_entry_by_entry_wherever_its_pieces_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(tables, "PIECE", piece)
    path = tmp_path / "list.json"
    for value in ([], [{}], [{"a": [1, "]"]}, 12, -3.5e7, "é\u2028\n", None, [[]], {"b": "x" * 3000}], [123456789]):
        for text in (json.dumps(value), json.dumps(value, indent=3, ensure_ascii=False), f" \n{json.dumps(value)}\r\n "):
            path.write_text(text, encoding="utf-8-sig")
            assert list(tables.json_items(path)) == value
    for text in ("[1, 2", "[1 2]", "[1,, 2]", "[1, 2] x", "[1, 2,]", '[{"a": }]', "[", "[" * 5000):
        path.write_text(text)
        with pytest.raises(DataError, match=r"list.json'.* is not valid JSON"):
            list(tables.json_items(path))


def test_rows_on_disk_are_a_sequence(tmp_path: Path) -> None:
    clips = [ClipSpan(video=f"v{number}\udc80", start_s=1.5, aliases=("a", "b")) for number in (3, 1, 2)]
    table = ClipTable(clips)
    assert table == clips
    assert not table.add(clips[1])
    assert (table[0], table[-1], table[1:], list(table.by_key())) == (clips[0], clips[2], tuple(clips[1:]), sorted(clips))
    assert [table.number_of(clip.key) for clip in (*clips, ClipSpan(video="v"))] == [0, 1, 2, None]
    with pytest.raises(IndexError):
        table[3]
    other = ClipSpan(video="v1\udc80", start_s=1.5, aliases=("c",))
    assert table.put(other) == 1
    assert table[1].aliases == ("c",)
    assert table.put(ClipSpan(video="v9")) == 3


def test_repeated_ids_are_told_apart_and_equal_texts_kept_once() -> None:
    table = TextTable()
    text = Text(id="a", clip=ClipSpan(video="v"), answer="x", references=("r",), choices=("x", "y"))
    other = replace(text, answer="y")
    assert [table.add_renamed(one) for one in (text, text, other, other, replace(text, answer=None))] == [False, None, True, None, True]
    assert [(one.id, one.answer) for one in table] == [("a", "x"), ("a#2", "y"), ("a#3", None)]
    assert table[0] == text
