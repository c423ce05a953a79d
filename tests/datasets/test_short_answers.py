"""MSRVTT-QA and MSVD-QA."""

import json
from collections import Counter
from pathlib import Path

import pytest

from mirasol_cli.datasets import msrvtt, msvd
from mirasol_cli.datasets.example import CAPTION_PROMPT, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import place, write

OPTIONS = DatasetOptions()


def by_name(splits: list[Split]) -> dict[str, Split]:
    assert len({split.name for split in splits}) == len(splits)
    return {split.name: split for split in splits}


def question(video: object, number: int = 1, **more: object) -> dict:
    return {"answer": "null", "id": number, "question": "who sings?", "video_id": video, **more}


def test_int_ids_become_file_names_and_answers_stay_text(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a/test_qa.json": json.dumps([question(7010, category_id=3), question(7010, 2, question="is it?", answer=2)]),
            "v/video7010.mp4": "x",
        },
    )
    (split,) = msrvtt.read(tmp_path, "qa", OPTIONS)
    assert [(t.id, t.answer, t.type) for t in split.texts] == [("1", "null", "who"), ("2", "2", "other")]
    assert split.clips == (ClipSpan(video="video7010"),)
    assert VideoIndex(tmp_path).find(msrvtt.candidates(split.clips[0])) == tmp_path / "v/video7010.mp4"
    assert "no questions of the split train or val were found" in split.notes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "test.jsonl",
            '{"answer": "couch", "question": "what is it?", "video_id": "video6513", "answer_type": "what", "question_id": 5}\n',
        ),
        ("msrvtt_qa_test.jsonl", '{"answer": "couch", "question": "what is it?", "video_id": "video6513.mp4", "id": "5"}\n'),
        ("test.csv", "video,question,answer,qid,type\n6513,what is it?,couch,5,14\n"),
        ("test.csv", "question,answer,category_id,video_id,id\nwhat is it?,couch,14,6513,5\n"),
        ("msrvtt_test.csv", "\ufeffvideo,width,height,question,answer,qid\r\n6513,1,1,what is it?,couch,5\r\n"),
    ],
)
def test_re_packaged_forms_give_the_same(tmp_path: Path, name: str, content: str) -> None:
    write(tmp_path, {name: content})
    (split,) = msrvtt.read(tmp_path, None, OPTIONS)
    (text,) = split.texts
    assert (text.id, text.clip.video, text.question, text.answer, text.type) == ("5", "video6513", "what is it?", "couch", "what")


def test_a_caption_file_of_the_same_name_is_no_question_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "test.csv": "key,vid_key,video_id,sentence\nret0,msr1,video1,a dog\n",
            "sub/test.csv": "video,question,answer,qid,type\n2,who?,dog,1,1\n",
        },
    )
    qa, caption = msrvtt.read(tmp_path, None, OPTIONS)
    assert (qa.task, caption.task, caption.texts[0].question) == ("qa", "caption", CAPTION_PROMPT)
    assert qa.clips == caption.clips == (ClipSpan(video="video1"), ClipSpan(video="video2"))
    assert [split.task for split in msrvtt.read(tmp_path, "caption", OPTIONS)] == ["caption"]
    with pytest.raises(DataError, match="have no task 'mc', only caption, qa"):
        msrvtt.read(tmp_path, "mc", OPTIONS)


def test_msvd_files_go_by_number_or_by_youtube_name(tmp_path: Path) -> None:
    mapping = "-4wsuPCjDBc_5_15 vid1\n\nzzit5b_-ukg_5_20 vid1970\n"
    rows = [question(1), question("zzit5b_-ukg_5_20", 2), question("vid3", 3)]
    write(tmp_path, {"train_qa.json": json.dumps(rows), "youtube_mapping.txt": mapping})
    write(tmp_path, {"YouTubeClips/-4wsuPCjDBc_5_15.avi": "x", "YouTubeClips/vid1970.avi": "x", "MSRVTT/video3.mp4": "x"})
    (split,) = msvd.read(tmp_path, None, OPTIONS)
    assert [clip.video for clip in split.clips] == ["vid1", "vid1970", "vid3"]
    videos = VideoIndex(tmp_path)
    found = [videos.find(msvd.candidates(clip)) for clip in split.clips]
    assert [path.name if path else None for path in found] == ["-4wsuPCjDBc_5_15.avi", "vid1970.avi", None]


def test_a_damaged_mapping_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"train_qa.json": json.dumps([question(1)]), "youtube_mapping.txt": "a vid1\nb\n"})
    with pytest.raises(DataError, match=r"youtube_mapping.txt' line 2 is not"):
        msvd.read(tmp_path, None, OPTIONS)


def test_a_null_answer_is_an_error_not_a_word(tmp_path: Path) -> None:
    write(tmp_path, {"train_qa.json": json.dumps([question(1, answer=None)])})
    with pytest.raises(DataError, match=r"train_qa.json' row 1: 'answer' is missing"):
        msvd.read(tmp_path, None, OPTIONS)


@pytest.mark.real
def test_real_msrvtt(tmp_path: Path) -> None:
    place(tmp_path, {"msrvtt-qa/val_qa.head200.json": "val_qa.json", "msrvtt-qa/test_qa.head200.json": "test_qa.json"})
    splits = by_name(msrvtt.read(tmp_path, None, OPTIONS))
    assert {name: len(split.texts) for name, split in splits.items()} == {"val": 200, "test": 200}
    assert (splits["val"].texts[0].id, splits["test"].texts[0].id) == ("158581", "170859")
    assert all(6513 <= int(clip.video.removeprefix("video")) <= 7009 for clip in splits["val"].clips)
    assert all(7010 <= int(clip.video.removeprefix("video")) <= 9999 for clip in splits["test"].clips)
    assert "coversation" in {text.answer for text in splits["val"].texts}  # a typo that is the key
    assert Counter(text.type for text in splits["test"].texts).most_common(2)[0][0] == "what"
    assert all(" " not in (text.answer or " ") for split in splits.values() for text in split.texts)


@pytest.mark.real
@pytest.mark.parametrize("name", ["msrvtt", "msvd"])
def test_real_hqga_tables_agree_with_the_published_form(tmp_path: Path, name: str) -> None:
    reader = {"msrvtt": msrvtt, "msvd": msvd}[name]
    place(tmp_path / "a", {f"{name}-qa/test_qa.head200.json": "test_qa.json"})
    place(tmp_path / "b", {f"{name}-qa/hqga_csv/test.head50.csv": "test.csv"})
    (published,), (table,) = reader.read(tmp_path / "a", None, OPTIONS), reader.read(tmp_path / "b", None, OPTIONS)
    assert len(table.texts) == 50
    for ours, theirs in zip(table.texts, published.texts, strict=False):
        assert (ours.id, ours.clip, ours.answer, ours.type, ours.question) == (
            theirs.id, theirs.clip, theirs.answer, theirs.type, theirs.question.removesuffix("?")
        )  # fmt: skip


@pytest.mark.real
def test_real_msvd(tmp_path: Path) -> None:
    place(tmp_path, {f"msvd-qa/{split}_qa.head200.json": f"{split}_qa.json" for split in ("train", "val", "test")})
    place(tmp_path, {"msvd-qa/youtube_mapping.excerpt.txt": "youtube_mapping.txt"})
    splits = by_name(msvd.read(tmp_path, None, OPTIONS))
    assert {name: len(split.texts) for name, split in splits.items()} == {"train": 200, "val": 200, "test": 200}
    ranges = {"train": (1, 1200), "val": (1201, 1450), "test": (1451, 1970)}
    for name, (low, high) in ranges.items():
        assert all(low <= int(clip.video.removeprefix("vid")) <= high for clip in splits[name].clips)
    assert [c.name for c in msvd.candidates(splits["train"].clips[0])] == ["vid1", "-4wsuPCjDBc_5_15"]
    assert splits["val"].texts[0].id == "30933"
