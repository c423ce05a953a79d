"""`train.compile=true`: the same losses, the same names in checkpoints, and a way on and back without it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mirasol_cli.checkpoints import folder, load
from mirasol_cli.evaluation.command import evaluate
from mirasol_cli.evaluation.job import Options
from mirasol_cli.training.loop import train
from tests import synthetic

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the compiler takes minutes
    pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="torch.compile needs a C++ compiler on a CPU"),
]


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key.startswith("loss")} for row in rows]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    tensors = load.read_tensors(run / "checkpoints" / folder.step_name(step), "model")
    assert tensors is not None
    return tensors


@pytest.mark.parametrize("words", [[], ["model.combiner.kind=ttm", "train.activation_checkpointing=true", "loss.audio=1"]])
def test_a_compiled_run_is_the_plain_one(tmp_path: Path, words: list[str]) -> None:
    for name in ("train", "test"):
        synthetic.write_split(tmp_path / "shards" / name, 8, silent_clips=(1,))
    words = [*words, "train.steps=4", "train.checkpoint_every=2", "train.ema_decay=0.9"]
    plain = synthetic.recipe(tmp_path / "plain", tmp_path / "shards", *words)
    compiled = synthetic.recipe(tmp_path / "compiled", tmp_path / "shards", *words, "train.compile=true")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(plain, stage="finetune", device="cpu", threads=1)
    assert not torch._dynamo.utils.counters["stats"]
    train(compiled, stage="finetune", device="cpu", threads=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4  # blocks of encoder, Combiner, latents, text

    one, other = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert len(one) == len(other) == 4
    for a, b in zip(one, other, strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    assert weights(tmp_path / "compiled", 4).keys() == weights(tmp_path / "plain", 4).keys()
    assert not [name for name in weights(tmp_path / "compiled", 4) if "_orig_mod" in name]

    # A compiled run goes on, compiled or not; what it left is evaluated like any other.
    ending = tmp_path / "compiled" / "checkpoints" / folder.step_name(4)
    for recipe in (compiled, synthetic.recipe(tmp_path / "compiled", tmp_path / "shards", *words)):
        ending.rename(tmp_path / f"aside-{recipe.train.compile}")
        assert train(recipe, stage="finetune", device="cpu", threads=1, resume=True)["step"] == 4
        for a, b in zip(one, losses(tmp_path / "compiled"), strict=True):
            assert b == pytest.approx(a, rel=1e-4)
    loaded = load.load_model(ending)
    assert set(dict(loaded.model.named_parameters())) <= set(weights(tmp_path / "plain", 4))
    results = evaluate(compiled, Options(device="cpu", checkpoint="latest"))
    assert results["n"] == 16
