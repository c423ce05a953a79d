"""The latent model: block-causal, windowed, masked, cached."""

from __future__ import annotations

import pytest
import torch

from mirasol_cli.model.chunk_causal import Spans
from mirasol_cli.model.config import LatentConfig
from mirasol_cli.model.latent import LatentModel


@pytest.fixture(autouse=True, params=[1, 6, 256])
def block_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One attention per chunk, per two chunks, for all of them: how queries are blocked must change nothing."""
    monkeypatch.setattr("mirasol_cli.model.chunk_causal.BLOCK_TOKENS", request.param)


def latent(**changes) -> LatentModel:
    torch.manual_seed(0)
    config = LatentConfig(**{"width": 40, "layers": 2, "heads": 2, "mlp_dim": 64, **changes})
    result = LatentModel(config, 32, 3).eval()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return result


def combined(chunks: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, chunks, 3, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("window", "reach"), [(0, 6), (1, 0), (2, 2), (3, 4)])
def test_a_change_reaches_its_own_chunk_and_the_window_after_it(window: int, reach: int) -> None:
    """With two layers a window of w reaches 2 (w - 1) chunks forward."""
    model, x = latent(window=window), combined()
    other = x.clone()
    other[0, 1] += 1
    difference = (model(x) - model(other)).abs().amax((2, 3))
    assert (difference[1] == 0).all()
    assert difference[0, 0] == 0
    reached = [chunk for chunk in range(7) if difference[0, chunk] > 1e-6]
    assert reached == list(range(1, min(7, 1 + reach + 1)))


def test_tokens_of_a_chunk_see_each_other_in_both_directions() -> None:
    model, x = latent(), combined()
    for changed, looked_at in ((0, 2), (2, 0)):
        other = x.clone()
        other[0, 3, changed] += 1
        assert (model(x) - model(other))[0, 3, looked_at].abs().max() > 1e-5


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pieces", [(1,) * 7, (3, 1, 3), (5, 2)])
def test_streaming_equals_all_at_once(window: int, padded: bool, pieces: tuple[int, ...]) -> None:
    model, x = latent(window=window), combined()
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, 4:] = False
    valid = valid if padded else None
    whole = model(x, None, valid)
    cache, outputs, start = None, [], 0
    for piece in pieces:
        mask = None if valid is None else valid[:, start : start + piece]
        out, cache = model.append(x[:, start : start + piece], mask, cache)
        outputs.append(out)
        start += piece
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)
    if window:
        assert cache is not None
        assert cache.layers[0][0].shape[2] == window - 1


def test_padding_chunks_change_nothing() -> None:
    model, x = latent(), combined()
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0, 5:] = False
    valid[1] = False
    out = model(x, None, valid)
    torch.testing.assert_close(out[0, :5], model(x[:, :5])[0])
    other = torch.where(valid[..., None, None], x, combined(seed=5))
    assert torch.equal(model(other, None, valid)[0, :5], out[0, :5])
    assert out.isfinite().all()


@pytest.mark.parametrize("window", [0, 2])
def test_no_query_is_left_without_a_key(window: int) -> None:
    """Not every attention kernel turns a softmax over nothing into zeros."""
    valid = torch.ones(2, 7, 3, dtype=torch.bool)
    valid[0, 2:5] = False
    valid[1] = False
    for block in Spans(valid, 2, 5, 3, window, valid.device).blocks(3):
        assert block.mask is not None
        assert block.mask.any(-1).all()


def test_invalid_chunks_in_the_middle_are_not_seen_by_later_ones() -> None:
    model, x = latent(), combined()
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0, 2] = False
    other = x.clone()
    other[0, 2] += 1
    difference = (model(x, None, valid) - model(other, None, valid)).abs().amax((2, 3))
    assert difference[0, 2] > 0
    assert (difference[0, 3:] == 0).all()


def test_masked_chunks_are_hidden_behind_the_mask_token() -> None:
    model, x = latent(), combined()
    masked = torch.zeros(2, 7, dtype=torch.bool)
    masked[0, 3] = True
    other = x.clone()
    other[0, 3] += 1
    assert torch.equal(model(x, masked), model(other, masked))
    assert not torch.allclose(model(x, masked)[0, 3:], model(x)[0, 3:])
    torch.testing.assert_close(model(x, masked)[1], model(x)[1])


def test_without_layers_no_chunk_sees_another() -> None:
    model, x = latent(layers=0), combined()
    other = x.clone()
    other[0, 2] += 1
    difference = (model(x) - model(other)).abs().amax((2, 3))
    assert difference[0].nonzero().flatten().tolist() == [2]


def test_position_is_relative_in_chunks_and_slots_differ() -> None:
    """Rotary: the same two chunks at another place give the same latents; equal tokens in different slots do not."""
    model = latent(window=2)
    x = combined(chunks=2).repeat(1, 3, 1, 1)
    out = model(x)
    torch.testing.assert_close(out[:, 3], out[:, 5])
    same = torch.ones(1, 1, 3, 32)
    assert (model(same)[0, 0, 0] - model(same)[0, 0, 1]).abs().max() > 1e-3
    swapped = model(torch.cat([x[:, 1:2], x[:, :1], x[:, 4:5]], dim=1))
    unswapped = model(torch.cat([x[:, :1], x[:, 1:2], x[:, 4:5]], dim=1))
    assert not torch.allclose(swapped[:, 2], unswapped[:, 2])


def test_order_of_earlier_chunks_matters() -> None:
    model, x = latent(layers=1), combined(chunks=3)
    assert not torch.allclose(model(x)[:, 2], model(x[:, [1, 0, 2]])[:, 2], atol=1e-4)


def test_every_parameter_gets_a_gradient_with_and_without_masked_chunks() -> None:
    for masked in (None, torch.zeros(2, 7, dtype=torch.bool), torch.ones(2, 7, dtype=torch.bool)):
        model = latent()
        out = model(combined(), masked)
        out.square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
