"""The small form of `many_gpus.py`: what a process holds and sends can be said by hand where the model is small."""

import json
import subprocess
import sys
from pathlib import Path

import many_gpus
from common import environment
from tests.synthetic import CLIP_YAML, MODEL_YAML

RECIPE = f"""
schema: 1
name: tiny
data: {{dataset: none}}
{CLIP_YAML}{MODEL_YAML}
init: {{vocab_size: 300}}
train: {{parallel: fsdp, global_batch_size: 8}}
"""


def found(folder: Path, *words: str) -> dict:
    (folder / "tiny.yaml").write_text(RECIPE)
    command = [sys.executable, many_gpus.__file__, "--one", "--nodes", "2", "--gpus", "2", "--recipe", str(folder / "tiny.yaml"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_and_collectives_are_those_of_a_sharded_model(tmp_path: Path) -> None:
    one = found(tmp_path)
    weights = 4 * one["parameters"] / 4  # float32, a quarter of them
    assert weights <= one["peak_bytes"]["Sharded Param"] < 1.2 * weights  # each tensor's rows are padded to a multiple of four
    assert one["calls"]["_reduce_scatter_base_"] == one["units"]
    # Every weight is gathered in bf16 before it is used, and again for the backward pass if it was given back.
    once = 2 * one["parameters"] * 3 / 4
    assert once < one["sent_bytes"]["_allgather_base_"] < 2.5 * once
    assert 4 * one["parameters"] * 3 / 4 < one["sent_bytes"]["_reduce_scatter_base_"] < 1.2 * 4 * one["parameters"] * 3 / 4
    assert (one["clips"], one["processes"]) == (2, 4)
