from collections import Counter
from pathlib import Path

import pytest

from mirasol_cli.datasets.example import ClipSpan, DatasetOptions
from mirasol_cli.datasets.kinetics_sounds import CLASS_LISTS, candidates, read
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError, UsageError
from tests.datasets.excerpts import place, write
from tests.paths import SHARED

OPTIONS = DatasetOptions()
HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"


def test_only_clips_of_the_classes_are_taken(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "kinetics-400_val.csv": HEADER
            + '"blowing nose",-3nc7ljnlFQ,1,11,val,0\nabseiling,x,1,11,val,0\n"hurling (sport)",y,0,10,val,0\n'
        },
    )
    (split,) = read(tmp_path, None, OPTIONS)
    assert [(text.id, text.clip, text.answer) for text in split.texts] == [
        ("-3nc7ljnlFQ_000001_000011", ClipSpan(video="-3nc7ljnlFQ", start_s=1.0, end_s=11.0), "blowing nose")
    ]
    assert len(split.labels) == 32
    assert "class list of 32" in split.notes[0]


@pytest.mark.parametrize(
    ("classes", "labels"), [("31", ["singing"]), ("32", ["singing", "strumming guitar"]), ("34", ["singing", "strumming guitar", "typing"])]
)
def test_the_class_list_can_be_chosen(tmp_path: Path, classes: str, labels: list[str]) -> None:
    rows = "singing,a,0,10,train,0\nstrumming_guitar,b,0,10,train,0\ntyping,c,0,10,train,0\nyoga,d,0,10,train,0\n"
    write(tmp_path, {"train.csv": HEADER + rows})
    (split,) = read(tmp_path, None, DatasetOptions(classes=classes))
    assert [text.answer for text in split.texts] == labels
    assert len(split.labels) == int(classes) == len(set(CLASS_LISTS[classes]))


def test_other_class_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no class list of 33"):
        read(tmp_path, None, DatasetOptions(classes="33"))


def test_early_names_become_those_of_kinetics_400(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "validate.csv": HEADER
            + "fingerpicking,a,0,10,val,0\nblowing out,b,0,10,val,0\nmowing the lawn by pushing lawnmower,c,0,10,val,0\n"
        },
    )
    (split,) = read(tmp_path, None, OPTIONS)
    assert [text.answer for text in split.texts] == ["strumming guitar", "blowing out candles", "mowing lawn"]


@pytest.mark.parametrize(
    ("on_disk", "whole"),
    [
        ("val/-3nc7ljnlFQ_000417_000427.mp4", True),
        ("val/blowing nose/-3nc7ljnlFQ_000417_000427.mp4", True),
        ("val/blowing_nose/-3nc7ljnlFQ_000417_000427.mkv", True),
        ("-3nc7ljnlFQ_417_427.mp4", True),
        ("blowing nose/-3nc7ljnlFQ.webm", None),
    ],
)
def test_files_flat_or_in_class_folders(tmp_path: Path, on_disk: str, whole: bool | None) -> None:
    write(tmp_path, {on_disk: "", "-3nc7ljnlFQ_000001_000011.mp4": ""})
    found = VideoIndex(tmp_path).locate(candidates(ClipSpan(video="-3nc7ljnlFQ", start_s=417.0, end_s=427.0)))
    assert found is not None
    assert (found.path, found.whole) == (tmp_path / on_disk, whole)


def test_a_list_without_labels_gives_no_split(tmp_path: Path) -> None:
    write(tmp_path, {"test.csv": "youtube_id,time_start,time_end,split\na,0,10,test\n"})
    with pytest.raises(DataError, match=r"column 'label'; 'test.csv' has none"):
        read(tmp_path, None, OPTIONS)
    write(tmp_path, {"val.csv": HEADER + "singing,a,0,10,val,0\n"})
    splits = read(tmp_path, None, OPTIONS)
    assert [split.name for split in splits] == ["val"]
    assert any("'test.csv' has no label column" in note for note in splits[0].notes)


def test_impossible_spans_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"val.csv": HEADER + "singing,a,10,10,val,0\n"})
    with pytest.raises(DataError, match=r"val.csv' line 2: the span ends"):
        read(tmp_path, None, OPTIONS)


@pytest.mark.real
def test_real_validation_rows(tmp_path: Path) -> None:
    place(tmp_path, {"kinetics-sounds/kinetics-sounds_val.6_per_class.csv": "kinetics-400_val.csv"})
    place(tmp_path, {"kinetics-sounds/kinetics-400_test.head50.csv": "kinetics-400_test.csv"})
    (split,) = read(tmp_path, None, OPTIONS)
    assert Counter(text.answer for text in split.texts) == dict.fromkeys(CLASS_LISTS["32"], 6)
    (split,) = read(tmp_path, None, DatasetOptions(classes="31"))
    assert len(split.texts) == 31 * 6


@pytest.mark.real
def test_real_rows_of_other_classes_are_left_out(tmp_path: Path) -> None:
    place(tmp_path, {"kinetics-sounds/kinetics-400_val.odd_labels.csv": "val.csv"})
    assert read(tmp_path, None, OPTIONS)[0].texts == ()


@pytest.mark.real
def test_class_lists_are_those_in_print() -> None:
    assert SHARED is not None
    folder = SHARED / "annotations" / "kinetics-sounds"
    assert sorted(CLASS_LISTS["32"]) == sorted((folder / "classes_32_k400.txt").read_text().split("\n")[:32])
    assert sorted(CLASS_LISTS["31"]) == sorted((folder / "classes_31_k400.txt").read_text().split("\n")[:31])
    from mirasol_cli.datasets.kinetics_sounds import EARLY_NAMES

    paper = (folder / "classes_34_paper.txt").read_text().split("\n")[:34]
    assert sorted(EARLY_NAMES.get(name, name) for name in paper) == sorted(CLASS_LISTS["34"])
