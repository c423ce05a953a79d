"""The demo world as a data set: its videos are drawn here, its annotations written and read as manifests."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from mirasol_cli.datasets.example import Candidate, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.manifest import read_manifest
from mirasol_cli.datasets.resolver import Found, VideoIndex
from mirasol_cli.datasets.splits import finish
from mirasol_cli.demo.world import Question, Scene, questions, scenes
from mirasol_cli.errors import DataError
from mirasol_cli.files import write_jsonl

NAME, TITLE = "demo", "the demo world"
SOURCE = "`mirasol prepare demo`, which renders it"
LICENCE = "the demo world is rendered here and free to use (CC0)"
TASKS = ("qa", "caption")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class World:
    """Scenes and questions as pure functions, and how many clips there are of them."""

    name: str  # of the data set
    title: str  # in messages
    scenes: Callable[[int, str, int], list[Scene]]  # of (seed, split, count)
    questions: Callable[[int, str, list[Scene]], list[Question]]  # of (seed, split, scenes)
    clips: int  # training clips, unless the recipe says otherwise (`data.clips`)
    val_share: int  # one validation clip for so many training clips
    test_share: int

    def sizes(self, clips: int = 0) -> dict[str, int]:
        """Split -> its number of clips, with so many training clips (0: as many as the world has)."""
        train = clips or self.clips
        return {"train": train, "val": max(8, train // self.val_share), "test": max(16, train // self.test_share)}

    def render(
        self, root: Path, *, seed: int, clips: int, workers: int, progress: Callable[[int, int], None] | None = None
    ) -> None:  # fmt: skip
        """Write the world's videos and annotations below `root`; videos that are there already are kept.

        Args:
            root: folder for `videos/*.mp4` and `<split>.jsonl`, `<split>-captions.jsonl`.
            seed: which world; the names of videos hold it, so those of several can lie side by side. The annotations do not:
                they are those of the world that was rendered last, and another world to train on needs a `root` of its own.
            clips: training clips (0: as many as the world has); validation and test get their shares of it.
            workers: processes that draw.
            progress: called with (videos done, videos in all).
        """
        splits = self._splits(seed, clips)
        videos = root / "videos"
        videos.mkdir(parents=True, exist_ok=True)
        missing = [scene for world in splits.values() for scene in world if not (videos / f"{scene.name}.mp4").exists()]
        _render_all(missing, videos, workers, progress)
        self._annotate(root, seed, splits)

    def planned(self, *, seed: int, clips: int, task: str | None) -> list[Split]:
        """What `read` gives after `render`, without a video and without a trace on the disk."""
        with tempfile.TemporaryDirectory() as folder:
            self._annotate(Path(folder), seed, self._splits(seed, clips))
            return self.read(Path(folder), task, DatasetOptions())

    def read(self, root: Path, task: str | None, options: DatasetOptions) -> list[Split]:
        """Questions (`qa`) and captions (`caption`) of train, val and test, as `render` wrote them."""
        splits = []
        for name in SPLITS:
            for kind, suffix in (("qa", ""), ("caption", "-captions")):
                path = root / f"{name}{suffix}.jsonl"
                if not path.is_file():
                    raise DataError(f"'{path}' is missing", f"`mirasol prepare {self.name}` renders it")
                splits += [replace(split, task=kind) for split in read_manifest(path)]
        return finish(splits, task, self.title)

    def _splits(self, seed: int, clips: int) -> dict[str, list[Scene]]:
        return {split: self.scenes(seed, split, count) for split, count in self.sizes(clips).items()}

    def _annotate(self, root: Path, seed: int, splits: Mapping[str, list[Scene]]) -> None:
        for split, world in splits.items():
            write_jsonl(root / f"{split}.jsonl", _question_rows(split, self.questions(seed, split, world)))
            write_jsonl(root / f"{split}-captions.jsonl", (_caption_row(split, scene) for scene in world))


WORLD = World(name=NAME, title=TITLE, scenes=scenes, questions=questions, clips=2000, val_share=20, test_share=5)
read = WORLD.read


class PlannedVideos(VideoIndex):
    """The videos of a world that may not be rendered yet: each will be there."""

    def __init__(self, root: Path):
        super().__init__(root, names=())

    def locate(self, candidates: Sequence[Candidate]) -> Found:
        return Found(self.root / candidates[0].name)


def candidates(clip: ClipSpan) -> list[Candidate]:
    """The file as rendered."""
    return [Candidate(clip.video, whole=True)]


def _render_all(missing: list[Scene], videos: Path, workers: int, progress: Callable[[int, int], None] | None) -> None:
    context = get_context("spawn")
    painters = ProcessPoolExecutor(max(1, workers), context, initializer=_leave_with_parent, initargs=(os.getpid(),))
    with _one_thread_each(), painters as pool:
        jobs = [pool.submit(_render_one, scene, videos) for scene in missing]
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if progress:
                    progress(done, len(missing))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile compute with one thread, unless the caller's environment says otherwise."""
    chosen = "OMP_NUM_THREADS" in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if not chosen:
            os.environ.pop("OMP_NUM_THREADS", None)


def _leave_with_parent(parent: int) -> None:
    """A killed command must not leave painters behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _render_one(scene: Scene, videos: Path) -> None:
    from mirasol_cli.demo.render import render as render_scene

    render_scene(scene, videos / f"{scene.name}.mp4")


def _caption_row(split: str, scene: Scene) -> dict:
    return {"video": f"videos/{scene.name}.mp4", "split": split, "id": f"{scene.name}-caption", "caption": scene.caption()}


def _question_rows(split: str, questions: list[Question]) -> Iterator[dict]:
    counts: dict[str, int] = {}
    for question in questions:
        name = question.scene.name
        counts[name] = counts.get(name, 0) + 1
        row = {"video": f"videos/{name}.mp4", "split": split, "id": f"{name}-{counts[name]}"}
        row |= {"type": question.type, "question": question.question, "answer": question.answer}
        yield row | ({"context": question.context} if question.context else {})
