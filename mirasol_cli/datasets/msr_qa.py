"""What MSRVTT-QA and MSVD-QA share (Xu et al., ACM MM 2017): the files as published and the forms that circulate.

{train,val,test}_qa.json     one JSON list: answer, id (int), question, video_id (int)[, category_id]
[x_]{train,val,test}.jsonl   ALPRO and ClipBERT: video_id "video6513", answer_type
{train,val,test}.csv         HQGA: video,[width,height,]question,answer,qid[,type]; just-ask: question,answer,category_id,video_id,id
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mirasol_cli.datasets.example import ClipSpan, Split, Text
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.splits import build_split
from mirasol_cli.datasets.tables import csv_header, read_head, records, text_of

QUESTION_TYPES = ("what", "who", "how", "when", "where")
"""The five types that papers report: the question's first word."""
EXPECTED = "'train_qa.json', 'val_qa.json' and 'test_qa.json' (or the .jsonl or .csv forms of them)"
FILE_WORDS = {"train": "train", "val": "(val|valid|validation)", "test": "test"}


def read_questions(files: AnnotationFiles, clip_of: Callable[[str], ClipSpan]) -> list[Split]:
    """The splits whose files are there; empty if none is.

    Args:
        clip_of: the clip of a `video_id` as the file gives it (text).
    """
    splits = []
    for split, word in FILE_WORDS.items():
        path = _question_file(files, word)
        if path:
            texts = list(_texts(path, split, clip_of))
            splits.append(build_split(split, "qa", texts, notes=[f"read {path.relative_to(files.root)}"]))
    absent = [split for split in FILE_WORDS if split not in {s.name for s in splits}]
    if splits and absent:
        files.notes.append(f"no questions of the split {' or '.join(absent)} were found")
    return splits


def _question_file(files: AnnotationFiles, word: str) -> Path | None:
    for ending in (r"[-_]qa\.json", r"([-_]qa)?\.jsonl", r"\.json", r"([-_]qa)?\.csv"):
        found = [path for path in files.matching(rf"(.+[-_])?{word}{ending}") if _holds_questions(path)]
        if found:
            if len(found) > 1:
                files.notes.append(f"{len(found)} files are named like '{found[0].name}'; read '{found[0].relative_to(files.root)}'")
            return found[0]
    return None


def _holds_questions(path: Path) -> bool:
    """Caption files of the same sets bear the same names."""
    if path.suffix.lower() == ".csv":
        return {"question", "answer"} <= set(csv_header(path))
    return '"question"' in read_head(path)


def _texts(path: Path, split: str, clip_of: Callable[[str], ClipSpan]) -> Iterable[Text]:
    for number, row in records(path, needs=("question", "answer")):
        question = text_of(path, number, row, "question")
        first_word = question.split(maxsplit=1)[0].lower()
        has_id = any(key in row for key in ("id", "qid", "question_id"))
        yield Text(
            id=text_of(path, number, row, "id", "qid", "question_id") if has_id else f"{split}_{number}",
            clip=clip_of(text_of(path, number, row, "video_id", "video")),
            question=question,
            answer=text_of(path, number, row, "answer"),
            type=first_word if first_word in QUESTION_TYPES else "other",
        )


def video_number(video_id: str, *prefixes: str) -> int | None:
    """N of `N`, `videoN` or `videoN.mp4`; None for any other name. `prefixes`: the words before N."""
    stem = video_id.rpartition("/")[2].split(".")[0]
    for prefix in ("", *prefixes):
        digits = stem.removeprefix(prefix)
        if stem.startswith(prefix) and digits.isascii() and digits.isdigit():
            return int(digits)
    return None
