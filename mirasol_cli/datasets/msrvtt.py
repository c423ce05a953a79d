"""MSRVTT-QA: one-word answers about 10-30 s clips `video<N>.mp4`; the captions of the same videos as a second task."""

from __future__ import annotations

from pathlib import Path

from mirasol_cli.datasets.example import Candidate, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.msr_captions import read_captions
from mirasol_cli.datasets.msr_qa import EXPECTED, read_questions, video_number
from mirasol_cli.datasets.splits import finish

NAME, TITLE = "msrvtt", "MSRVTT-QA"
LICENCE = "MSR-VTT: research use only; the question files carry no licence text; the videos stay with their YouTube uploaders"
SOURCE = "GitHub repository xudejing/video-question-answering (MSRVTT-QA); videos: the MSR-VTT release of Microsoft Research"
TASKS = ("qa", "caption")


def candidates(clip: ClipSpan) -> list[Candidate]:
    """`video7010`: the file is the clip."""
    return [Candidate(clip.video)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """Questions, and captions if `train_val_videodatainfo.json` or its kin is there; both tasks share their clips."""
    files = AnnotationFiles(root, prefer="msrvtt")
    splits = read_questions(files, _clip) + read_captions(files)
    if not splits:
        raise files.missing(TITLE, EXPECTED, SOURCE)
    return finish(splits, task, TITLE, files.notes)


def _clip(video_id: str) -> ClipSpan:
    number = video_number(video_id, "video", "msr")
    return ClipSpan(video=video_id if number is None else f"video{number}")
