"""The official prediction files, written and read back."""

from __future__ import annotations

import json

import pytest

from mirasol_cli.errors import DataError, UsageError
from mirasol_cli.evaluation.submissions import read_predictions, submission, write_submission

QUESTIONS = {
    ("activitynet", "qa"): [{"id": "v_v_UmAH95xls_4", "video": "v_UmAH95xls", "question": "q", "answer": "no"},
                            {"id": "v_-abc_1", "video": "-abc", "question": "q", "answer": "yes"}],
    ("nextqa", "mc"): [{"id": "4010069381_6", "video": "4010069381", "question": "q", "answer": "b", "choices": ["a", "b", "c", "d", "e"]}],
    ("nextqa", "oe"): [{"id": "2809330695_1", "video": "2809330695", "question": "q", "answer": "curious"},
                       {"id": "2809330695_2", "video": "2809330695", "question": "q", "answer": "play"}],
}  # fmt: skip


def test_the_forms_are_those_of_the_official_scripts():
    answered = {key: [{**row, "prediction": row["answer"]} for row in rows] for key, rows in QUESTIONS.items()}
    assert submission("activitynet", "qa", answered["activitynet", "qa"])[0] == {"question_id": "v_v_UmAH95xls_4", "answer": "no"}
    assert submission("nextqa", "mc", answered["nextqa", "mc"]) == {"4010069381_6": {"prediction": 1, "answer": 1}}
    assert submission("nextqa", "oe", answered["nextqa", "oe"]) == {"2809330695": {"1": "curious", "2": "play"}}
    assert submission("msvd", "qa", []) is None


@pytest.mark.parametrize("key", QUESTIONS, ids=["-".join(key) for key in QUESTIONS])
def test_what_is_written_reads_back(tmp_path, key):
    rows = [{**row, "prediction": row["answer"]} for row in QUESTIONS[key]]
    path = write_submission(tmp_path, *key, rows)
    read = read_predictions(path, QUESTIONS[key])
    assert {name: row["prediction"] for name, row in read.items()} == {row["id"]: row["answer"] for row in rows}


def test_a_question_left_out_is_not_there_and_an_unknown_one_is_refused(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([{"question_id": "v_-abc_1", "answer": "yes"}]))
    assert list(read_predictions(path, QUESTIONS["activitynet", "qa"])) == ["v_-abc_1"]
    path.write_text(json.dumps([{"question_id": "v_other_1", "answer": "yes"}]))
    with pytest.raises(DataError, match="'v_other_1'"):
        read_predictions(path, QUESTIONS["activitynet", "qa"])
    with pytest.raises(UsageError, match="does not say what was asked"):
        read_predictions(path)


@pytest.mark.parametrize("content", ["[1]", '{"a": 3}', '[{"id": 1}]', '{"a": {"prediction": "x"}}', "{"])
def test_a_file_in_no_known_form_is_named(tmp_path, content):
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"odd\.json"):
        read_predictions(path, QUESTIONS["nextqa", "mc"])


def test_a_predictions_file_lacking_its_fields_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "1", "video": "v", "question": "q", "prediction": "a"}\n{"id": "2"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_predictions(path)


def jsonl(tmp_path, *rows):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_id_and_a_prediction_are_enough_where_the_questions_are_known(tmp_path):
    path = jsonl(tmp_path, {"id": 7, "prediction": 3}, {"id": "8", "prediction": 2.5}, {"id": "9", "prediction": None})
    questions = [{"id": name, "question": "q", "video": "v"} for name in ("7", "8", "9")]
    assert {name: row["prediction"] for name, row in read_predictions(path, questions).items()} == {"7": "3", "8": "2.5", "9": ""}
    with pytest.raises(UsageError, match="does not say what was asked: '7'"):
        read_predictions(path)


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}])
def test_a_prediction_that_is_neither_text_nor_number_is_named_with_its_line(tmp_path, value):
    path = jsonl(tmp_path, {"id": "1", "prediction": "a"}, {"id": "2", "prediction": value})
    with pytest.raises(DataError, match="line 2: prediction is"):
        read_predictions(path, [{"id": "1"}, {"id": "2"}])


def test_doubles_that_agree_count_once_and_those_that_do_not_are_refused_with_both_lines(tmp_path):
    known = [{"id": "1"}, {"id": "2"}]
    same = jsonl(tmp_path, {"id": "1", "prediction": "a"}, {"id": "2", "prediction": "b"}, {"id": "1", "prediction": "a"})
    assert len(read_predictions(same, known)) == 2
    other = jsonl(tmp_path, {"id": "1", "prediction": "a"}, {"id": "2", "prediction": "b"}, {"id": "1", "prediction": "c"})
    with pytest.raises(DataError, match=r"answers '1' twice, with 'a' and with 'c' \(lines 1 and 3\)"):
        read_predictions(other, known)
    official = tmp_path / "official.json"
    official.write_text(json.dumps([{"question_id": "1", "answer": "a"}, {"question_id": "1", "answer": "c"}]))
    with pytest.raises(DataError, match="entries 1 and 2"):
        read_predictions(official, known)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_an_empty_file_is_said(tmp_path, name):
    (tmp_path / name).write_text("" if name == "p.jsonl" else "[]")
    with pytest.raises(DataError, match="contains no predictions"):
        read_predictions(tmp_path / name, [{"id": "1"}])
