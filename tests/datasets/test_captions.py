import io
import json
import tarfile
from pathlib import Path

import pytest

from mirasol_cli.datasets.captions import candidates, read
from mirasol_cli.datasets.example import CAPTION_PROMPT, Candidate, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.resolver import VideoIndex, unpack
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import place, write

OPTIONS = DatasetOptions()


def only(root: Path) -> Split:
    (split,) = read(root, None, OPTIONS)
    return split


def test_msrvtt_keys_with_spaces_and_official_splits(tmp_path: Path) -> None:
    videos = [
        {"id": n, "video_id": f"video{n}", "category": 1, "url": "u", "start time": 1.0, "end time": 9.0, "split": s}
        for n, s in enumerate(("train", "validate", "test"))
    ]
    sentences = [{"sen_id": 20 * n + k, "video_id": f"video{n}", "caption": f"caption {k}"} for n in range(3) for k in range(20)]
    write(tmp_path, {"MSRVTT_data.json": json.dumps({"info": {}, "videos": videos, "sentences": sentences})})
    splits = {split.name: split for split in read(tmp_path, "caption", OPTIONS)}
    assert {name: (len(s.clips), len(s.texts)) for name, s in splits.items()} == dict.fromkeys(("train", "val", "test"), (1, 20))
    assert splits["val"].clips == (ClipSpan(video="video1"),)  # the file is the clip: the times belong to the YouTube source


def test_vatex_ids_hold_their_span(tmp_path: Path) -> None:
    rows = [{"videoID": "a_-b_000055_000065", "enCap": ["one", "two"], "chCap": ["x"]}, {"videoID": "c_000001_000011", "chCap": ["x"]}]
    write(tmp_path, {"vatex_validation_v1.0.json": json.dumps(rows)})
    split = only(tmp_path)
    assert (split.name, [text.answer for text in split.texts]) == ("val", ["one", "two"])
    assert candidates(split.clips[0]) == [Candidate("a_-b_000055_000065", True), Candidate("a_-b", False)]
    assert (split.clips[0].start_s, split.clips[0].end_s) == (55.0, 65.0)
    assert any("1 videos of 'vatex_validation_v1.0.json' have no English captions" in note for note in split.notes)


PANDA = "videoID,url,timestamp,caption,matching_score,desirable_filtering,shot_boundary_detection\n"


def test_panda70m_lists_and_damaged_rows(tmp_path: Path) -> None:
    good = "\"[['0:00:08.341', '0:00:13.300'], ['0:01:00.0', '0:01:02.5']]\",\"['it''s a \"\"dog\"\"', 'a cat']\",[0.4],['d'],[]\n"
    good = good.replace("it''s", "its")
    evil = "\"__import__('os').system('touch {}')\",['x'],[0.4],['d'],[]\n".format(tmp_path / "pwned")
    uneven = "\"[['0:00:01', '0:00:02']]\",[],[0.4],['d'],[]\n"
    deep = '"' + "[" * 5000 + "\",[],[0.4],['d'],[]\n"
    write(tmp_path, {"panda70m_testing.csv": PANDA + f"-a_b,u,{good}x,u,{evil}y,u,{uneven}z,u,{deep}short,row\n"})
    split = only(tmp_path)
    assert split.name == "test"
    assert [(t.id, t.clip.start_s, t.clip.end_s, t.answer) for t in split.texts] == [
        ("-a_b_0", 8.341, 13.3, 'its a "dog"'),
        ("-a_b_1", 60.0, 62.5, "a cat"),
    ]
    assert candidates(split.clips[1]) == [Candidate("-a_b_1", True), Candidate("-a_b", False)]
    assert any("4 damaged rows of 'panda70m_testing.csv' were left out, the first at line 3" in note for note in split.notes)
    assert not (tmp_path / "pwned").exists()


def test_a_row_in_two_lists_is_kept_once(tmp_path: Path) -> None:
    row = "a,u,\"[['0:00:01', '0:00:02']]\",\"['x']\",[0.4],['d'],[]\n"
    write(tmp_path, {"panda70m_training_full.csv": PANDA + row, "panda70m_training_2m.csv": PANDA + row})
    assert [text.id for text in only(tmp_path).texts] == ["a_0"]


def test_internvid(tmp_path: Path) -> None:
    row = {"YoutubeID": "-x_y", "Start_timestamp": "00:07:33.689", "End_timestamp": "00:07:51.085", "Caption": "none", "UMT_Score": 0.4}
    write(tmp_path, {"InternVid-10M.jsonl": json.dumps(row) + "\n\n"})
    (text,) = only(tmp_path).texts
    assert (text.clip.start_s, text.clip.end_s, text.answer) == (453.689, 471.085, "none")
    assert [c.whole for c in candidates(text.clip)] == [True, True, False]


def conversation(*turns: str) -> list[dict]:
    return [{"from": "human" if n % 2 == 0 else "gpt", "value": value} for n, value in enumerate(turns)]


def test_llava_turns_placeholders_and_tasks(tmp_path: Path) -> None:
    video = "academic_source/Charades/RW587.mp4"
    rows = [
        {"id": 0, "conversations": conversation("<image>\nWhat is it?", "A cat.", "Why?", "It sits."), "data_source": "s", "video": video}
    ]
    write(tmp_path, {
        "0_30_s_academic_oe_v0_1_qa_processed.json": json.dumps([*rows, {"id": 1, "image": "x.png"}]),
        "0_30_s_academic_v0_1_cap_processed.json": json.dumps([rows[0] | {"conversations": conversation("<image>\nDescribe.", "A cat.")}]),
        f"videos/{video}": "",
    })  # fmt: skip
    splits = {split.task: split for split in read(tmp_path, None, OPTIONS)}
    assert [(t.id, t.question, t.answer) for t in splits["qa"].texts] == [("s/0", "What is it?", "A cat."), ("s/0/2", "Why?", "It sits.")]
    assert [(t.question, t.answer) for t in splits["caption"].texts] == [("Describe.", "A cat.")]
    assert splits["qa"].clips == splits["caption"].clips
    assert any("1 entries of" in note and "have no video" in note for note in splits["qa"].notes)
    assert VideoIndex(tmp_path).find(candidates(splits["qa"].clips[0])) == tmp_path / "videos" / video


def test_folders_of_video2dataset(tmp_path: Path) -> None:
    write(tmp_path, {
        "00000/000000001.mp4": "v", "00000/000000001.txt": "from txt\n", "00000/000000001.json": '{"caption": "from json"}',
        "00001/000000001.mp4": "v", "00001/000000001.json": '{"caption": "a dog", "status": "success"}',
        "val/00000/5.webm": "v", "val/00000/5.txt": "a cat",
        "00001/9.mp4": "v", "00001/9.json": '{"caption": null}', "00001/7.mp4": "v", "00000_stats.json": "{}",
    })  # fmt: skip
    splits = {split.name: split for split in read(tmp_path, None, OPTIONS)}
    assert [(t.id, t.answer) for t in splits["train"].texts] == [("00000/000000001", "from txt"), ("00001/000000001", "a dog")]
    assert [t.answer for t in splits["val"].texts] == ["a cat"]
    assert splits["train"].texts[0].question == CAPTION_PROMPT
    videos = VideoIndex(tmp_path)
    assert [videos.find(candidates(clip)) for clip in splits["train"].clips] == [tmp_path / f"0000{n}/000000001.mp4" for n in (0, 1)]
    assert any("1 videos whose .txt or .json holds no caption" in note for note in splits["train"].notes)


def test_tar_shards(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web/00000.tar", "w") as archive:
        for name, content in {
            "k1.mp4": b"one",
            "k1.txt": b"a dog",
            "k2.mp4": b"two",
            "k2.json": b'{"caption": "a cat"}',
            "k3.mp4": b"none",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write(tmp_path, {"web/00001.tar": b"<html>no tar"})
    split = only(tmp_path)
    assert [(t.id, t.answer) for t in split.texts] == [("web/00000/k1", "a dog"), ("web/00000/k2", "a cat")]
    found = [VideoIndex(tmp_path).locate(candidates(clip)) for clip in split.clips]
    assert [unpack(f, tmp_path).read_bytes() for f in found if f] == [b"one", b"two"]
    assert any("'web/00001.tar' is damaged" in note for note in split.notes)


def test_a_list_in_a_format_that_is_not_read_names_the_manifest(tmp_path: Path) -> None:
    write(tmp_path, {"results_2M_val.csv": "videoid,name,page_dir\n1,a dog,p\n"})
    with pytest.raises(DataError, match=r"another format: write a manifest"):
        read(tmp_path, None, OPTIONS)


@pytest.mark.real
@pytest.mark.parametrize(
    ("files", "clips", "texts"),
    [
        ({"msrvtt/msrvtt_test.head100.csv": "msrvtt_test.csv"}, 100, 100),
        ({"msrvtt/videodatainfo.example.json": "test_videodatainfo.json"}, 1, 1),
        ({"vatex/vatex.sample2.json": "vatex_public_test_english_v1.1.json"}, 2, 20),
        ({"internvid/example.jsonl": "InternVid.jsonl"}, 1, 1),
        ({"llava-video-178k/example.json": "0_30_s_academic_v0_1_cap_processed.json"}, 1, 1),
    ],
)
def test_real_samples(tmp_path: Path, files: dict[str, str], clips: int, texts: int) -> None:
    split = only(place(tmp_path, {f"captions/{source}": target for source, target in files.items()}))
    assert (len(split.clips), len(split.texts)) == (clips, texts)
    assert all(candidates(clip) for clip in split.clips)
