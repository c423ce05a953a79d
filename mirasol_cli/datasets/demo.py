"""The demo world as a data set: renders its videos and writes its annotations as manifests, then reads them like any other."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from mirasol_cli.datasets.demo_world import Scene, questions, scenes
from mirasol_cli.datasets.example import Candidate, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.manifest import read_manifest
from mirasol_cli.datasets.resolver import Found, VideoIndex
from mirasol_cli.datasets.splits import finish
from mirasol_cli.errors import DataError
from mirasol_cli.files import write_jsonl

NAME, TITLE = "demo", "the demo world"
LICENCE = "the demo world is rendered here and free to use (CC0)"
SOURCE = "`mirasol prepare demo`, which renders it"
TASKS = ("qa", "caption")
SPLITS = ("train", "val", "test")
DEFAULT_CLIPS = 2000
"""Training clips, unless the recipe says otherwise (`data.clips`)."""


@dataclass(frozen=True)
class WorldSize:
    train: int
    val: int
    test: int

    @staticmethod
    def of(clips: int) -> WorldSize:
        train = clips or DEFAULT_CLIPS
        return WorldSize(train, max(8, train // 20), max(16, train // 5))


def render(root: Path, *, seed: int, clips: int, workers: int, progress: Callable[[int, int], None] | None = None) -> None:
    """Write the world's videos and annotations below `root`; videos that are there already are kept.

    Args:
        root: folder for `videos/*.mp4` and `<split>.jsonl`, `<split>-captions.jsonl`.
        seed: which world; names hold it, so several can lie side by side.
        clips: training clips (0: DEFAULT_CLIPS); validation gets a twentieth, test a fifth as many.
        workers: processes that draw.
        progress: called with (videos done, videos in all).
    """
    size = WorldSize.of(clips)
    worlds = {split: scenes(seed, split, getattr(size, split)) for split in SPLITS}
    videos = root / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    missing = [scene for world in worlds.values() for scene in world if not (videos / f"{scene.name}.mp4").exists()]
    _render_all(missing, videos, workers, progress)
    _annotate(root, seed, worlds)


def planned(*, seed: int, clips: int, task: str | None) -> list[Split]:
    """What `read` gives after `render`, without a video and without a trace on the disk."""
    size = WorldSize.of(clips)
    with tempfile.TemporaryDirectory() as folder:
        _annotate(Path(folder), seed, {split: scenes(seed, split, getattr(size, split)) for split in SPLITS})
        return read(Path(folder), task, DatasetOptions())


class PlannedVideos(VideoIndex):
    """The videos of a world that may not be rendered yet: each will be there."""

    def __init__(self, root: Path):
        self.root, self.duplicates, self.files = root, {}, 0
        self.outside, self.unreadable = [], []

    def locate(self, candidates: Sequence[Candidate]) -> Found:
        return Found(self.root / candidates[0].name)


def candidates(clip: ClipSpan) -> list[Candidate]:
    """The file as rendered."""
    return [Candidate(clip.video, whole=True)]


def read(root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
    """Questions (`qa`) and captions (`caption`) of train, val and test, as `render` wrote them."""
    splits = []
    for name in SPLITS:
        for kind, suffix in (("qa", ""), ("caption", "-captions")):
            path = root / f"{name}{suffix}.jsonl"
            if not path.is_file():
                raise DataError(f"'{path}' is missing", "`mirasol prepare demo` renders it")
            splits += [replace(split, task=kind) for split in read_manifest(path)]
    return finish(splits, task, TITLE)


def _annotate(root: Path, seed: int, worlds: Mapping[str, list[Scene]]) -> None:
    for split, world in worlds.items():
        write_jsonl(root / f"{split}.jsonl", _question_rows(seed, split, world))
        write_jsonl(root / f"{split}-captions.jsonl", (_caption_row(split, scene) for scene in world))


def _render_all(missing: list[Scene], videos: Path, workers: int, progress: Callable[[int, int], None] | None) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = get_context("spawn")
    with ProcessPoolExecutor(max(1, workers), context, initializer=_leave_with_parent, initargs=(os.getpid(),)) as pool:
        jobs = [pool.submit(_render_one, scene, videos) for scene in missing]
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if progress:
                    progress(done, len(missing))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _leave_with_parent(parent: int) -> None:
    """A killed command must not leave painters behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _render_one(scene: Scene, videos: Path) -> None:
    from mirasol_cli.datasets.demo_render import render as render_scene

    render_scene(scene, videos / f"{scene.name}.mp4")


def _caption_row(split: str, scene: Scene) -> dict:
    return {"video": f"videos/{scene.name}.mp4", "split": split, "id": f"{scene.name}-caption", "caption": scene.caption()}


def _question_rows(seed: int, split: str, world: list[Scene]) -> list[dict]:
    rows = []
    counts: dict[str, int] = {}
    for question in questions(seed, split, world):
        name = question.scene.name
        counts[name] = counts.get(name, 0) + 1
        row = {"video": f"videos/{name}.mp4", "split": split, "id": f"{name}-{counts[name]}"}
        row |= {"type": question.type, "question": question.question, "answer": question.answer}
        rows.append(row | ({"context": question.context} if question.context else {}))
    return rows
