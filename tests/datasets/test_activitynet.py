import json
from collections import Counter
from pathlib import Path

import pytest

from mirasol_cli.datasets.activitynet import candidates, read
from mirasol_cli.datasets.example import DatasetOptions
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import place, write

OPTIONS = DatasetOptions()


def lay_out(root: Path, questions: list[tuple[str, str]], answers: list[tuple[str, object, object]], split: str = "train") -> Path:
    q = [{"video_name": video, "question": "is it", "question_id": key} for video, key in questions]
    a = [{"answer": answer, "type": kind, "question_id": key} for key, answer, kind in answers]
    return write(root, {f"dataset/{split}_q.json": json.dumps(q), f"dataset/{split}_a.json": json.dumps(a)})


def test_answers_are_joined_by_id_and_not_by_order(tmp_path: Path) -> None:
    lay_out(tmp_path, [("a", "v_a_1"), ("-b", "v_-b_1"), ("a", "v_a_2")], [("v_a_2", 2, 7), ("v_a_1", "none", 3), ("v_-b_1", "née", 8)])
    (split,) = read(tmp_path, None, OPTIONS)
    assert [(text.id, text.answer, text.type) for text in split.texts] == [
        ("v_a_1", "none", "3"),
        ("v_-b_1", "née", "8"),
        ("v_a_2", "2", "7"),
    ]
    assert [clip.video for clip in split.clips] == ["a", "-b"]


@pytest.mark.parametrize(
    ("video", "on_disk"),
    [
        ("okC18bPTils", "v_okC18bPTils.mkv"),
        ("v_UmAH95xls", "v_v_UmAH95xls.mp4"),
        ("-s1MQAiOMeY", "v_-s1MQAiOMeY.webm"),
        ("_ucD-3rUWWE", "sub/v__ucD-3rUWWE.mp4"),
        ("xmp4yzabcde", "v_xmp4yzabcde.webm"),
        ("okC18bPTils", "okC18bPTils.mp4"),
    ],
)
def test_files_on_disk(tmp_path: Path, video: str, on_disk: str) -> None:
    lay_out(tmp_path, [(video, "q")], [("q", "no", 3)])
    write(tmp_path, {on_disk: "x", "v_UmAH95xls.mp4": "another video"})
    (split,) = read(tmp_path, None, OPTIONS)
    found = VideoIndex(tmp_path).locate(candidates(split.clips[0]))
    assert found is not None
    assert (found.path, found.whole) == (tmp_path / on_disk, True)


def test_questions_and_answers_without_each_other_are_counted(tmp_path: Path) -> None:
    lay_out(tmp_path, [("a", "1"), ("b", "2")], [("2", "no", 3), ("3", "no", 3), ("4", "no", 3)])
    (split,) = read(tmp_path, None, OPTIONS)
    assert [text.id for text in split.texts] == ["2"]
    assert split.notes[-2:] == (
        "1 questions without an answer in 'train_a.json' were left out",
        "2 answers in 'train_a.json' belong to no question",
    )


def test_without_an_answer_file_there_are_no_labels(tmp_path: Path) -> None:
    lay_out(tmp_path, [("a", "1")], [], split="test")
    (tmp_path / "dataset/test_a.json").unlink()
    (split,) = read(tmp_path, None, OPTIONS)
    assert split.texts[0].answer is None
    assert any("no labels" in note for note in split.notes)


@pytest.mark.parametrize(
    ("answers", "message"), [([("1", "no", 9)], "type 9 is not one of 0 to 8"), ([("1", "no", 3)] * 2, "a second answer to '1'")]
)
def test_damaged_answers(tmp_path: Path, answers: list, message: str) -> None:
    lay_out(tmp_path, [("a", "1")], answers)
    with pytest.raises(DataError, match=f"train_a.json' entry .: {message}"):
        read(tmp_path, None, OPTIONS)


@pytest.mark.real
def test_real_heads(tmp_path: Path) -> None:
    place(tmp_path, {f"activitynet-qa/{s}_{k}.head200.json": f"{s}_{k}.json" for s in ("train", "val", "test") for k in "qa"})
    splits = {split.name: split for split in read(tmp_path, "qa", OPTIONS)}
    assert {name: len(split.texts) for name, split in splits.items()} == {"train": 200, "val": 200, "test": 200}
    first = splits["train"].texts[0]
    assert (first.id, first.clip.video, first.question, first.answer, first.type) == (
        "v_okC18bPTils_3", "okC18bPTils", "are all the people in the video men", "no", "3"
    )  # fmt: skip
    answers = json.loads((tmp_path / "test_a.json").read_text())
    assert Counter(text.type for text in splits["test"].texts) == Counter(str(row["type"]) for row in answers)
    assert not any("left out" in note or "belong to no" in note for split in splits.values() for note in split.notes)


@pytest.mark.real
def test_real_quirks(tmp_path: Path) -> None:
    place(tmp_path, {"activitynet-qa/quirks_q.json": "train_q.json", "activitynet-qa/quirks_a.json": "train_a.json"})
    (split,) = read(tmp_path, None, OPTIONS)
    odd = [text for text in split.texts if text.clip.video == "v_UmAH95xls"]
    assert len(odd) == 10
    assert "v_v_UmAH95xls_4" in {text.id for text in odd}
    assert candidates(odd[0].clip)[0].name == "v_v_UmAH95xls"
    assert sum(clip.video.startswith("-") for clip in split.clips) > 20
    assert any(not text.question.isascii() for text in split.texts)
