from pathlib import Path

import pytest

from mirasol_cli.datasets.audioset import candidates, read
from mirasol_cli.datasets.example import ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import place, write

OPTIONS = DatasetOptions()
INDEX = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00088,"Gush"\n'
OFFICIAL = '# Segments csv created\n# num_ytids=2, "\n# YTID, start\n--PJHxphWEs, 30.000, 40.000, "/m/05zppz,/t/dd00088"\n'
RAGGED = '--PJHxphWEs,30.000,40.000,"""/m/05zppz","/t/dd00088""",,,,\r\n'


def only(splits: list[Split]) -> Split:
    (split,) = splits
    return split


@pytest.mark.parametrize("table", [OFFICIAL, RAGGED, "YTID,start_seconds,end_seconds,positive_labels\n" + RAGGED])
def test_the_published_form_and_spreadsheet_re_saves(tmp_path: Path, table: str) -> None:
    write(tmp_path, {"eval_segments.csv": table, "class_labels_indices.csv": INDEX})
    split = only(read(tmp_path, None, OPTIONS))
    (text,) = split.texts
    assert (split.name, text.clip) == ("test", ClipSpan(video="--PJHxphWEs", start_s=30.0, end_s=40.0))
    assert text.references == ("Male speech, man speaking", "Gush")
    assert text.answer == "Male speech, man speaking; Gush"
    assert split.labels == ("Speech", "Male speech, man speaking", "Gush")


def test_balanced_and_unbalanced_are_not_mixed_up(tmp_path: Path) -> None:
    row = 'a{}, 0.000, 10.000, "/m/09x0r"\n'
    files = {f"{name}_segments.csv": row.format(n) for n, name in enumerate(("balanced_train", "unbalanced_train", "eval"))}
    write(tmp_path, {**files, "class_labels_indices.csv": INDEX})
    assert {split.name: split.clips[0].video for split in read(tmp_path, None, OPTIONS)} == {
        "train": "a0",
        "unbalanced": "a1",
        "test": "a2",
    }
    (tmp_path / "balanced_train_segments.csv").unlink()
    assert [split.name for split in read(tmp_path, None, OPTIONS)] == ["unbalanced", "test"]


@pytest.mark.parametrize(
    ("on_disk", "whole"),
    [
        ("--PJHxphWEs_30.000.mp4", True),
        ("Y--PJHxphWEs_30.000_40.000.mp4", True),
        ("eval/--PJHxphWEs_30000_40000.mkv", True),
        ("--PJHxphWEs_30_40.mp4", True),
        ("--PJHxphWEs.mp4", None),
        ("Y--PJHxphWEs.webm", None),
    ],
)
def test_files_on_disk(tmp_path: Path, on_disk: str, whole: bool | None) -> None:
    write(tmp_path, {on_disk: ""})
    found = VideoIndex(tmp_path).locate(candidates(ClipSpan(video="--PJHxphWEs", start_s=30.0, end_s=40.0)))
    assert found is not None
    assert (found.path, found.whole) == (tmp_path / on_disk, whole)


def test_segments_of_one_video_have_their_own_ids(tmp_path: Path) -> None:
    rows = 'a, 0.000, 10.000, "/m/09x0r"\na, 30.000, 40.000, "/m/09x0r"\n'
    write(tmp_path, {"eval_segments.csv": rows, "class_labels_indices.csv": INDEX})
    split = only(read(tmp_path, None, OPTIONS))
    assert [text.id for text in split.texts] == ["a_0.000", "a_30.000"]
    assert len(split.clips) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a, 0.0, 10.0", "line 2 has 3 cells"),
        ('a, 0.0, 10.0, "/m/none"', "line 2: label '/m/none' is not in"),
        ('a, x, 10.0, "/m/09x0r"', "line 2: 'x' is not"),
    ],
)
def test_damage_is_named(tmp_path: Path, row: str, message: str) -> None:
    write(tmp_path, {"eval_segments.csv": 'b, 0.0, 10.0, "/m/09x0r"\n' + row, "class_labels_indices.csv": INDEX})
    with pytest.raises(DataError, match=f"eval_segments.csv' {message}"):
        read(tmp_path, None, OPTIONS)


def test_the_names_of_the_labels_are_asked_for(tmp_path: Path) -> None:
    write(tmp_path, {"eval_segments.csv": OFFICIAL})
    with pytest.raises(DataError, match=r"expected 'class_labels_indices.csv'"):
        read(tmp_path, None, OPTIONS)


@pytest.mark.real
def test_real_re_save_and_published_layout_agree(tmp_path: Path) -> None:
    place(
        tmp_path / "a",
        {"audioset/ast_eval_segments.head100.csv": "eval_segments.csv", "audioset/class_labels_indices.csv": "class_labels_indices.csv"},
    )
    place(
        tmp_path / "b",
        {
            "audioset/eval_segments.rebuilt_head200.csv": "eval_segments.csv",
            "audioset/class_labels_indices.csv": "class_labels_indices.csv",
        },
    )
    ragged, published = only(read(tmp_path / "a", None, OPTIONS)), only(read(tmp_path / "b", None, OPTIONS))
    assert (len(ragged.texts), len(published.texts)) == (100, 200)
    assert ragged.texts == published.texts[:100]
    assert len(published.labels) == 527
    assert any(text.clip.end_s == 9.0 for text in published.texts)  # not all segments last 10 s


@pytest.mark.real
def test_real_header(tmp_path: Path) -> None:
    place(
        tmp_path,
        {
            "audioset/balanced_train_segments.head4.csv": "balanced_train_segments.csv",
            "audioset/class_labels_indices.csv": "class_labels_indices.csv",
        },
    )
    split = only(read(tmp_path, None, OPTIONS))
    assert (split.name, len(split.texts), split.texts[0].clip.video) == ("train", 4, "--PJHxphWEs")
    assert split.texts[0].answer == "Speech; Gush"
