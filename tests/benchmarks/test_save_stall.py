"""`save_stall.py` in its smallest form."""

import json
import subprocess
import sys
from pathlib import Path


def test_the_benchmark_of_saves_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parent / "save_stall.py"), "--smoke", "--rounds", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["way"] for row in rows] == ["training waits", "beside training"]
    assert all(0 < row["still_s"] <= row["whole_s"] for row in rows)
    assert not list(tmp_path.iterdir())
