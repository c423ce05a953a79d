"""A checkpoint to hand on is smaller, complete, and says the same."""

from pathlib import Path

import pytest
import torch

from mirasol_cli.checkpoints.export import export
from mirasol_cli.checkpoints.folder import verify
from mirasol_cli.checkpoints.load import load_model, model_tensors
from mirasol_cli.errors import UsageError
from mirasol_cli.training.loop import train
from tests import synthetic


def test_an_exported_checkpoint_is_small_whole_and_close(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 6)
    run = tmp_path / "run"
    train(synthetic.recipe(run, tmp_path / "shards", "train.steps=2", "train.ema_decay=0.5"), stage="finetune", device="cpu")
    export(run, tmp_path / "out", half=True)
    verify(tmp_path / "out")
    assert not list(tmp_path.glob(".*export"))
    before, after = load_model(next((run / "checkpoints").glob("step-*"))), load_model(tmp_path / "out")
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert size < 0.6 * 4 * sum(p.numel() for p in before.model.parameters())
    theirs = model_tensors(after.model)
    for name, tensor in model_tensors(before.model).items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match="not empty"):
        export(run, tmp_path / "out")
