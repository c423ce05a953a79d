"""`gpu.py` in its smallest form, on CPU processes: every part of it runs, for one process and for two that share a model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "gpu.py"


@pytest.mark.parametrize("words", [["--gpus", "2", "--steps", "0"], pytest.param(["--gpus", "1,2"], marks=pytest.mark.slow)])
def test_the_benchmark_for_gpus_runs(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--smoke", "--rounds", "1", "--folder", str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    speeds = [row for row in rows if row["task"] == "speed"]
    assert [row["gpus"] for row in speeds] == [int(count) for count in words[1].split(",")]
    for row in speeds:
        assert row["clips"] == 2 * row["gpus"]
        assert all(row[key] > 0 for key in ("step_s", "tokens_per_s", "peak_gib", "save_still_s", "save_whole_s"))
        assert row["mfu"] is None  # no peak of a CPU is claimed
    assert rows[-1]["tokens_per_s"] > 0
    assert not list(tmp_path.iterdir())
