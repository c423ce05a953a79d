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
    assert one["calls"]["sums of gradients, over the network"] == one["units"]
    # Every weight is gathered in bf16 before it is used, and again for the backward pass if it was given back.
    once = 2 * one["parameters"] * 3 / 4
    assert once < one["sent_bytes"]["gathers of weights, over the network"] < 2.5 * once
    assert 2 * once < one["sent_bytes"]["sums of gradients, over the network"] < 2.4 * once  # float32
    assert (one["clips"], one["processes"]) == (2, 4)


def test_sharded_in_a_node_only_gradients_cross_the_network(tmp_path: Path) -> None:
    one = found(tmp_path, "train.shard_size=2")
    assert {name for name in one["calls"] if "weights" in name} == {"gathers of weights, in a node"}
    assert one["calls"]["sums of gradients, in a node"] == one["units"]
    half = 4 * one["parameters"] / 2
    assert half <= one["peak_bytes"]["Sharded Param"] < 1.2 * half
    # Each process sums its half over the two nodes; in a ring of two it sends that half once: (n - 1) / n of it, twice.
    assert half < one["sent_bytes"]["sums over all, over the network"] < 1.3 * half
