"""What the rendered worlds share: videos that are only planned, and painters that leave the caller's environment alone."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirasol_cli.datasets import demo
from mirasol_cli.datasets.demo import PlannedVideos
from mirasol_cli.datasets.example import Candidate
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.demo.world import Scene


def test_planned_videos_are_where_they_will_be_rendered(tmp_path: Path) -> None:
    videos = PlannedVideos(tmp_path / "nowhere yet")
    found = videos.locate([Candidate("videos/demo0-train-00000.mp4", whole=True)])
    assert found is not None
    assert found.path == tmp_path / "nowhere yet" / "videos/demo0-train-00000.mp4"
    assert videos.find(["videos/demo0-train-00001.mp4"]) == tmp_path / "nowhere yet" / "videos/demo0-train-00001.mp4"
    assert vars(videos).keys() == vars(VideoIndex(tmp_path)).keys()  # all that is read of an index is there
    assert len(videos) == 0


@pytest.fixture
def seen_by_painters(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """OMP_NUM_THREADS as each painter finds it; painters are threads here, and paint nothing."""
    seen: list[str | None] = []

    def paint(_scene: Scene, videos: Path) -> None:
        seen.append(os.environ.get("OMP_NUM_THREADS"))
        if not videos.is_dir():
            raise FileNotFoundError(videos)

    monkeypatch.setattr(demo, "ProcessPoolExecutor", lambda workers, _context, **_: ThreadPoolExecutor(workers))
    monkeypatch.setattr(demo, "_render_one", paint)
    return seen


def test_painters_have_one_thread_each_and_the_environment_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_by_painters: list[str | None]
) -> None:
    scenes = demo.WORLD.scenes(0, "train", 2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    demo._render_all(scenes, tmp_path, 1, None)
    assert seen_by_painters == ["1", "1"]
    assert "OMP_NUM_THREADS" not in os.environ
    with pytest.raises(FileNotFoundError):
        demo._render_all(scenes, tmp_path / "nowhere", 1, None)
    assert "OMP_NUM_THREADS" not in os.environ


def test_painters_keep_the_number_of_threads_that_the_caller_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_by_painters: list[str | None]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    demo._render_all(demo.WORLD.scenes(0, "train", 1), tmp_path, 1, None)
    assert seen_by_painters == ["3"]
    assert os.environ["OMP_NUM_THREADS"] == "3"
