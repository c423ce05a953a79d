"""Prediction files in the formats of the benchmarks' own scripts and servers, written and read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from mirasol_cli.errors import DataError, UsageError
from mirasol_cli.files import numbered_jsonl, read_json, write_json


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


def read_predictions(path: Path, questions: Sequence[dict] = (), known: Set[str] | None = None) -> dict[str, dict]:
    """Question id -> row of a `predictions.jsonl` (at least `id` and `prediction`), or of a file in an official format.

    A prediction that is a number counts as its text, null as an empty answer. Where the same answer stands twice, the first counts.

    Args:
        questions: rows as `predictions.jsonl` has them, without a prediction: they say what was asked.
        known: ids of all questions of the split, of which `questions` may be a part (by default those of `questions`).

    Raises:
        DataError: the file is missing, damaged or empty, contradicts itself, or answers a question that is not known.
        UsageError: it holds only ids and predictions, and there are no `questions`.
    """
    if path.suffix == ".jsonl":
        rows = _checked_rows(path)
    else:
        rows = _official_rows(path, {row["id"]: row for row in questions})
    if not rows:
        raise DataError(f"'{path}' contains no predictions", "give a file with one prediction per question")
    if questions or known:
        check_known(path, rows.keys(), {row["id"] for row in questions} if known is None else known)
    elif bare := next((row for row in rows.values() if not {"video", "question"} <= row.keys()), None):
        raise UsageError(
            f"'{path}' does not say what was asked: '{bare['id']}' has no video and question",
            "prepare the split, which knows its questions",
        )
    return rows


def _checked_rows(path: Path) -> dict[str, dict]:
    """The rows of a JSONL file by id, predictions as text."""
    rows: dict[str, dict] = {}
    lines: dict[str, int] = {}
    for number, row in numbered_jsonl(path):
        if not isinstance(row, dict) or not {"id", "prediction"} <= row.keys():
            raise DataError(f"'{path}' line {number} is not a prediction: it needs id and prediction")
        if not isinstance(row["id"], (str, int)) or isinstance(row["id"], bool):
            raise DataError(f"'{path}' line {number}: id is neither text nor a whole number")
        name, text = str(row["id"]), _text_of(row["prediction"], f"'{path}' line {number}: prediction")
        if name not in rows:
            rows[name], lines[name] = {**row, "id": name, "prediction": text}, number
        elif text != rows[name]["prediction"]:
            raise _contradiction(path, name, f"lines {lines[name]} and {number}", rows[name]["prediction"], text)
    return rows


def _text_of(value: object, what: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    kind = {bool: "true or false", list: "a list", dict: "an object"}[type(value)]
    raise DataError(f"{what} is {kind}", "write the answer as text or as a number")


def _contradiction(path: Path, name: str, where: str, first: str, second: str) -> DataError:
    return DataError(f"'{path}' answers '{name}' twice, with '{first}' and with '{second}' ({where})", "remove one of them")


def check_known(path: Path, answered: Set[str], known: Set[str]) -> None:
    """Raises DataError if the file answers a question that is not among the known ones."""
    unknown = answered - known
    if unknown:
        raise DataError(
            f"'{path}' answers {len(unknown)} questions that the split does not have, such as '{min(unknown, key=str)}'",
            "give the recipe and the split that the predictions were made with",
        )


def _official_rows(path: Path, questions: dict[str, dict]) -> dict[str, dict]:
    """Question id -> row, from any of the three formats."""
    rows: dict[str, dict] = {}
    entries: dict[str, int] = {}
    for number, (name, answer) in enumerate(_official_answers(path, questions), 1):
        text = _text_of(answer, f"'{path}': the answer to '{name}'")
        if name not in rows:
            rows[name], entries[name] = {"id": name, "prediction": text}, number
        elif text != rows[name]["prediction"]:
            raise _contradiction(path, name, f"entries {entries[name]} and {number}", rows[name]["prediction"], text)
    return rows


def _official_answers(path: Path, questions: dict[str, dict]) -> Iterator[tuple[str, object]]:
    content = read_json(path)
    try:
        if isinstance(content, list):  # ActivityNet-QA
            yield from ((str(entry["question_id"]), entry["answer"]) for entry in content)
            return
        for key, value in content.items():
            if "prediction" in value:  # NExT-QA multiple choice: a number, read back as the text of that choice
                choices = questions.get(key, {}).get("choices") or ()
                number = int(value["prediction"])
                yield key, choices[number] if 0 <= number < len(choices) else ""
            else:  # NExT-QA open-ended
                yield from ((f"{key}_{number}", text) for number, text in value.items())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"'{path}' is in none of the known formats: {error!r}", "use JSON lines with id and prediction") from None


def _choice(row: dict, text: str | None) -> int:
    choices = list(row.get("choices") or ())
    return choices.index(text) if text in choices else -1


def _video_of(question_id: str) -> str:
    return question_id.rsplit("_", 1)[0]


def _number_of(question_id: str) -> str:
    return question_id.rsplit("_", 1)[-1]
