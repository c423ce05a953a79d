"""The latent objective, trained: it predicts what can be predicted, nothing else, and does not collapse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mirasol_cli.model.batch import MediaBatch
from mirasol_cli.model.config import EncoderConfig, LatentConfig
from mirasol_cli.model.losses import slot_variance
from mirasol_cli.model.mirasol import Mirasol
from tests.small_model import VOCABULARY, combiner_config, geometry, media, model_config

ONLY_LATENT = {"latent": 1.0}


def noise(clips: int, chunks: int, seed: int) -> MediaBatch:
    return media(clips, chunks, seed=seed)


def waves(clips: int, chunks: int, seed: int, *, shuffled: bool = False) -> MediaBatch:
    """Picture and sound that turn at a speed of the clip's own, with some noise: the next chunk follows from the last."""
    shape, random = geometry(chunks), torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(clips, 1, generator=random)
    speed = 0.3 + 1.2 * torch.rand(clips, 1, generator=random)
    time = torch.stack([torch.randperm(chunks, generator=random) if shuffled else torch.arange(chunks) for _ in range(clips)])
    angle = (phase + speed * time)[..., None, None]

    def wave(rows: int, columns: int) -> torch.Tensor:
        pattern = torch.linspace(0, 6.28, rows)[:, None] + torch.linspace(0, 3, columns)
        return (angle + pattern).sin() + 0.1 * torch.randn(clips, chunks, rows, columns, generator=random)

    tubes = tuple(
        (127 + 100 * wave(count, tube.numbers_per_token)).clamp(0, 255).to(torch.uint8)
        for count, tube in zip(shape.tube_tokens, shape.tubes, strict=True)
    )
    return replace(media(clips, chunks, seed=seed), tubes=tubes, mel_BTZS=wave(32, 32))


def shuffled_waves(clips: int, chunks: int, seed: int) -> MediaBatch:
    return waves(clips, chunks, seed, shuffled=True)


def trained(kind: str, data, *, width: int, clips: int, chunks: int, steps: int, seed: int = 0) -> Mirasol:
    torch.manual_seed(seed)
    config = model_config(
        encoder=EncoderConfig(width=24, layers=1, heads=2, mlp_dim=48),
        combiner=combiner_config(kind, width=width),
        latent=LatentConfig(width=width, layers=2, heads=2, mlp_dim=2 * width),
    )
    network = Mirasol(config, geometry(chunks), VOCABULARY, ("latent",))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for step in range(steps):
        loss = network(data(clips, chunks, step + 1), None, ONLY_LATENT).total(ONLY_LATENT)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.eval()


@torch.no_grad()
def held_out(network: Mirasol, data, chunks: int) -> dict[str, float]:
    return network(data(128, chunks, 10**6), None, ONLY_LATENT).diagnostics


def check_objective(kind: str, *, width: int, clips: int, chunks: int, steps: int) -> None:
    found = held_out(trained(kind, noise, width=width, clips=clips, chunks=chunks, steps=steps), noise, chunks)
    assert found["r2"] <= 0.02
    assert found["rank"] >= width / 4
    assert found["cosine"] < 0.9
    network = trained(kind, waves, width=width, clips=clips, chunks=chunks, steps=steps)
    ordered, shuffled = held_out(network, waves, chunks), held_out(network, shuffled_waves, chunks)
    assert ordered["r2"] > 0.05
    assert ordered["r2"] > shuffled["r2"] + 0.05
    assert ordered["rank"] >= width / 4


def test_the_latent_objective_is_honest() -> None:
    check_objective("transformer", width=32, clips=8, chunks=6, steps=120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "history", "ttm", "perceiver"])
def test_the_latent_objective_is_honest_after_200_steps(kind: str) -> None:
    check_objective(kind, width=64, clips=16, chunks=8, steps=200)


def test_without_the_spread_the_objective_would_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the term is there: the detached target alone loses the variance that the error is counted in."""
    kept = trained("transformer", noise, width=32, clips=8, chunks=4, steps=60)
    monkeypatch.setattr("mirasol_cli.model.losses.spread_loss", lambda x, there: x.sum() * 0)
    lost = trained("transformer", noise, width=32, clips=8, chunks=4, steps=60)

    def spread(network: Mirasol) -> float:
        with torch.no_grad():
            encoded = network.encode(noise(64, 4, 10**6))
        return float(slot_variance(encoded.combined_BTMD, encoded.present_BT).mean())

    assert spread(kept) > 0.5
    assert spread(lost) < 0.05
