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
    assert [row["prediction"] for row in read_predictions(path, QUESTIONS[key])] == [row["answer"] for row in rows]


def test_a_question_left_out_is_missing_and_an_unknown_one_is_refused(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([{"question_id": "v_-abc_1", "answer": "yes"}]))
    first, second = read_predictions(path, QUESTIONS["activitynet", "qa"])
    assert first["missing"] is True
    assert first["prediction"] == ""
    assert second["missing"] is False
    path.write_text(json.dumps([{"question_id": "v_other_1", "answer": "yes"}]))
    with pytest.raises(DataError, match="'v_other_1'"):
        read_predictions(path, QUESTIONS["activitynet", "qa"])
    with pytest.raises(UsageError, match="official format"):
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
