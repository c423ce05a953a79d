"""`--engine ray` on a small local cluster: the same bytes as without, though a worker process is killed on the way."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mirasol_cli.errors import EnvironmentProblem
from mirasol_cli.prepare import engines
from mirasol_cli.prepare.command import prepare
from mirasol_cli.prepare.plan import ShardWork
from tests.media.fake_decoding import tree, write_recipe
from tests.media.made_clips import regular, write_clip

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Any:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def world(folder: Path) -> dict[str, Any]:
    """Three videos, and a manifest of three splits: so three shards."""
    root = folder / "videos"
    root.mkdir(parents=True)
    lines = []
    for split in ("train", "val", "test"):
        write_clip(root / f"{split}.mp4", regular(20, 10))
        lines.append(f'{{"video": "{split}.mp4", "caption": "{split}", "split": "{split}"}}\n')
    (folder / "annotations.jsonl").write_text("".join(lines))
    return {"root": root, "recipe": str(write_recipe(folder)), "workers": 1, "say": lambda line: None}


def test_same_bytes_though_a_worker_is_killed(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, manifest, marker = world(tmp_path), str(tmp_path / "annotations.jsonl"), tmp_path / "killed"
    summary = prepare(manifest, out=tmp_path / "local", **settings)
    assert [counts["kept"] for counts in summary["splits"].values()] == [1, 1, 1]
    one_shard = engines.one_shard

    def dies_once(work: ShardWork) -> Any:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return one_shard(work)

    monkeypatch.setattr(engines, "one_shard", dies_once)
    prepare(manifest, out=tmp_path / "ray", engine="ray", **settings)
    assert marker.exists()
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_a_folder_that_a_node_does_not_see(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world(tmp_path)
    monkeypatch.setattr(engines, "sees", lambda paths: [True, False])
    with pytest.raises(EnvironmentProblem, match="does not see the folder"):
        prepare(str(tmp_path / "annotations.jsonl"), out=tmp_path / "ray", engine="ray", **settings)


def test_a_full_disk_there_is_a_full_disk_here(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world(tmp_path)

    def full(work: ShardWork) -> Any:
        raise EnvironmentProblem("no space left while writing 'there'", "free some disk space")

    monkeypatch.setattr(engines, "one_shard", full)
    with pytest.raises(EnvironmentProblem, match="no space left while writing 'there'"):
        prepare(str(tmp_path / "annotations.jsonl"), out=tmp_path / "ray", engine="ray", **settings)
