import csv
from pathlib import Path

import pytest

from mirasol_cli.datasets.example import LABEL_PROMPT, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.resolver import VideoIndex, span_to_read
from mirasol_cli.datasets.vggsound import candidates, read
from mirasol_cli.errors import DataError, UsageError
from tests.datasets.excerpts import place, write

OPTIONS = DatasetOptions()
ROWS = '---g-f_I2yQ,1,people marching,test\n--9O4XZOge4,30,"female speech, woman speaking",train\na_b_c,0,eletric blender running,test\n'


def by_name(splits: list[Split]) -> dict[str, Split]:
    return {split.name: split for split in splits}


def test_no_header_quoted_commas_and_hostile_ids(tmp_path: Path) -> None:
    write(tmp_path, {"data/vggsound.csv": "\ufeff" + ROWS.replace("\n", "\r\n") + "\r\n"})
    splits = by_name(read(tmp_path, None, DatasetOptions(held_out=0)))
    assert [(t.id, t.clip, t.answer, t.question) for t in splits["test"].texts] == [
        ("---g-f_I2yQ_000001", ClipSpan(video="---g-f_I2yQ", start_s=1.0, end_s=11.0), "people marching", LABEL_PROMPT),
        ("a_b_c_000000", ClipSpan(video="a_b_c", start_s=0.0, end_s=10.0), "eletric blender running", LABEL_PROMPT),
    ]
    assert splits["train"].texts[0].answer == "female speech, woman speaking"
    assert splits["train"].labels == ("eletric blender running", "female speech, woman speaking", "people marching")
    assert any("no 'stat.csv'" in note for note in splits["train"].notes)


def test_a_header_of_a_re_save_is_no_clip(tmp_path: Path) -> None:
    write(tmp_path, {"vggsound.csv": "youtube_id,start_seconds,label,split\n" + ROWS})
    assert sum(len(split.texts) for split in read(tmp_path, None, OPTIONS)) == 3


@pytest.mark.parametrize(
    ("on_disk", "whole"),
    [
        ("--9O4XZOge4_000030.mp4", True),
        ("train/--9O4XZOge4_30000_40000.MP4", True),
        ("--9O4XZOge4_30.webm", True),
        ("video/test/--9O4XZOge4_30_40.mkv", True),
        ("--9O4XZOge4.mp4", None),
    ],
)
def test_five_names_on_disk(tmp_path: Path, on_disk: str, whole: bool | None) -> None:
    write(tmp_path, {on_disk: "x", "--9O4XZOge4_000130.mp4": "another clip", "9O4XZOge4_000030.mp4": "another video"})
    clip = ClipSpan(video="--9O4XZOge4", start_s=30.0, end_s=40.0)
    found = VideoIndex(tmp_path).locate(candidates(clip))
    assert found is not None
    assert (found.path, found.whole) == (tmp_path / on_disk, whole)
    assert span_to_read(clip, found.whole, 10.0) is None
    assert span_to_read(clip, found.whole, 200.0) == (None if whole else (30.0, 40.0))


def test_several_clips_of_one_video_are_not_mixed_up(tmp_path: Path) -> None:
    write(tmp_path, {"x_000003.mp4": "", "x_000030.mp4": "", "x_000300.mp4": ""})
    videos = VideoIndex(tmp_path)
    for start in (3, 30, 300):
        path = videos.find(candidates(ClipSpan(video="x", start_s=float(start), end_s=start + 10.0)))
        assert path == tmp_path / f"x_{start:06d}.mp4"


def test_val_is_a_fixed_small_share_of_the_train_videos(tmp_path: Path) -> None:
    rows = [f"id{n:05d},{start},singing,train" for n in range(5000) for start in (0, 50)]
    write(tmp_path / "a", {"vggsound.csv": "\n".join([*rows, "t,0,singing,test"])})
    write(tmp_path / "b", {"vggsound.csv": "\n".join(reversed(rows[:2000]))})
    whole, part = by_name(read(tmp_path / "a", None, OPTIONS)), by_name(read(tmp_path / "b", None, OPTIONS))
    ids = {name: {clip.video for clip in split.clips} for name, split in whole.items()}
    assert not ids["train"] & ids["val"]
    assert 0.015 < len(ids["val"]) / 5000 < 0.025
    assert len(whole["val"].clips) == 2 * len(ids["val"])  # all clips of a held-out video
    # the choice depends on the id alone
    assert {clip.video for clip in part["val"].clips} == {video for video in ids["val"] if video < "id01000"}
    assert any("held out of train by YouTube id (2.0% of the ids)" in note for note in whole["val"].notes)


def test_the_class_list_is_that_of_stat_csv_in_order(tmp_path: Path) -> None:
    stat = 'zebra braying,650,animals\n"female speech, woman speaking",1050,people\npeople marching,10,people\napplause,9,people\n'
    write(tmp_path, {"vggsound.csv": ROWS, "stat.csv": stat})
    split = by_name(read(tmp_path, None, OPTIONS))["test"]
    assert split.labels == ("applause", "female speech, woman speaking", "people marching", "zebra braying")
    assert "class list: the 4 labels of 'stat.csv', sorted" in split.notes
    assert "1 labels are not in 'stat.csv', such as 'eletric blender running'" in split.notes


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_is_a_share(tmp_path: Path, share: float) -> None:
    write(tmp_path, {"vggsound.csv": ROWS})
    with pytest.raises(UsageError, match="cannot be held out"):
        read(tmp_path, None, DatasetOptions(held_out=share))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,b", "line 2 has 3 cells instead of 4"),
        ("a,1,people marching, quickly,test", "line 2 has 5 cells instead of 4"),
        ("a,x,b,test", "line 2: 'x' is not a start in seconds"),
        ("a,1,b,tset", "line 2: 'tset' is not a split"),
        ("a,1,,test", "line 2: the id or the label is empty"),
    ],
)
def test_damage_is_named(tmp_path: Path, row: str, message: str) -> None:
    write(tmp_path, {"vggsound.csv": "x,0,singing,test\n" + row})
    with pytest.raises(DataError, match=f"vggsound.csv' {message}"):
        read(tmp_path, None, OPTIONS)


@pytest.mark.real
def test_real_head(tmp_path: Path) -> None:
    place(tmp_path, {"vggsound/vggsound.head.csv": "vggsound.csv", "vggsound/stat.csv": "stat.csv"})
    splits = by_name(read(tmp_path, "label", OPTIONS))
    rows = list(csv.reader((tmp_path / "vggsound.csv").open(newline="")))
    assert len(rows) == 215
    assert sum(len(split.texts) for split in splits.values()) == 215
    assert len(splits["test"].texts) == sum(row[3] == "test" for row in rows)
    labels = splits["test"].labels
    assert len(labels) == 309
    assert list(labels) == sorted(labels)
    assert {text.answer for split in splits.values() for text in split.texts} <= set(labels)
    # whole strings: typos, prefixes of others, commas and parentheses are labels of their own
    assert {"eletric blender running", "playing timpani", "playing tympani", "airplane", "airplane flyby", "police car (siren)"} <= set(
        labels
    )
    assert sum("," in label for label in labels) == 23
    first = rows[0]
    text = next(t for t in splits["test"].texts if t.clip.video == first[0])
    assert (text.id, text.answer) == (f"{first[0]}_{int(first[1]):06d}", first[2])


@pytest.mark.real
def test_real_benchmark_list(tmp_path: Path) -> None:
    place(tmp_path, {"vggsound/test.head200.csv": "test.csv", "vggsound/stat.csv": "stat.csv"})
    (split,) = read(tmp_path, None, OPTIONS)
    assert (split.name, len(split.texts)) == ("test", 200)
    assert split.texts[0].clip == ClipSpan(video="glLQrEijrKg", start_s=300.0, end_s=310.0)
    names = [line.rpartition(".mp4")[0] for line in (tmp_path / "test.csv").read_text().splitlines()]
    assert [text.id for text in split.texts] == names
    assert any("_" in text.clip.video for text in split.texts)


@pytest.mark.real
def test_real_names_of_known_bad_clips_are_found(tmp_path: Path) -> None:
    place(tmp_path / "lists", {"vggsound/known_bad/filtered_audio_has_0_std.head50.txt": "bad.txt"})
    names = (tmp_path / "lists/bad.txt").read_text().split()
    videos = VideoIndex(write(tmp_path / "videos", {f"{name}.mp4": "" for name in names}))
    for name in names:
        video, start, end = name.rsplit("_", 2)
        clip = ClipSpan(video=video, start_s=int(start) / 1000, end_s=int(end) / 1000)
        assert videos.find(candidates(clip)) == tmp_path / "videos" / f"{name}.mp4"
