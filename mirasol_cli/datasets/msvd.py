"""MSVD-QA: one-word answers about short YouTube clips, `vid<N>.avi` or, by `youtube_mapping.txt`, `<ytid>_<start>_<end>.avi`."""

from __future__ import annotations

from pathlib import Path

from mirasol_cli.datasets.example import Candidate, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.folder import AnnotationFiles
from mirasol_cli.datasets.msr_qa import EXPECTED, read_questions, video_number
from mirasol_cli.datasets.splits import finish
from mirasol_cli.datasets.tables import read_text
from mirasol_cli.errors import DataError

NAME, TITLE = "msvd", "MSVD-QA"
LICENCE = "MSVD: research use; the question files carry no licence text; the videos stay with their YouTube uploaders"
SOURCE = "GitHub repository xudejing/video-question-answering (MSVD-QA, with 'youtube_mapping.txt'); videos: the MSVD corpus (YouTubeClips)"
TASKS = ("qa",)


def candidates(clip: ClipSpan) -> list[Candidate]:
    """`vid1201` or the mapped `-4wsuPCjDBc_5_15`: the file is the clip. Never `video1201`, which is one of MSR-VTT."""
    return [Candidate(clip.video), *(Candidate(name) for name in clip.aliases)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """The splits whose files are there."""
    files = AnnotationFiles(root, prefer="msvd")
    names = _youtube_names(files)
    numbers = {name: number for number, name in names.items()}

    def clip(video_id: str) -> ClipSpan:
        number = video_number(video_id, "vid", "video")
        if number is None:
            number = numbers.get(video_id.removesuffix(".avi").removesuffix(".mp4"))
        if number is None:
            return ClipSpan(video=video_id)
        return ClipSpan(video=f"vid{number}", aliases=(names[number],) if number in names else ())

    splits = read_questions(files, clip)
    if not splits:
        raise files.missing(TITLE, EXPECTED, SOURCE)
    return finish(splits, task, TITLE, files.notes)


def _youtube_names(files: AnnotationFiles) -> dict[int, str]:
    """N -> `<ytid>_<start>_<end>` from lines `-4wsuPCjDBc_5_15 vid1`; empty without the file."""
    path = files.first(r"youtube_?mapping.*\.txt")
    if path is None:
        files.notes.append("no 'youtube_mapping.txt': files named <ytid>_<start>_<end> cannot be matched; vid<N> can")
        return {}
    names = {}
    for line, words in enumerate(map(str.split, read_text(path).splitlines()), 1):
        if not words:
            continue
        number = video_number(words[1], "vid") if len(words) == 2 else None
        if number is None:
            raise DataError(f"'{path}' line {line} is not '<youtube id>_<start>_<end> vid<N>'")
        names[number] = words[0]
    return names
