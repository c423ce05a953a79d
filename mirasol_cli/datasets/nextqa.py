"""NExT-QA: five choices (`mc`) or free answers (`oe`) about everyday videos. Both tasks use the same file names; the header tells."""

from __future__ import annotations

from pathlib import Path

from mirasol_cli.datasets.example import Candidate, ClipSpan, DatasetOptions, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import build_split, finish
from mirasol_cli.datasets.tables import as_text, csv_header, csv_records, json_value, text_of
from mirasol_cli.errors import DataError

NAME, TITLE = "nextqa", "NExT-QA"
LICENCE = "NExT-QA: MIT; videos from VidOR/YFCC100M under Creative Commons licences"
SOURCE = "GitHub repositories doc-doc/NExT-QA (multiple choice) and doc-doc/NExT-OE (open-ended), folder dataset/nextqa/"
TASKS = ("mc", "oe")
TYPES = ("CW", "CH", "TC", "TN", "TP", "DC", "DL", "DO", "DB")
"""Why, how, while, after, before, count, location, other, yes/no (open-ended only). `TP` is kept; the official scores merge it into TN."""
CHOICES = ("a0", "a1", "a2", "a3", "a4")


def candidates(clip: ClipSpan) -> list[Candidate]:
    """`1164/2574374895` by the map file, or the bare video id."""
    return [*(Candidate(name) for name in clip.aliases), Candidate(clip.video)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """The splits of each task whose files are there."""
    files = AnnotationFiles(root, prefer="nextqa")
    folders = _video_folders(files)
    splits = []
    for split, word in (("train", "train"), ("val", "val"), ("test", "test")):
        tables: dict[str, list[Path]] = {"mc": [], "oe": []}
        for path in files.matching(rf"(.+[-_])?{word}\.csv"):
            kind = _task_of(path)
            if kind:
                tables[kind].append(path)
        for kind, paths in tables.items():
            if len(paths) > 1:
                files.notes.append(f"{len(paths)} files hold the {kind} questions of {split}; read '{paths[0].relative_to(root)}'")
            if paths:
                splits.append(_split(split, kind, paths[0], folders, files))
    if not splits:
        raise files.missing(TITLE, "'train.csv', 'val.csv', 'test.csv' and 'map_vid_vidorID.json'", SOURCE)
    return finish(splits, task, TITLE, files.notes)


def _task_of(path: Path) -> str | None:
    """By the columns. NExT-GQA's train.csv has choices too, but its answers are texts: `_chosen` takes both."""
    header = set(csv_header(path))
    if not {"video", "question", "answer", "qid", "type"} <= header:
        return None
    return "mc" if set(CHOICES) <= header else "oe"


def _video_folders(files: AnnotationFiles) -> dict[str, str]:
    """Video id -> `<folder>/<id>`; empty without the map."""
    path = files.first(r"map_vid_vidorID.*\.json")
    if path is None:
        files.notes.append("no 'map_vid_vidorID.json': videos are looked up by their bare ids")
        return {}
    folders = json_value(path)
    if not isinstance(folders, dict):
        raise DataError(f"'{path}' is not a JSON object of video id -> folder/id")
    return {str(video): str(place) for video, place in folders.items()}


def _split(split: str, task: str, path: Path, folders: dict[str, str], files: AnnotationFiles) -> Split:
    added = _added_references(files) if (split, task) == ("test", "oe") else {}
    texts = []
    for number, row in csv_records(path, needs=("video", "question", "answer", "qid", "type")):
        video, qid, answer = (text_of(path, number, row, key) for key in ("video", "qid", "answer"))
        kind = text_of(path, number, row, "type")
        if kind not in TYPES:
            raise DataError(f"'{path}' line {number}: type '{kind}' is not one of {', '.join(TYPES)}")
        choices = tuple(text_of(path, number, row, key) for key in CHOICES) if task == "mc" else ()
        if choices:
            answer = _chosen(path, number, choices, answer)
        clip = ClipSpan(video=video, aliases=(folders[video],) if video in folders else ())
        question, references = text_of(path, number, row, "question"), added.get((video, qid), ())
        texts.append(
            Text(id=f"{video}_{qid}", clip=clip, question=question, answer=answer, references=references, choices=choices, type=kind)
        )
    notes = [f"{sum(bool(text.references) for text in texts)} answers have a second reference"] if added else []
    unmapped = len({text.clip.video for text in texts if not text.clip.aliases}) if folders else 0
    if unmapped:
        notes.append(f"{unmapped} videos are not in 'map_vid_vidorID.json'; they are looked up by their bare ids")
    return build_split(split, task, texts, notes=notes)


def _chosen(path: Path, number: int, choices: tuple[str, ...], answer: str) -> str:
    """The text of the right choice: the official files give its number, NExT-GQA the text itself."""
    if answer in ("0", "1", "2", "3", "4"):
        return choices[int(answer)]
    if answer in choices:
        return answer
    raise DataError(f"'{path}' line {number}: answer '{answer}' is neither 0 to 4 nor one of the choices")


def _added_references(files: AnnotationFiles) -> dict[tuple[str, str], tuple[str, ...]]:
    """(video, qid) -> the second reference answer of the open-ended test split."""
    path = files.first(r"add_reference_answer_test.*\.json")
    if path is None:
        files.notes.append("no 'add_reference_answer_test.json': the open-ended test answers have one reference each")
        return {}
    added = json_value(path)
    if not isinstance(added, dict) or not all(isinstance(answers, dict) for answers in added.values()):
        raise DataError(f"'{path}' is not a JSON object of video -> question -> answer")
    return {(video, qid): (as_text(answer),) for video, answers in added.items() for qid, answer in answers.items()}
