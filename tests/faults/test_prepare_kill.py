"""`kill -9` in the middle of `prepare`: the next run goes on, and ends with the bytes of an undisturbed one."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from mirasol_cli import files
from mirasol_cli.prepare import engines
from mirasol_cli.prepare.command import prepare
from mirasol_cli.shards import index as shard_format
from tests.media.fake_decoding import FakePool, tree, write_recipe, write_world

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
LARGEST_SHARD = 3
PAUSE_S = 0.01
"""Decoding a file and each side of a rename take this long, so that a kill can hit them."""
HANGS_AFTER_S = 60.0


def prepared(world: Path, out: Path, **options: Any) -> int:
    FakePool.submitted = []
    settings: dict[str, Any] = {"root": world / "videos", "out": out, "recipe": str(world / "small.yaml"), "workers": 2} | options
    prepare(str(world / "annotations.jsonl"), max_failed=50, say=lambda line: None, **settings)
    return len(FakePool.submitted)


def prepare_until(world: Path, out: Path, renames: int | None, pause_s: float, options: dict[str, Any]) -> None:
    """Prepare, with a pause on each side of a rename; SIGKILL comes before the rename that follows `renames` others."""
    done, real_replace = 0, os.replace

    def replace(source: Any, target: Any) -> None:
        nonlocal done
        if done == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        time.sleep(pause_s)
        real_replace(source, target)
        time.sleep(pause_s)

    files.os.replace = replace  # type: ignore[assignment]
    engines.open_pool = lambda options, geometry: FakePool(geometry, pause_s)  # type: ignore[assignment,return-value]
    shard_format.LARGEST_SHARD = LARGEST_SHARD
    prepared(world, out, **options)


class World:
    """Many small shards, and the bytes an undisturbed run leaves."""

    def __init__(self, folder: Path):
        self.folder = folder
        write_world(folder, 20, bad=(4, 11), missing=(7,), test_clips=4)
        write_recipe(folder)
        self.sources = self.prepare(folder / "undisturbed")
        self.undisturbed = tree(folder / "undisturbed")

    def prepare(self, out: Path, **options: Any) -> int:
        """One run to its end; how many sources were decoded."""
        return prepared(self.folder, out, **options)

    def start(self, out: Path, renames: int | None = None, pause_s: float = 0.0, **options: Any) -> BaseProcess:
        """The same in a process of its own, from a server that has imported all of it but runs no thread: forking this one may hang."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.test_prepare_kill"])
        child = context.Process(target=prepare_until, args=(self.folder, out, renames, pause_s, options))
        child.start()
        return child

    def killed_after(self, out: Path, shards: int, seconds: float, **options: Any) -> None:
        """Killed so long after it has written so many shards more than there are, or at its end."""

        def written() -> int:
            return len(list(out.rglob("shard-*.safetensors")))

        wanted, deadline = written() + shards, time.monotonic() + HANGS_AFTER_S
        child = self.start(out, pause_s=PAUSE_S, **options)
        while written() < wanted and child.is_alive() and time.monotonic() < deadline:
            time.sleep(PAUSE_S / 4)
        time.sleep(seconds)
        child.kill()
        child.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "open_pool", lambda options, geometry: FakePool(geometry))
        patch.setattr(shard_format, "LARGEST_SHARD", LARGEST_SHARD)
        yield World(tmp_path_factory.mktemp("world"))


def check_kills(world: World, tmp_path: Path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    decoded = []
    for number in range(kills):
        out = tmp_path / str(number)
        shards, after = generator.randrange(6), generator.uniform(0, 6 * PAUSE_S)
        world.killed_after(out, shards, after)
        decoded.append(world.prepare(out))
        assert tree(out) == world.undisturbed, f"killed {after:.3f} s after {shards} shards"
    assert min(decoded) < world.sources, "no kill hit a moment at which whole shards were there"


def test_killed_at_random_moments(world: World, tmp_path: Path) -> None:
    check_kills(world, tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(world: World, tmp_path: Path) -> None:
    check_kills(world, tmp_path, kills=20, seed=2)


def test_killed_again_and_again(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(4):
        world.killed_after(out, 1, 2 * PAUSE_S)
    world.prepare(out)
    assert tree(out) == world.undisturbed


@pytest.mark.parametrize("renames", range(30))
def test_killed_between_any_two_writes(world: World, tmp_path: Path, renames: int) -> None:
    """Just before each rename: shards, records, texts, lists and the index in turn."""
    out = tmp_path / "out"
    child = world.start(out, renames)
    child.join(HANGS_AFTER_S)
    assert child.exitcode == -signal.SIGKILL, "the run has fewer writes than that"
    assert list(out.rglob(".*.partial"))
    world.prepare(out)
    assert tree(out) == world.undisturbed


def test_killed_parts_merge_to_the_same_bytes(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.killed_after(out, 1, 2 * PAUSE_S, part="1/2")
    parts = [world.start(out, part=part) for part in ("0/2", "1/2")]  # at the same time, in one folder
    for part in parts:
        part.join(HANGS_AFTER_S)
    assert [part.exitcode for part in parts] == [0, 0]
    assert world.prepare(out, merge=True) == 0
    assert tree(out) == world.undisturbed
