"""Parameter groups, schedule, clipping, averaged weights."""

import itertools
import math

import pytest
import torch

from mirasol_cli.config.schema import RatesRecipe, TrainRecipe
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.training import optimizer as opt
from tests import synthetic


def small_model(tmp_path, *overrides: str) -> Mirasol:  # type: ignore[no-untyped-def]
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "loss.audio=1", *overrides)
    return Mirasol(recipe.model, recipe.clip, 300, recipe.loss.weights)


@pytest.mark.parametrize("kind", ["transformer", "ttm", "perceiver"])
def test_every_parameter_is_in_exactly_one_group_and_only_matrices_decay(tmp_path, kind: str) -> None:  # type: ignore[no-untyped-def]
    model = small_model(tmp_path, f"model.combiner.kind={kind}")
    groups = opt.parameter_groups(model, TrainRecipe(weight_decay=0.1))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    for name, parameter in model.named_parameters():
        if name in decayed:
            assert parameter.dim() >= 2, name
        tables = ("embed", "position", "mask_token", "norm", "slot", "queries", "kind", "memory_position", "initial_memory")
        if parameter.dim() < 2 or name.endswith(".gate") or any(word in name for word in tables):
            assert name not in decayed, name
    assert "encoder.blocks.0.mlp.up.weight" in decayed
    assert "text.layers.0.mlp.down_proj.weight" in decayed


def test_frozen_parameters_are_left_out(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = small_model(tmp_path)
    model.encoder.requires_grad_(False)
    names = {name for group in opt.parameter_groups(model, TrainRecipe()) for name in group["names"]}
    assert names
    assert not any(name.startswith("encoder.") for name in names)


def test_rates_per_part_and_layer() -> None:
    rates = RatesRecipe(encoder=0.1, combiner=0.2, latent=0.3, text=0.4)
    depths = opt.encoder_depths(["encoder.blocks.0.a", "encoder.blocks.2.a", "text.layers.9.a"])
    assert depths == {"encoder": 3}
    expected = {
        "encoder.blocks.2.mlp.up.weight": 0.1, "encoder.blocks.0.mlp.up.weight": 0.1 * 0.25, "encoder.norm.weight": 0.1,
        "video_tokens.maps.0.weight": 0.1 * 0.125, "audio_tokens.map.weight": 0.1 * 0.125, "combiner.blocks.0.x": 0.2,
        "latent.slot": 0.3, "objectives.video.queries": 0.3, "text.layers.0.x": 0.4,
    }  # fmt: skip
    for name, factor in expected.items():
        assert opt.rate_factor(name, rates, 0.5, depths) == pytest.approx(factor), name


def test_schedule_warms_up_and_ends_at_the_least_rate() -> None:
    train = TrainRecipe(steps=100, warmup_steps=10, min_lr_ratio=0.1, lr=1.0)
    values = [opt.rate_at(step, train) for step in range(100)]
    assert 0 < values[0] < values[9] < values[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(values[10:]))
    assert values[-1] == pytest.approx(0.1, abs=1e-3)
    assert opt.rate_at(55, train) == pytest.approx(0.55)


def test_clipping_scales_to_the_norm_and_leaves_a_bad_gradient_alone() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(3))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert opt.clip_gradients(parameters, 0.0) == pytest.approx(5)
    assert parameters[0].grad[0] == 3
    assert opt.clip_gradients(parameters, 1.0) == pytest.approx(5)
    assert opt.clip_gradients(parameters, 1.0) == pytest.approx(1, abs=1e-4)
    parameters[0].grad, parameters[1].grad = torch.tensor([math.nan, 1.0]), torch.tensor([4.0])
    assert math.isnan(opt.clip_gradients(parameters, 1.0))
    assert parameters[1].grad[0] == 4


def test_averaged_weights_follow_and_swap() -> None:
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = opt.AveragedWeights(model, decay=0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema.update(model, step=0)  # early: decay 0.1
    assert ema.values["weight"].item() == pytest.approx(0.9)
    ema.update(model, step=1000)
    assert ema.values["weight"].item() == pytest.approx(0.95)
    ema.swap(model)
    assert model.weight.item() == pytest.approx(0.95)
    ema.swap(model)
    assert model.weight.item() == 1.0
    assert ema.values["weight"].item() == pytest.approx(0.95)
