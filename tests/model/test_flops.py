"""The analytic table against torch's counter, the presets' sizes, and the Combiners' growth."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.model.config import (
    HEADS,
    PRESETS,
    CombinerConfig,
    EncoderConfig,
    LatentConfig,
    ModelConfig,
    ReconstructionConfig,
    TextConfig,
)
from mirasol_cli.model.flops import combiner_flops, count_parameters, model_table
from mirasol_cli.model.losses import LossWeights
from tests.small_model import KINDS, VOCABULARY, combiner_config, media, model, text

SECTIONS = {
    "encoder": EncoderConfig,
    "combiner": CombinerConfig,
    "latent": LatentConfig,
    "reconstruction": ReconstructionConfig,
    "text": TextConfig,
}


def preset(name: str, **changes) -> ModelConfig:
    return replace(ModelConfig(preset=name, **{key: SECTIONS[key](**values) for key, values in PRESETS[name].items()}), **changes)


VARIANTS = [{"combiner": combiner_config(kind)} for kind in KINDS] + [
    {"combiner": combiner_config("ttm", write="add-erase")},
    {"combiner": combiner_config("ttm", write="gated")},
    {"combiner": combiner_config("ttm", read="query", write="query")},
    {"combiner": combiner_config("ttm", width=24)},
    {"latent": LatentConfig(width=32, layers=3, heads=2, mlp=64, window=2)},
    {"latent": LatentConfig(width=40, layers=0, heads=2, mlp=64)},
]


@pytest.mark.parametrize(
    "changes", VARIANTS, ids=lambda c: " ".join(f"{v.__class__.__name__}-{getattr(v, 'kind', '')}" for v in c.values())
)
def test_the_table_equals_the_counted_products(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirasol_cli.model.chunk_causal.BLOCK_TOKENS", 1)  # no product with a chunk that is not seen
    network = model(heads=HEADS, **changes)
    weights = LossWeights(audio=1, contrastive=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(media(1), text(1), weights)
    counted = counter.get_flop_counts()
    table = model_table(network.config, network.geometry, VOCABULARY, questions=3, text_tokens=9, target_tokens=4)
    config = network.config
    outside = {
        "text": 2 * 3 * 4 * config.text.width * VOCABULARY,  # the tied output layer is no module
        "latent": under(counted, "Mirasol.latent.next_chunk"),  # called by the losses, not by the part's own forward
        "contrastive": -4 * min(config.latent.width, config.text.width),  # clip against text, both ways: nothing at scale
    }
    for row in table:
        assert row.flops == under(counted, f"Mirasol.{row.part}") + outside.get(row.part, 0), row.part
    spread = sum(2 * 4 * width * width * slots for width, slots in spread_products(network))
    assert counter.get_total_flops() == sum(row.flops for row in table) + spread - outside["contrastive"]


def under(counted: dict, name: str) -> int:
    """Products of a module and all below it; a module whose forward is not called is the sum of its children."""
    if name in counted:
        return sum(counted[name].values())
    below = [other for other in counted if other.startswith(name + ".")]
    highest = [other for other in below if not any(other.startswith(parent + ".") for parent in below)]
    return sum(sum(counted[other].values()) for other in highest)


def spread_products(network) -> list[tuple[int, int]]:
    """The covariances of the latent objective, which belong to no part: (width, slots) of Combiner outputs and latents."""
    config = network.config
    slots = network.geometry.tokens_per_chunk if config.combiner.kind == "none" else config.combiner.outputs
    return [(config.combiner.width, slots), (config.latent.width, slots)]


def test_parameters_by_part_are_those_of_the_model() -> None:
    network = model(heads=HEADS)
    table = model_table(network.config, network.geometry, VOCABULARY)
    assert sum(row.parameters for row in table) == sum(p.numel() for p in network.parameters())
    for row in table:
        assert row.parameters == sum(p.numel() for p in getattr(network, row.part).parameters())


@pytest.mark.parametrize(
    ("name", "vocabulary", "least", "most"),
    [("demo", 1000, 1.5e6, 4e6), ("small", 8000, 85e6, 115e6), ("base", 8000, 370e6, 430e6), ("mirasol3b", 32000, 2.9e9, 3.1e9)],
)
@pytest.mark.parametrize("kind", ["transformer", "ttm"])
def test_presets_have_their_sizes(name: str, vocabulary: int, least: float, most: float, kind: str) -> None:
    config = preset(name)
    config = replace(config, combiner=replace(config.combiner, kind=kind))
    parameters = count_parameters(config, ClipGeometry(), vocabulary)
    total = sum(parameters.values())
    assert least <= total <= most
    if name == "mirasol3b":
        assert parameters["text"] <= total / 2
    assert parameters == count_parameters(config, ClipGeometry(frames=512, chunks=64), vocabulary)


def test_mirasol3b_has_tinyllamas_text_shape() -> None:
    text_config = preset("mirasol3b").text
    assert (text_config.width, text_config.layers, text_config.heads, text_config.kv_heads, text_config.mlp) == (2048, 22, 32, 4, 5632)
    assert (text_config.cross_every, text_config.tie_embeddings) == (4, False)


def test_ttm_grows_linearly_and_history_quadratically() -> None:
    """FLOPs of the Combiner at 4, 16 and 64 chunks of 471 tokens."""
    config, tokens = preset("small").combiner, ClipGeometry().tokens_per_chunk
    ttm = [combiner_flops(replace(config, kind="ttm"), 512, tokens, chunks) for chunks in (4, 16, 64)]
    history = [combiner_flops(replace(config, context="history"), 512, tokens, chunks) for chunks in (4, 16, 64)]
    assert ttm[1] == 4 * ttm[0]
    assert ttm[2] == 16 * ttm[0]
    assert history[1] / history[0] > 5
    assert history[2] / history[1] > 8
    assert all(a < b / 10 for a, b in zip(ttm, history, strict=True))
