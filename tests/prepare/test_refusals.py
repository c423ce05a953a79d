"""What `prepare` refuses or counts as failed, and in which words; `--dry-run`, which only counts."""

import errno
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirasol_cli import files
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.datasets import folder
from mirasol_cli.errors import DataError, EnvironmentProblem, MediaError, ShardError, TooManyFailures, UsageError
from mirasol_cli.prepare import plan
from mirasol_cli.prepare.command import prepare
from mirasol_cli.runtime.folder_lock import folder_lock
from mirasol_cli.sample import bytes_per_clip
from mirasol_cli.shards.reader import ShardFolder
from tests.media.fake_decoding import FakePool, tree
from tests.prepare.small_world import World

pytestmark = pytest.mark.usefixtures("made_up_decoding")


def test_too_many_failures(world: World) -> None:
    with pytest.raises(TooManyFailures, match=r"1 of 13 clips failed") as caught:
        world.prepare()
    assert caught.value.exit_code == 3
    assert caught.value.summary is not None
    assert caught.value.summary["splits"]["train"]["kept"] == 7
    assert len(ShardFolder(world.out).split("train").kept) == 7  # all is written
    world.prepare(max_failed=8)
    with pytest.raises(TooManyFailures, match="3 of 13"):
        world.prepare(max_failed=8, strict=True)


def test_missing_files_are_no_failures(tmp_path: Path) -> None:
    world = World(tmp_path, clips=10, missing=tuple(range(9)))
    assert world.prepare()["splits"]["train"]["missing"] == 9


def test_no_video_at_all(tmp_path: Path) -> None:
    world = World(tmp_path, clips=2, missing=(0, 1))
    with pytest.raises(DataError, match=r"none of the 2 videos .*'clip000.mp4'"):
        world.prepare()
    assert not world.out.exists()


def test_a_linked_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    world = World(tmp_path, clips=2)
    world.root.rename(tmp_path / "elsewhere")
    world.root.mkdir()
    (world.root / "videos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="none of the 2 videos") as caught:
        world.prepare()
    assert re.match(r"links that lead out of '.*videos' are not followed \(1: 'videos'\): .* --root", caught.value.hint or "")
    world.prepare(root=tmp_path / "elsewhere")


def test_what_was_not_looked_into_is_said_and_listed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "away").symlink_to("/")
    (world.root / "locked").mkdir()
    scandir = os.scandir

    def forbidden(path: Any) -> Any:  # a permission means nothing to root
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", forbidden)
    world.prepare(max_failed=20)
    assert any("not followed (1: 'away')" in line for line in world.said)
    assert any("may not be read (1: 'locked/')" in line for line in world.said)
    lists = json.loads((world.out / "train" / "problems.json").read_text())
    assert (lists["links_outside"], lists["unreadable_folders"]) == (["away"], ["locked/"])


def test_a_folder_without_permission_costs_its_clips_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.is_file

    def is_file(path: Path) -> bool:
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    outcome = FakePool._outcome
    monkeypatch.setattr(FakePool, "_outcome", lambda pool, path, requests: refused(path) or outcome(pool, path, requests))

    def refused(path: Path) -> list[MediaError] | None:
        return [MediaError("permission denied", "check the file's permissions", stage="open")] if "locked" in path.parts else None

    with world.manifest.open("a") as manifest:
        manifest.write(json.dumps({"video": "locked/c.mp4", "caption": "out of reach"}) + "\n")
    train = world.prepare(max_failed=30)["splits"]["train"]
    assert (train["expected"], train["kept"], train["failed"], train["missing"]) == (11, 7, 2, 2)
    failures = [json.loads(line) for line in (world.out / "train" / "failures.jsonl").read_text().splitlines()]
    assert (failures[-1]["video"], failures[-1]["reason"]) == ("locked/c.mp4", "permission denied")


def test_sound_alone_needs_its_option(world: World) -> None:
    for path in world.root.glob("*.mp4"):
        path.rename(path.with_suffix(".wav"))
    world.manifest.write_text(world.manifest.read_text().replace(".mp4", ""))
    with pytest.raises(DataError, match="none of the 13 videos") as caught:
        world.prepare()
    assert "11 audio files without video were found: --allow-audio-only takes them" in (caught.value.hint or "")
    assert world.prepare(allow_audio_only=True, max_failed=30)["splits"]["train"]["kept"] == 7


def test_disk_too_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(EnvironmentProblem, match=r"need [\d,]{6,} bytes, and .* 1,000 free"):
        world.prepare()
    assert not world.out.exists()
    assert FakePool.submitted == []


def test_disk_full_in_the_middle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world.undisturbed()
    real, calls = files.os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(EnvironmentProblem, match="no space left") as caught:
        world.prepare(max_failed=20)
    assert caught.value.exit_code == 5
    assert "shards are finished and kept" in (caught.value.hint or "")
    assert str(world.out) in caught.value.message
    monkeypatch.setattr(files.os, "fsync", real)
    finished = len(list(world.out.rglob("shard-*.json")))
    assert 1 <= finished < 4
    assert not list(world.out.rglob(".*.partial"))
    world.prepare(max_failed=20)
    assert len(world.decoded) < 11
    assert tree(world.out) == whole


def test_dry_run_writes_nothing(world: World) -> None:
    summary = world.prepare(dry_run=True)
    assert not world.out.exists()
    assert summary["dry_run"]["clips"] == 11
    assert summary["dry_run"]["bytes"] > 11 * 4000
    assert (summary["splits"]["train"]["expected"], summary["splits"]["train"]["missing"]) == (10, 2)
    assert summary["dry_run"]["seconds"] >= 0


def test_a_dry_run_of_a_part_reports_its_part(world: World) -> None:
    whole, *parts = (world.prepare(dry_run=True, part=part)["dry_run"] for part in (None, "0/2", "1/2"))
    assert [part["shards"] for part in parts] == [3, 1]  # train has shards 0, 1, 2, test has shard 0
    assert [part["clips"] for part in parts] == [9, 2]
    assert sum(part["bytes"] for part in parts) == whole["bytes"]
    assert any("to do in part 1/2: 1 shards, 2 clips" in line for line in world.said)


@pytest.mark.parametrize("override", ["train.lr=1", "model.preset=demo", "loss.text=2", "data.task=qa", "data.seed=3", "data.limit=2"])
def test_an_override_that_would_change_nothing_is_refused(world: World, override: str) -> None:
    with pytest.raises(UsageError, match=rf"`prepare` does not use {override.partition('=')[0]}") as caught:
        world.prepare(overrides=[override, "clip.size=64"])
    assert "clip.*, data.dataset, data.shards" in (caught.value.hint or "")
    assert not world.out.exists()


def test_one_writer_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirasol_cli.runtime.folder_lock.BEAT_S", 0.05)
    with folder_lock(world.out), pytest.raises(UsageError, match=rf"'{world.out}' is in use by process {os.getpid()}"):
        world.prepare(max_failed=20)
    with folder_lock(world.out / ".part-0-of-2"):
        world.prepare(part="1/2", max_failed=50)  # parts write side by side
        for options in ({"part": "0/2"}, {"merge": True}, {}):
            with pytest.raises(UsageError, match=r"part-0-of-2' is in use by process"):
                world.prepare(max_failed=50, **options)


def test_the_lock_of_a_killed_part_is_taken_over(world: World) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "pass"])
    killed.wait()
    lock = world.out / ".part-0-of-2" / ".lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"host": platform.node(), "pid": killed.pid, "started": "then", "token": "x"}))
    world.prepare(max_failed=20)
    assert tree(world.out) == world.undisturbed()


def test_the_demo_is_counted_without_rendering(tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"root": tmp_path / "demo", "overrides": ["data.clips=30"], "say": said.append}
    summary = prepare("demo", out=tmp_path / "out", dry_run=True, **options)
    assert not list(tmp_path.iterdir())
    assert [counts["expected"] for counts in summary["splits"].values()] == [30, 8, 16]
    assert summary["splits"]["train"]["questions"] > 60
    assert summary["dry_run"]["clips"] == 54
    assert summary["dry_run"]["bytes"] > 54 * bytes_per_clip(load_recipe("demo").clip) * 0.9
    assert summary["dry_run"]["seconds"] is None
    assert any("no video file to estimate the time from" in line for line in said)
    assert prepare("demo", out=tmp_path / "out", dry_run=True, limit=5, **options)["splits"]["train"]["expected"] == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "2/2"}, "--part 2/2"),
        ({"part": "x"}, "--part x"),
        ({"part": "0/2", "merge": True}, "--merge"),
        ({"engine": "spark"}, "local or ray"),
        ({"limit": 0}, "--limit 0"),
        ({"max_failed": 101}, "--max-failed"),
        ({"inspect": -1}, "--inspect -1"),
        ({"inspect": 2, "part": "0/2"}, "--part .* combined with --inspect"),
        ({"inspect": 2, "dry_run": True}, "--dry-run .* combined with --inspect"),
        ({"merge": True, "retry_failed": True}, "--merge .* combined with --retry-failed"),
        ({"verify": True, "dry_run": True, "limit": 3}, "--verify .* combined with --dry-run and --limit"),
        ({"verify": True, "inspect": 2}, "--verify .* combined with --inspect"),
        ({"verify": True, "merge": True}, "--verify .* combined with --merge"),
        ({"verify": True, "part": "0/2"}, "--verify .* combined with --part"),
        ({"verify": True, "task": "qa"}, "--verify .* combined with --task"),
    ],
)
def test_options_without_meaning(world: World, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        world.prepare(**options)
    assert not world.out.exists()


def test_what_is_not_there(world: World) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'activitynet'"):
        prepare("activtynet", say=world.said.append)
    with pytest.raises(DataError, match=r"the manifest 'nowhere.jsonl'"):
        prepare("nowhere.jsonl", say=world.said.append)
    with pytest.raises(DataError, match=r"'.*nowhere' does not exist"):
        prepare("activitynet", root=world.folder / "nowhere", say=world.said.append)
    with pytest.raises(ShardError, match="no finished split"):
        world.prepare(verify=True)


def test_ray_that_is_not_installed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentProblem, match="needs the package 'ray'") as caught:
        world.prepare(engine="ray")
    assert "mirasol[ray]" in (caught.value.hint or "")


def test_a_folder_that_cannot_be_written(world: World) -> None:
    world.out.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentProblem, match="cannot write") as caught:
        world.prepare()
    assert caught.value.exit_code == 5
