"""The gradient of a step is that of the weighted sum of global means, however the batch is cut up."""

from pathlib import Path

import pytest
import torch

from mirasol_cli.batches.order import Unit
from mirasol_cli.batches.sources import open_sources
from mirasol_cli.config.schema import Recipe
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.runtime.distributed import World
from mirasol_cli.runtime.signals import SignalFlags
from mirasol_cli.training.augment import StepDraw
from mirasol_cli.training.data import MicroBatch, TrainingData
from mirasol_cli.training.loop import train_step
from mirasol_cli.training.setup import start_run
from tests import synthetic

ALL_LOSSES = ["loss.audio=1", "train.augment.drop_modality=0.3"]


def prepared(tmp_path: Path, *overrides: str) -> tuple[Recipe, TrainingData, Mirasol]:
    if not (tmp_path / "shards").exists():
        synthetic.write_split(tmp_path / "shards" / "train", 12, silent_clips=(1, 4, 6), questions=4)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", *overrides)
    source = TrainingData(recipe, open_sources(recipe), synthetic.vocabulary())
    torch.manual_seed(0)
    return recipe, source, Mirasol(recipe.model, recipe.clip, source.vocabulary.size, recipe.loss.weights)


def counted(batch: MicroBatch, recipe: Recipe) -> dict[str, int]:
    return {name: int(OBJECTIVES[name].count(batch.media, batch.text, batch.extra, recipe.clip)) for name in recipe.loss.weights}


def gradient(model: Mirasol, recipe: Recipe, batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
    weights = recipe.loss.weights
    counts = {name: sum(counted(batch, recipe)[name] for batch in batches) for name in weights}
    model.zero_grad()
    for batch in batches:
        model(batch.media, batch.text, weights, batch.extra).total(weights, counts).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("step", range(3))
def test_counts_before_the_forward_pass_are_those_of_the_model(tmp_path: Path, step: int) -> None:
    recipe, source, model = prepared(tmp_path, *ALL_LOSSES, "train.augment.drop_chunks=0.9", "train.augment.mask_columns=6")
    (batch,) = source.micro_batches(step, range(4))
    weights = recipe.loss.weights
    parts = model(batch.media, batch.text, weights, batch.extra).parts
    assert counted(batch, recipe) == {name: int(part.count) for name, part in parts.items()}
    assert set(parts) == {"text", "latent", "video", "audio"}


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path, size: int) -> None:
    """The latent loss compares the clips in memory with each other, so it is left out here."""
    words = ["loss.latent=0", "loss.audio=1", "train.augment.drop_modality=0.3"]
    recipe, source, model = prepared(tmp_path, *words)
    small = TrainingData(
        synthetic.recipe(tmp_path, tmp_path / "shards", *words, f"train.micro_batch_size={size}"), source.sources, source.vocabulary
    )
    for step in range(2):
        whole, pieces = source.micro_batches(step, range(4)), small.micro_batches(step, range(4))
        assert len(whole) == 1
        assert len(pieces) == {1: 4, 3: 2}[size]
        assert_same(gradient(model, recipe, whole), gradient(model, recipe, pieces))


def gradient_of_a_step(tmp_path: Path, name: str, *words: str) -> dict[str, torch.Tensor]:
    """What the optimizer is given in the first step of a run, by `train_step` itself."""
    found: dict[str, torch.Tensor] = {}
    recipe = synthetic.recipe(tmp_path / name, tmp_path / "shards", *words)
    run = start_run(recipe, "finetune", World(0, 1, torch.device("cpu")), resume=False)
    run.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
    run.model.train()
    train_step(run, run.data.micro_batches(0, range(4)), SignalFlags())
    return found


@pytest.mark.parametrize("size", [1, 3])
def test_a_step_in_micro_batches_is_the_step_on_the_whole_batch(tmp_path: Path, size: int) -> None:
    """Clips differ in the length of their answers and in having sound, so that a mean of means would be another gradient."""
    synthetic.write_split(tmp_path / "shards" / "train", 12, silent_clips=(1, 4, 6), questions=4)
    words = ["loss.latent=0", "loss.audio=1", "train.augment.drop_modality=0.3", "train.max_grad_norm=0"]
    whole = gradient_of_a_step(tmp_path, "whole", *words)
    assert_same(whole, gradient_of_a_step(tmp_path, "pieces", *words, f"train.micro_batch_size={size}"))


def test_every_step_drops_other_units(tmp_path: Path) -> None:
    """The same batch and weights twice: with dropout the losses differ from step to step, without it they do not."""
    synthetic.write_split(tmp_path / "shards" / "train", 4)
    for dropout in (0.0, 0.4):
        words = ["train.lr=1e-12", "train.weight_decay=0", f"model.encoder.dropout={dropout}", f"model.text.dropout={dropout}"]
        recipe = synthetic.recipe(tmp_path / f"run{dropout}", tmp_path / "shards", *words)
        run = start_run(recipe, "finetune", World(0, 1, torch.device("cpu")), resume=False)
        run.model.train()
        batches = run.data.micro_batches(0, range(4))
        first, second = (train_step(run, batches, SignalFlags()).means["text"] for _ in range(2))
        assert (abs(first - second) > 1e-3) == (dropout > 0)


def test_grouped_questions_give_the_gradient_of_ungrouped_ones(tmp_path: Path) -> None:
    recipe, source, model = prepared(tmp_path, "train.augment.drop_modality=0.3", "loss.latent=0")
    grouped = [source._micro_batch([Unit(0, 0, clip, tuple(range(4 * clip, 4 * clip + 4))) for clip in range(4)], range(4), StepDraw())]
    ungrouped = [source._micro_batch([Unit(0, 0, clip, (4 * clip + k,)) for clip in range(4)], range(4), StepDraw()) for k in range(4)]
    assert_same(gradient(model, recipe, grouped), gradient(model, recipe, ungrouped))


@pytest.mark.parametrize("zero", ["text", "latent", "video"])
def test_a_loss_of_weight_zero_leaves_no_parameter_without_gradient(tmp_path: Path, zero: str) -> None:
    from mirasol_cli.training.setup import freeze_parts

    recipe, source, model = prepared(tmp_path, f"loss.{zero}=0")
    freeze_parts(model, recipe)
    found = gradient(model, recipe, source.micro_batches(0, range(4)))
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("left_out", ["video", "audio"])
@pytest.mark.parametrize("share", [True, False])
def test_what_only_a_left_out_modality_needs_is_frozen_and_all_else_has_a_gradient(tmp_path: Path, left_out: str, share: bool) -> None:
    from mirasol_cli.training.setup import freeze_parts

    recipe, source, model = prepared(tmp_path, f"data.{left_out}=false", f"model.encoder.share={str(share).lower()}")
    freeze_parts(model, recipe)
    found = gradient(model, recipe, source.micro_batches(0, range(4)))
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{left_out}_tokens"} | (set() if share else {f"{left_out}_encoder"})
