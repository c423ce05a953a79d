"""--dry-run: the fields of the contract, with and without data; the figures against a built model."""

from pathlib import Path

import pytest

from mirasol_cli.errors import RecipeError
from mirasol_cli.model.losses import with_heads
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.training.dry_run import dry_run
from mirasol_cli.training.start import loss_weights
from tests import synthetic


def test_without_shards_it_says_that_data_are_missing(tmp_path: Path) -> None:
    recipe, lines = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere"), list[str]()
    found = dry_run(recipe, stage="finetune", device="cpu", say=lines.append)
    model = Mirasol(with_heads(recipe.model, loss_weights(recipe.loss)), recipe.clip, 300)
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"]["trainable"] == found["parameters"]["total"] == sum(found["parameters"]["by_part"].values())
    assert found["steps"] == 6
    assert found["flops_per_clip"] > 0
    assert found["memory_bytes"] > 16 * found["parameters"]["total"]
    assert "nowhere" in found["data"]["problem"]
    assert any("data are missing" in line and "nowhere" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_with_shards_it_counts_units_and_epochs(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 12, questions=3)
    lines: list[str] = []
    found = dry_run(synthetic.recipe(tmp_path / "run", tmp_path / "shards"), stage="finetune", device="cpu", say=lines.append)
    assert found["data"] == {"problem": None, "clips": 12, "texts": 36, "units_per_epoch": 24}
    assert any("1 epochs" in line for line in lines)  # 6 steps of 4 clips
    limited = dry_run(synthetic.recipe(tmp_path / "run", tmp_path / "shards"), stage="finetune", device="cpu", limit=5, say=lines.append)
    assert limited["data"]["clips"] == 5


def test_frozen_parts_are_told(tmp_path: Path) -> None:
    recipe, lines = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere", "freeze=[encoder, video_tokens]"), list[str]()
    found = dry_run(recipe, stage="pretrain", device="cpu", say=lines.append)
    parts = found["parameters"]["by_part"]
    assert found["parameters"]["total"] - found["parameters"]["trainable"] == parts["encoder"] + parts["video_tokens"]
    assert {name.split(".")[0] for name in found["frozen"]} == {"encoder", "video_tokens"}
    assert any(line.startswith("frozen:") for line in lines)
    with pytest.raises(RecipeError, match="enkoder"):
        dry_run(
            synthetic.recipe(tmp_path / "run", tmp_path / "nowhere", "freeze=[enkoder]"), stage="pretrain", device="cpu", say=lines.append
        )


def test_memory_falls_by_the_keys_that_the_message_names(tmp_path: Path) -> None:
    def memory(*overrides: str) -> int:
        recipe = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere", *overrides)
        return int(dry_run(recipe, stage="finetune", device="cpu", say=lambda line: None)["memory_bytes"])

    plain = memory()
    assert memory("train.micro_batch_clips=1") < plain
    assert memory("train.checkpoint_activations=true", "model.encoder.layers=4") < memory("model.encoder.layers=4")
    assert memory("data.questions_per_clip=1") < plain
    assert memory("train.ema=0.9") > plain
    assert memory("freeze=[text]") < plain
