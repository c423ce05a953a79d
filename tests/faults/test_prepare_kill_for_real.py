"""`kill -9` of the command itself, with its real decoding processes: nothing of it goes on, and the next run ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.media.fake_decoding import tree, write_recipe
from tests.media.made_clips import clicks, regular, write_clip

ROOT = Path(__file__).resolve().parents[2]
SPLITS, CLIPS = 6, 8
"""Each split is a shard of its own here."""


def write_world(folder: Path) -> list[str]:
    """Real videos with sound, one in seven of them cut; the command that prepares them, but for --out."""
    whole = write_clip(folder / "whole.mp4", regular(100, 25), audio=clicks([0.5, 2.5], 4.0))
    rows = []
    for number in range(SPLITS * CLIPS):
        content = whole.read_bytes()
        (folder / f"{number:03d}.mp4").write_bytes(content[: len(content) // 2] if number % 7 == 3 else content)
        rows.append({"video": f"{number:03d}.mp4", "caption": f"clip {number}", "split": f"split{number // CLIPS}"})
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prepare", str(folder / "all.jsonl"), "--recipe", str(write_recipe(folder)), "--workers", "2", "--max-failed", "50"]
    return [sys.executable, "-m", "mirasol_cli", *words, "--out"]


def start(command: list[str], out: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def has_ended(process: int) -> bool:
    """One that ended, but whose end nobody has asked for yet, counts."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def shards(out: Path) -> int:
    return len(list(out.rglob("shard-*.safetensors")))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    command = write_world(tmp_path)
    began = time.monotonic()
    assert start(command, tmp_path / "undisturbed").wait() == 0
    longest, undisturbed = time.monotonic() - began, tree(tmp_path / "undisturbed")
    draw, found = random.Random(3), []
    for number in range(20):
        out, first = tmp_path / str(number), number % SPLITS
        running = start(command, out)
        while shards(out) < first and running.poll() is None:  # by progress: every stage is hit, however busy the machine is
            time.sleep(0.02)
        time.sleep(draw.uniform(0, longest / (SPLITS if first else 2)))
        decoding = children(running.pid)
        running.kill()
        running.wait()
        give_up = time.monotonic() + 60
        while not all(map(has_ended, decoding)) and time.monotonic() < give_up:
            time.sleep(0.1)
        assert all(map(has_ended, decoding)), "a decoding process outlived the command"
        found.append(shards(out))
        assert start(command, out).wait() == 0, f"after the kill of number {number}"
        assert tree(out) == undisturbed, f"the kill of number {number} left its mark"
    print(f"shards that were there when the command was killed: {found}")
    assert len(set(found)) > 2, "the kills hit different stages"
