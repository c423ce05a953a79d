"""Prediction files in the formats of the benchmarks' own scripts and servers, written and read back."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

from mirasol_cli.errors import DataError, UsageError
from mirasol_cli.files import read_json, read_jsonl, write_json


def submission(dataset: str, task: str, rows: Sequence[dict]) -> object | None:
    """The rows in the benchmark's own format, JSON-ready; None where it has none.

    ActivityNet-QA: `[{"question_id", "answer"}]`. NExT-QA multiple choice: `{"<video>_<qid>": {"prediction", "answer"}}`
    with the numbers of the choices (a missing prediction is -1, which no choice has). NExT-QA open-ended:
    `{"<video>": {"<qid>": answer}}`.
    """
    if (dataset, task) == ("activitynet", "qa"):
        return [{"question_id": row["id"], "answer": row["prediction"] or ""} for row in rows]
    if (dataset, task) == ("nextqa", "mc"):
        return {row["id"]: {"prediction": _choice(row, row["prediction"]), "answer": _choice(row, row["answer"])} for row in rows}
    if (dataset, task) == ("nextqa", "oe"):
        videos: dict[str, dict[str, str]] = {}
        for row in rows:
            videos.setdefault(_video_of(row["id"]), {})[_number_of(row["id"])] = row["prediction"] or ""
        return videos
    return None


def write_submission(folder: Path, dataset: str, task: str, rows: Sequence[dict]) -> Path | None:
    """Write `submission.json` into `folder`; None where the benchmark has no format of its own."""
    content = submission(dataset, task, rows)
    if content is None:
        return None
    write_json(folder / "submission.json", content)
    return folder / "submission.json"


def read_predictions(path: Path, questions: Sequence[dict] = (), known: Set[str] | None = None) -> list[dict]:
    """Prediction rows of a `predictions.jsonl`, or of a file in an official format.

    An official file holds only ids and answers, so `questions` (rows as `predictions.jsonl` has them, without a
    prediction) must say what was asked. A question that it leaves out counts as missing; an answer to another question of
    the split, whose ids are `known` (by default those of `questions`), is left out.

    Raises:
        DataError: the file is missing or damaged, or an official one names an id that is not known.
        UsageError: an official file without the questions.
    """
    if path.suffix == ".jsonl":
        rows = read_jsonl(path)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not {"id", "video", "question", "prediction"} <= row.keys():
                raise DataError(f"'{path}' line {number} is no prediction: it needs id, video, question and prediction")
        return rows
    answers = _official_answers(path, {row["id"]: row for row in questions})
    if not questions:
        raise UsageError(
            f"'{path}' is in an official format, which holds only ids and answers", "prepare the split, so that its questions are known"
        )
    check_known(path, answers.keys(), {row["id"] for row in questions} if known is None else known)
    return [{**row, "prediction": answers.get(row["id"], ""), "missing": row["id"] not in answers} for row in questions]


def check_known(path: Path, answered: Set[str], known: Set[str]) -> None:
    """Raises DataError if the file answers a question that is not among the known ones."""
    unknown = answered - known
    if unknown:
        raise DataError(
            f"'{path}' answers {len(unknown)} questions that the split does not have, such as '{min(unknown, key=str)}'",
            "give the recipe and the split that the predictions were made with",
        )


def _official_answers(path: Path, questions: dict[str, dict]) -> dict[str, str]:
    """Question id -> answer text, from any of the three formats."""
    content = read_json(path)
    try:
        if isinstance(content, list):  # ActivityNet-QA
            return {str(entry["question_id"]): str(entry["answer"]) for entry in content}
        answers = {}
        for key, value in content.items():
            if "prediction" in value:  # NExT-QA multiple choice: a number, read back as the text of that choice
                choices = questions.get(key, {}).get("choices") or ()
                number = int(value["prediction"])
                answers[key] = choices[number] if 0 <= number < len(choices) else ""
            else:  # NExT-QA open-ended
                answers |= {f"{key}_{number}": str(text) for number, text in value.items()}
        return answers
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' is in none of the known formats: {error!r}", "see the README for the three official formats") from None


def _choice(row: dict, text: str | None) -> int:
    choices = list(row.get("choices") or ())
    return choices.index(text) if text in choices else -1


def _video_of(question_id: str) -> str:
    return question_id.rsplit("_", 1)[0]


def _number_of(question_id: str) -> str:
    return question_id.rsplit("_", 1)[-1]
