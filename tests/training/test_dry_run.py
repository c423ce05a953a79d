"""--dry-run: the fields of the contract, with and without data; the figures against a built model."""

from pathlib import Path

import pytest
import torch

from mirasol_cli.errors import RecipeError, UsageError
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.training import dry_run as module
from mirasol_cli.training.dry_run import dry_run
from mirasol_cli.training.loop import train
from mirasol_cli.training.memory import activation_bytes, fixed_bytes
from mirasol_cli.training.setup import build_model, freeze_parts
from tests import synthetic


def test_without_shards_it_says_that_data_are_missing(tmp_path: Path) -> None:
    recipe, lines = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere"), list[str]()
    found = dry_run(recipe, stage="finetune", device="cpu", say=lines.append)
    model = Mirasol(recipe.model, recipe.clip, 300, recipe.loss.weights)
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"]["trainable"] == found["parameters"]["total"] == sum(found["parameters"]["by_part"].values())
    assert found["steps"] == 6
    assert found["flops_per_clip"] > 0
    assert found["memory_bytes"] > 16 * found["parameters"]["total"]
    assert "nowhere" in found["data"]["problem"]
    assert any("no data:" in line and "nowhere" in line for line in lines)
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


def test_more_outputs_than_tokens_are_a_fault_of_the_recipe(tmp_path: Path) -> None:
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere", "model.combiner.num_outputs=1000")
    with pytest.raises(RecipeError, match="M = 1000 outputs are more than the N = "):
        dry_run(recipe, stage="finetune", device="cpu", say=lambda line: None)
    synthetic.write_split(tmp_path / "nowhere" / "train", 4)
    with pytest.raises(RecipeError, match="M = 1000 outputs are more than the N = "):
        train(recipe, stage="finetune", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_micro_batch_larger_than_the_batch_is_the_batch(tmp_path: Path, there: bool) -> None:
    """As in training."""
    if there:
        synthetic.write_split(tmp_path / "shards" / "train", 12)
    lines: list[str] = []
    for words in (["train.micro_batch_size=100"], []):
        dry_run(synthetic.recipe(tmp_path / "run", tmp_path / "shards", *words), stage="finetune", device="cpu", say=lines.append)
    assert sum("activations of 4 clips" in line for line in lines) == 2


def test_several_processes_share_the_batch(tmp_path: Path) -> None:
    lines: list[str] = []

    def found(*words: str, processes: int = 1) -> dict:
        recipe = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere", "train.global_batch_size=16", *words)
        return dry_run(recipe, stage="pretrain", device="cpu", processes=processes, say=lines.append)

    one, eight = found(), found(processes=8)
    assert (one["processes"], one["clips_per_process"]) == (1, 16)
    assert (eight["processes"], eight["clips_per_process"]) == (8, 2)
    assert any("in 8 processes of 2 clips each" in line for line in lines)
    assert any("activations of 2 clips" in line for line in lines)
    assert eight["memory_bytes"] < one["memory_bytes"]
    assert found("train.parallel=fsdp", processes=8)["memory_bytes"] < eight["memory_bytes"]  # weights and moments are shared out, too
    assert eight["flops_per_clip"] == one["flops_per_clip"]
    with pytest.raises(UsageError, match="16 cannot be divided evenly among 3 processes"):
        found(processes=3)


def test_memory_falls_by_the_keys_that_the_message_names(tmp_path: Path) -> None:
    def memory(*overrides: str) -> int:
        recipe = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere", *overrides)
        return int(dry_run(recipe, stage="finetune", device="cpu", say=lambda line: None)["memory_bytes"])

    plain = memory()
    assert memory("train.micro_batch_size=1") < plain
    assert memory("train.activation_checkpointing=true", "model.encoder.layers=4") < memory("model.encoder.layers=4")
    assert memory("data.questions_per_clip=1") < plain
    assert memory("train.ema_decay=0.9") > plain
    assert memory("freeze=[text]") < plain
    weights = fixed_bytes(1000, 100, ema=False, bf16=False)
    assert (weights, fixed_bytes(1000, 100, ema=True, bf16=True) - weights) == (4 * (1000 + 3 * 100), 4 * 100 + 2 * 1000)


def test_an_encoder_without_anything_to_learn_or_left_out_keeps_no_activations(tmp_path: Path) -> None:
    def activations(*overrides: str) -> int:
        recipe = synthetic.recipe(tmp_path / "run", tmp_path / "nowhere", "model.encoder.share=false", *overrides)
        model = build_model(recipe, 300, "meta")
        freeze_parts(model, recipe)
        return activation_bytes(recipe, model, 4, 2, bf16=False)

    plain, frozen, left_out = activations(), activations("freeze=[audio_tokens, audio_encoder]"), activations("data.audio=false")
    assert activations("freeze=[audio_encoder]") == plain  # the gradient of its tokens goes through it
    assert left_out < frozen < plain  # the Combiner still takes its tokens
    assert activations("freeze=[audio_tokens, audio_encoder, video_tokens, video_encoder]") < frozen


# ------------------------------------------------------------------------------------------------------ measured, or not


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    synthetic.write_split(tmp_path / "shards" / "train", 12, questions=3)
    return tmp_path / "shards"


def test_a_step_is_timed_where_there_are_data(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, lines = torch.random.get_rng_state(), list[str]()
    recipe = synthetic.recipe(tmp_path / "run", shards, "train.global_batch_size=64")
    found = dry_run(recipe, stage="finetune", device="cpu", processes=2, say=lines.append)
    assert found["step_seconds"] > 0
    assert any("per step on cpu (timed on 32 clips)" in line for line in lines)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(module, "time_step", lambda *_, **__: 1.6)
    for processes in (1, 2):  # each process does its share at the same time as the others
        assert dry_run(recipe, stage="finetune", device="cpu", processes=processes)["step_seconds"] == pytest.approx(3.2 / processes)


@pytest.mark.parametrize(("name", "value"), [("TIMED_FLOPS", {"cpu": 0.0}), ("memory_at_hand", lambda device: 1000)])
def test_what_takes_too_long_or_too_much_is_not_timed(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "time_step", lambda *_, **__: pytest.fail("a step was made"))
    lines: list[str] = []
    found = dry_run(synthetic.recipe(tmp_path / "run", shards), stage="finetune", device="cpu", say=lines.append)
    assert found["step_seconds"] is None
    assert any("no step was timed" in line for line in lines)


def test_flops_are_those_of_the_texts_that_are_there(tmp_path: Path, shards: Path) -> None:
    def flops(path: Path) -> int:
        return int(
            dry_run(synthetic.recipe(tmp_path / "run", path), stage="finetune", device="cpu", say=lambda line: None)["flops_per_clip"]
        )

    assert flops(shards) < flops(tmp_path / "nowhere")  # shorter than the length that is taken without any
