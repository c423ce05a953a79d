"""Each data set laid out as published, with stand-in videos, through `prepare`: the right clips, questions and splits."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mirasol_cli.datasets.example import LABEL_PROMPT
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from tests.datasets.excerpts import place, write
from tests.stand_ins import prepared, shown, stand_in

VGG_ROWS = [
    ("---g-f_I2yQ", 1, "people marching", "test", "test/---g-f_I2yQ_000001.mp4", 10),
    ("-a_b_c", 30, "female speech, woman speaking", "test", "-a_b_c_30000_40000.mkv", 10),
    ("0123456789", 5, "singing", "train", "train/0123456789_5.MP4", 10),
    ("v_x", 7, "playing timpani", "train", "v_x_7_17.webm", 10),
    ("cut", 20, "playing tympani", "train", "cut.mp4", 10),
    ("source", 20, "eletric blender running", "train", "full/source.mp4", 45),
    ("gone", 3, "singing", "train", None, 0),
]


def lay_out_vggsound(root: Path) -> Path:
    table = "".join(f'{video},{start},"{label}",{split}\n' for video, start, label, split, _, _ in VGG_ROWS)
    stat = "".join(f'"{label}",650,home\n' for label in sorted({row[2] for row in VGG_ROWS}, reverse=True))
    write(root, {"data/vggsound.csv": table, "data/stat.csv": stat})
    for number, (*_, name, seconds) in enumerate(VGG_ROWS):
        if name:
            stand_in(root / "videos" / name, number, seconds, audio=number % 2 == 0)
    return root


def answers(split: ShardSplit, task: str) -> dict[str, str]:
    return {text["id"]: text["answer"] for text in split.texts(task)}


def test_vggsound(tmp_path: Path) -> None:
    summary, shards = prepared("vggsound", lay_out_vggsound(tmp_path / "root"), tmp_path / "out")
    counted = {name: tuple(found[key] for key in ("expected", "kept", "failed", "missing", "questions")) for name, found in summary.items()}
    assert counted["test"] == (2, 2, 0, 0, 2)
    assert [sum(found[place] for name, found in counted.items() if name != "test") for place in range(5)] == [5, 4, 0, 1, 5]
    assert sum(found["audio"]["audible"] for found in summary.values()) == sum(found["kept"] for found in summary.values()) // 2
    for name in summary:
        split = shards.split(name)
        assert split.labels == sorted({row[2] for row in VGG_ROWS})
        for text in split.texts("label"):
            assert text["question"] == LABEL_PROMPT
            number = next(n for n, row in enumerate(VGG_ROWS) if f"{row[0]}_{row[1]:06d}" == text["id"])
            assert text["answer"] == VGG_ROWS[number][2]
            if text["clip"] in split.kept:
                # a clip cut out already is shown whole, a source from its span alone
                assert shown(split, text["clip"]) == ((number, 20, 29) if VGG_ROWS[number][0] == "source" else (number, 0, 9))


@pytest.mark.slow
def test_vggsound_as_typed(tmp_path: Path) -> None:
    lay_out_vggsound(tmp_path / "data" / "vggsound")
    command = [sys.executable, "-m", "mirasol_cli", "prepare", "vggsound", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    environment.pop("MIRASOL_DATA", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["splits"]["test"]["kept"] == 2
    assert "CC BY 4.0" in done.stderr
    assert "val is held out of train" in done.stderr or "val" not in result["splits"]
    assert ShardFolder(tmp_path / result["out"]).split("test").labels


def test_activitynet_in_three_containers(tmp_path: Path) -> None:
    names = {"okC18bPTils": "v_okC18bPTils.mkv", "v_UmAH95xls": "v_v_UmAH95xls.mp4", "-s1MQAiOMeY": "v_-s1MQAiOMeY.webm"}
    questions = [{"video_name": video, "question": f"is it {n}", "question_id": f"v_{video}_{n}"} for video in names for n in range(3)]
    replies = [{"answer": "none", "type": n % 9, "question_id": row["question_id"]} for n, row in enumerate(questions)]
    write(tmp_path / "root", {"test_q.json": json.dumps(questions), "test_a.json": json.dumps(replies[::-1])})
    for number, name in enumerate(names.values()):
        stand_in(tmp_path / "root" / name, number, 20)
    summary, shards = prepared("activitynet", tmp_path / "root", tmp_path / "out")
    split = shards.split("test")
    assert (summary["test"]["kept"], summary["test"]["questions"]) == (3, 9)
    assert [shown(split, clip) for clip in range(3)] == [(number, 1, 18) for number in range(3)]  # all of the video
    assert [text["type"] for text in split.texts("qa")] == [str(n) for n in range(9)]
    assert {text["answer"] for text in split.texts("qa")} == {"none"}


def test_msvd_by_mapping_and_number(tmp_path: Path) -> None:
    rows = [{"answer": "NA", "id": n, "question": "who?", "video_id": video} for n, video in enumerate((1, 1, 1970))]
    write(
        tmp_path / "root", {"train_qa.json": json.dumps(rows), "youtube_mapping.txt": "-4wsuPCjDBc_5_15 vid1\nzzit5b_-ukg_5_20 vid1970\n"}
    )
    stand_in(tmp_path / "root/YouTubeClips/-4wsuPCjDBc_5_15.avi", 1, 10)
    stand_in(tmp_path / "root/YouTubeClips/vid1970.avi", 2, 10)
    summary, shards = prepared("msvd", tmp_path / "root", tmp_path / "out")
    split = shards.split("train")
    assert (summary["train"]["kept"], summary["train"]["questions"], summary["train"]["audio"]["none"]) == (2, 3, 2)
    assert [shown(split, text["clip"])[0] for text in split.texts("qa")] == [1, 1, 2]
    assert set(answers(split, "qa").values()) == {"NA"}


def test_both_tasks_of_nextqa_share_their_media(tmp_path: Path) -> None:
    columns = "video,frame_count,width,height,question,answer,qid,type"
    write(tmp_path / "root", {
        "mc/val.csv": f"{columns},a0,a1,a2,a3,a4\n0012,9,6,4,why,1,0,CW,a,b,c,d,e\n",
        "oe/val.csv": f"{columns}\n0012,9,6,4,why,cry,0,CW\n3400,9,6,4,is it,yes,0,DB\n",
        "map_vid_vidorID.json": '{"0012": "1164/0012", "3400": "0001/3400"}',
    })  # fmt: skip
    stand_in(tmp_path / "root/NExTVideo/1164/0012.mp4", 1)
    stand_in(tmp_path / "root/3400.mp4", 2)
    summary, shards = prepared("nextqa", tmp_path / "root", tmp_path / "out")
    split = shards.split("val")
    assert (summary["val"]["kept"], summary["val"]["tasks"]) == (2, {"mc": 1, "oe": 2})
    assert [shown(split, text["clip"])[0] for text in split.texts("oe")] == [1, 2]
    (mc,) = split.texts("mc")
    assert (shown(split, mc["clip"])[0], mc["answer"], mc["choices"]) == (1, "b", ["a", "b", "c", "d", "e"])


def test_epic_segments_of_one_long_video(tmp_path: Path) -> None:
    header = "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,description,class,class_id\n"
    rows = "P01_01_0,P01,P01_01,00:00:40.000,00:00:52.000,0,0,x,zip,42\nP01_01_1,P01,P01_01,00:00:20.000,00:00:21.000,0,0,x,water,5\n"
    write(tmp_path / "root", {"EPIC_Sounds_validation.csv": header + rows})
    stand_in(tmp_path / "root/EPIC-KITCHENS/P01/videos/P01_01.MP4", 3, 60)
    _, shards = prepared("epic-sounds", tmp_path / "root", tmp_path / "out")
    split = shards.split("val")
    by_id = {text["id"]: shown(split, text["clip"]) for text in split.texts("label")}
    assert by_id["P01_01_0"] == (3, 40, 51)
    number, first, last = by_id["P01_01_1"]  # one second: ten seconds of context around its middle
    assert (number, last - first >= 8, first <= 16, last >= 24) == (3, True, True, True)
    assert split.labels == ["water", "zip"]


def test_kinetics_in_class_folders_and_audioset_with_y(tmp_path: Path) -> None:
    write(
        tmp_path / "k",
        {"val.csv": 'label,youtube_id,time_start,time_end,split,is_cc\n"blowing nose",-x_1,417,427,val,0\nyoga,y,0,10,val,0\n'},
    )
    stand_in(tmp_path / "k/val/blowing nose/-x_1_000417_000427.mp4", 4)
    summary, shards = prepared("kinetics-sounds", tmp_path / "k", tmp_path / "k-out")
    assert (summary["val"]["expected"], summary["val"]["kept"]) == (1, 1)
    assert answers(shards.split("val"), "label") == {"-x_1_000417_000427": "blowing nose"}
    write(tmp_path / "a", {
        "eval_segments.csv": '# x\n--id, 30.000, 40.000, "/m/1,/m/2"\n--full, 20.000, 30.000, "/m/1"\n',
        "class_labels_indices.csv": 'index,mid,display_name\n0,/m/1,"Male speech, man speaking"\n1,/m/2,Dog\n',
    })  # fmt: skip
    stand_in(tmp_path / "a/eval/Y--id.mp4", 5)
    stand_in(tmp_path / "a/eval/--full.mp4", 6, 50)
    _, shards = prepared("audioset", tmp_path / "a", tmp_path / "a-out")
    split = shards.split("test")
    assert answers(split, "label") == {"--id_30.000": "Male speech, man speaking; Dog", "--full_20.000": "Male speech, man speaking"}
    assert [shown(split, text["clip"]) for text in split.texts("label")] == [(5, 0, 9), (6, 20, 29)]


def test_captions_in_folders_and_tars(tmp_path: Path) -> None:
    root = tmp_path / "root"
    stand_in(root / "00000/000000001.mp4", 7)
    write(root, {"00000/000000001.txt": "a dog"})
    member = stand_in(tmp_path / "member.mp4", 8).read_bytes()
    with tarfile.open(root / "00001.tar", "w") as archive:
        for name, content in {"k1.mp4": member, "k1.json": b'{"caption": "a cat"}'}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    overrides = ["data.dataset=captions"]
    _, shards = prepared("captions", root, tmp_path / "out", overrides=overrides, recipe="vggsound")
    split = shards.split("train")
    assert {text["answer"]: shown(split, text["clip"])[0] for text in split.texts("caption")} == {"a dog": 7, "a cat": 8}


@pytest.mark.real
def test_the_real_head_of_vggsound(tmp_path: Path) -> None:
    root = place(tmp_path / "root", {"vggsound/vggsound.head.csv": "vggsound.csv", "vggsound/stat.csv": "stat.csv"})
    rows = [line.split(",") for line in (root / "vggsound.csv").read_text().splitlines() if line.endswith(",test")]
    for number, (video, start_text, *_) in enumerate(rows):
        start = int(start_text)
        forms = (f"{start:06d}", f"{start * 1000}_{start * 1000 + 10000}", f"{start}", f"{start}_{start + 10}", None)
        if number % 6 < 5:
            form = forms[number % 6]
            stand_in(root / "test" / (f"{video}_{form}.mp4" if form else f"{video}.mp4"), number)
    summary, shards = prepared("vggsound", root, tmp_path / "out", splits=("test",))
    assert summary["test"]["expected"] == summary["test"]["questions"] == len(rows) == 22
    split = shards.split("test")
    for text in split.texts("label"):
        number = next(n for n, row in enumerate(rows) if text["id"] == f"{row[0]}_{int(row[1]):06d}")
        assert (text["clip"] in split.kept) == (number % 6 < 5)
        assert text["answer"] == ",".join(rows[number][2:-1]).strip('"')
        if number % 6 < 5:
            assert shown(split, text["clip"]) == (number, 0, 9)
