"""Losses as sums and counts, diagnostics, and the latent objective that cannot collapse."""

from __future__ import annotations

import pytest
import torch

from mirasol_cli.errors import UsageError
from mirasol_cli.fields import FieldError
from mirasol_cli.model.losses import (
    Losses,
    LossPart,
    Prediction,
    effective_rank,
    latent_loss,
    masked_error,
    mean_cosine,
    r2,
    spread_loss,
)
from mirasol_cli.model.objectives import consecutive
from tests.small_model import WEIGHTS, media, model, text

ONLY_LATENT = {"latent": 1.0}


def present(clips: int, chunks: int) -> torch.Tensor:
    return torch.ones(clips, chunks, dtype=torch.bool)


def test_total_is_the_weighted_sum_of_means_over_the_given_counts() -> None:
    parts = {"text": LossPart(torch.tensor(6.0), torch.tensor(3)), "latent": LossPart(torch.tensor(5.0), torch.tensor(2))}
    losses = Losses(parts)
    weights = {"text": 10.0, "latent": 2.0}
    assert losses.total(weights).item() == pytest.approx(10 * 2 + 2 * 2.5)
    assert losses.total(weights, {"text": 12, "latent": torch.tensor(5)}).item() == pytest.approx(10 * 0.5 + 2 * 1)


def test_a_count_of_zero_gives_a_finite_total() -> None:
    losses = Losses({"text": LossPart(torch.zeros((), requires_grad=True), torch.tensor(0))})
    total = losses.total(WEIGHTS)
    total.backward()
    assert total.item() == 0


def test_a_batch_without_any_loss_says_so() -> None:
    with pytest.raises(UsageError, match="no loss"):
        Losses().total(WEIGHTS)


def test_masked_error_sums_over_valid_items_only() -> None:
    predicted, target = torch.zeros(2, 3, 4), torch.ones(2, 3, 4) * torch.tensor([1.0, 2.0, 3.0])[:, None]
    valid = torch.tensor([[True, False, True], [False, True, False]])
    part = masked_error(predicted, target, valid)
    assert (part.sum.item(), part.count.item()) == (1 + 9 + 4, 3)


def test_only_consecutive_real_chunks_are_pairs() -> None:
    there = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0]], dtype=torch.bool)
    assert consecutive(there).int().tolist() == [[1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


def test_chunks_that_are_not_there_change_no_latent_loss() -> None:
    random = torch.Generator().manual_seed(0)
    x, guess = torch.randn(3, 5, 4, 8, generator=random), torch.randn(3, 4, 4, 8, generator=random)
    there = present(3, 5)
    there[0, 3:] = False
    there[2] = False
    other = torch.where(there[..., None, None], x, 100.0)
    ours, theirs = latent_loss(guess, x, x, there), latent_loss(guess, other, other, there)
    torch.testing.assert_close(ours.sum, theirs.sum)
    assert ours.count == theirs.count


def test_predicting_the_mean_scores_zero_and_the_truth_one() -> None:
    random = torch.Generator().manual_seed(0)
    slot = 5 * torch.randn(1, 1, 4, 8, generator=random)
    x = slot + torch.randn(64, 9, 4, 8, generator=random)
    target, pairs = x[:, 1:], present(64, 8)
    assert r2(Prediction(target, target, pairs)) == 1
    assert r2(Prediction(slot.expand_as(target), target, pairs)).abs() < 0.01
    assert r2(Prediction(torch.zeros_like(target), target, pairs)) < -1
    loss = latent_loss(slot.expand_as(target), x, x, present(64, 9))
    assert loss.sum / loss.count == pytest.approx(1 + spread_loss(x, present(64, 9)).item(), abs=0.02)


def test_the_target_is_detached_and_the_spread_is_not() -> None:
    x = torch.randn(4, 5, 3, 8, requires_grad=True)
    guess = torch.zeros(4, 4, 3, 8)
    error = masked_error(guess, x[:, 1:].detach(), present(4, 4))
    assert not error.sum.requires_grad
    latent_loss(guess, 0.3 * x, x.detach(), present(4, 5)).sum.backward()
    assert x.grad is not None
    centred = x.detach() - x.detach().mean((0, 1))
    assert (x.grad * centred).sum() < 0  # a step downhill widens what is too narrow


def test_spread_asks_for_unit_variance_and_independent_channels() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, 4, 8, generator=random)
    good = spread_loss(x, present(64, 16)).item()
    assert good < 0.05
    assert spread_loss(0.1 * x, present(64, 16)) > 0.8
    assert spread_loss(x[..., :1].expand_as(x), present(64, 16)) > good + 0.2
    slots_only = torch.randn(1, 1, 4, 8, generator=random).expand(64, 16, 4, 8)
    assert spread_loss(slots_only, present(64, 16)) > 0.9  # slots that differ are no spread over clips


def test_spread_is_computed_in_float32_under_autocast() -> None:
    x = torch.randn(8, 6, 4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rough = spread_loss(x, present(8, 6))
    assert torch.equal(rough, spread_loss(x, present(8, 6)))


@pytest.mark.parametrize("shape", [(8, 5, 4, 16), (1, 2, 3, 64)])
def test_effective_rank_is_that_of_the_singular_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -4, shape[-1])
    rows = (x - x.mean((0, 1))).flatten(0, 2)
    share = torch.linalg.svdvals(rows.double())
    share = share / share.sum()
    assert effective_rank(x, torch.ones(shape[:2], dtype=torch.bool)) == pytest.approx(
        float(torch.special.entr(share).sum().exp()), rel=1e-4
    )


def test_effective_rank_and_cosine_tell_a_collapse() -> None:
    random = torch.Generator().manual_seed(0)
    x, there = torch.randn(32, 8, 4, 16, generator=random), present(32, 8)
    assert effective_rank(x, there) > 15.5
    assert effective_rank(x[..., :1] * torch.ones(16), there) == pytest.approx(1, abs=0.01)
    constant_slots = 50 * torch.randn(1, 1, 4, 16, generator=random) + torch.zeros_like(x)
    assert effective_rank(constant_slots + 0.1 * x[..., :1], there) < 1.1
    assert mean_cosine(x, there).abs() < 0.01
    assert mean_cosine(constant_slots, there) == pytest.approx(1, abs=1e-4)


def test_only_the_parameters_of_the_losses_are_built() -> None:
    network = model(losses=("text", "video", "audio"))
    assert set(network.objectives) == {"video", "audio"}
    with pytest.raises(FieldError, match=r"latent: loss weight 1\.0, but the model was built for text, video, audio only"):
        network(media(), None, {"latent": 1.0})


def test_the_latent_error_is_in_units_of_the_variance_of_its_target() -> None:
    """Targets and predictions ten times as large are predicted neither better nor worse. (What forbids a collapse does have a scale.)"""
    generator = torch.Generator().manual_seed(0)
    combined, latents, error = (torch.randn(6, 4, 3, 8, generator=generator) for _ in range(3))

    def cost_of_the_error(scale: float) -> float:
        targets = scale * combined
        exact, wrong = (latent_loss(targets[:, 1:] + scale * e, targets, latents, present(6, 4)).sum for e in (0.0, error[:, 1:]))
        return float(wrong - exact)

    assert cost_of_the_error(10) == pytest.approx(cost_of_the_error(1), rel=1e-3)
    assert cost_of_the_error(1) > 0


def test_shares_are_those_of_the_gradients_at_the_encoders_outputs() -> None:
    """Twice the weight is twice the norm; the shares change nothing of the gradient that trains."""
    network = model()
    weights = {"text": 1.0, "latent": 2.0, "video": 3.0}
    losses = network(media(), text(), weights)
    shares = losses.gradient_shares(weights)
    assert sum(shares.values()) == pytest.approx(1)
    norms = {}
    for name in shares:
        (gradient,) = torch.autograd.grad(losses.weighted_mean(name, weights), losses.tokens_BTND, retain_graph=True)
        norms[name] = float(gradient.norm())
    assert shares == pytest.approx({name: norm / sum(norms.values()) for name, norm in norms.items()})
    doubled = losses.gradient_shares({"text": 2.0, "latent": 2.0, "video": 3.0})
    assert doubled["text"] / doubled["latent"] == pytest.approx(2 * shares["text"] / shares["latent"], rel=1e-4)
    losses.total(weights).backward()
    measured = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network(media(), text(), weights).total(weights).backward()
    torch.testing.assert_close(measured, [p.grad for p in network.parameters()])
