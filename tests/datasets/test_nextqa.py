import json
from collections import Counter
from pathlib import Path

import pytest

from mirasol_cli.datasets.example import DatasetOptions, Split
from mirasol_cli.datasets.nextqa import candidates, read
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import place, write

OPTIONS = DatasetOptions()
MC = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
OE = "video,frame_count,width,height,question,answer,qid,type\n"


def keyed(splits: list[Split]) -> dict[tuple[str, str], Split]:
    return {(split.name, split.task): split for split in splits}


def test_the_header_tells_the_task(tmp_path: Path) -> None:
    write(tmp_path, {
        "mc/val.csv": MC + "0012345678,9,6,4,why,4,6,CW,a,b,c,d,e\n",
        "oe/val.csv": OE + "0012345678,9,6,4,how many,2,6,DC\n9,9,6,4,is it,none,1,DB\n",
    })  # fmt: skip
    splits = keyed(read(tmp_path, None, OPTIONS))
    (mc,) = splits["val", "mc"].texts
    assert (mc.id, mc.answer, mc.choices, mc.type) == ("0012345678_6", "e", ("a", "b", "c", "d", "e"), "CW")
    assert [(t.id, t.answer, t.choices) for t in splits["val", "oe"].texts] == [("0012345678_6", "2", ()), ("9_1", "none", ())]
    # both tasks point into the same clips, asked for together or alone
    assert [clip.video for clip in splits["val", "mc"].clips] == ["0012345678", "9"]
    (alone,) = read(tmp_path, "mc", OPTIONS)
    assert alone == splits["val", "mc"]


@pytest.mark.parametrize("on_disk", ["1164/2574374895.mp4", "NExTVideo/1164/2574374895.mp4", "2574374895.mp4"])
def test_files_by_the_map_or_by_the_bare_id(tmp_path: Path, on_disk: str) -> None:
    write(
        tmp_path,
        {"test.csv": OE + "2574374895,9,6,4,why,x,0,TN\n", "map_vid_vidorID.json": '{"2574374895": "1164/2574374895"}', on_disk: "x"},
    )
    (split,) = read(tmp_path, "oe", OPTIONS)
    videos = VideoIndex(tmp_path)
    assert videos.find(candidates(split.clips[0])) == tmp_path / on_disk
    assert not videos.duplicates


def test_repeated_pairs_get_ids_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, {"train.csv": OE + "1,9,6,4,why,x,3,CW\n1,9,6,4,why then,y,3,CW\n", "map_vid_vidorID.json": "{}"})
    (split,) = read(tmp_path, None, OPTIONS)
    assert [(text.id, text.answer) for text in split.texts] == [("1_3", "x"), ("1_3#2", "y")]
    assert "1 repeated ids" in split.notes[-1]


def test_second_references_are_for_the_open_ended_test_split(tmp_path: Path) -> None:
    row = "5,9,6,4,why,cry,2,CW\n"
    write(tmp_path, {"test.csv": OE + row, "val.csv": OE + row, "add_reference_answer_test.json": json.dumps({"5": {"2": "weep"}})})
    splits = keyed(read(tmp_path, None, OPTIONS))
    assert splits["test", "oe"].texts[0].references == ("weep",)
    assert splits["val", "oe"].texts[0].references == ()


def test_answers_given_as_text_are_taken_too(tmp_path: Path) -> None:
    write(tmp_path, {"train.csv": MC + "5,9,6,4,why,c,2,CW,a,b,c,d,e\n"})
    assert read(tmp_path, None, OPTIONS)[0].texts[0].answer == "c"


@pytest.mark.parametrize(
    ("row", "message"),
    [("5,9,6,4,why,7,2,CW,a,b,c,d,e\n", "answer '7' is neither 0 to 4"), ("5,9,6,4,why,1,2,XX,a,b,c,d,e\n", "type 'XX' is not one of")],
)
def test_damage(tmp_path: Path, row: str, message: str) -> None:
    write(tmp_path, {"train.csv": MC + row})
    with pytest.raises(DataError, match=f"train.csv' line 2: {message}"):
        read(tmp_path, None, OPTIONS)


@pytest.mark.real
def test_real_excerpts(tmp_path: Path) -> None:
    place(tmp_path, {f"nextqa/mc/{s}.head200.csv": f"mc/{s}.csv" for s in ("val", "test")})
    place(tmp_path, {f"nextqa/oe/{s}.head200.csv": f"oe/{s}.csv" for s in ("train", "val", "test")})
    place(tmp_path, {"nextqa/map_vid_vidorID.excerpt.json": "map_vid_vidorID.json"})
    splits = keyed(read(tmp_path, None, OPTIONS))
    assert {key: len(split.texts) for key, split in splits.items()} == dict.fromkeys(
        [("val", "mc"), ("test", "mc"), ("train", "oe"), ("val", "oe"), ("test", "oe")], 200
    )
    first = splits["val", "mc"].texts[0]
    assert (first.id, first.answer, first.type) == ("4010069381_6", "roll the handle", "CH")
    assert all(text.answer in text.choices and len(text.choices) == 5 for text in splits["val", "mc"].texts)
    assert all(
        text.clip.aliases == (f"{text.clip.aliases[0].split('/')[0]}/{text.clip.video}",) for s in splits.values() for text in s.texts
    )
    lines = (tmp_path / "mc/val.csv").read_text().splitlines()[1:]
    assert Counter(text.type for text in splits["val", "mc"].texts) == Counter(line.split(",")[7] for line in lines)
    assert "DB" in {text.type for text in splits["val", "oe"].texts}
    assert "TP" in {text.type for split in splits.values() for text in split.texts}  # kept here; scores merge it into TN


@pytest.mark.real
def test_real_second_references(tmp_path: Path) -> None:
    place(tmp_path, {"nextqa/oe/test.rows_for_add_reference.csv": "test.csv"})
    place(tmp_path, {"nextqa/oe/add_reference_answer_test.head20.json": "add_reference_answer_test.json"})
    (split,) = read(tmp_path, "oe", OPTIONS)
    added = json.loads((tmp_path / "add_reference_answer_test.json").read_text())
    assert sum(bool(text.references) for text in split.texts) == sum(map(len, added.values()))
    assert len(split.clips) == 20
