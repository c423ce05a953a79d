"""Low-rank adaptation: what it adapts and keeps, its start, merging."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mirasol_cli.fields import FieldError
from mirasol_cli.model.config import LoraConfig, TrunkConfig
from mirasol_cli.model.lora import LoraLinear, kept_by_lora, merge_lora
from mirasol_cli.model.mirasol import Mirasol
from tests.small_model import VOCABULARY, WEIGHTS, media, model, model_config, text

CONFIG = LoraConfig(parts=("encoder", "text"), rank=3, alpha=5.0)


def adapted(**changes: object) -> Mirasol:
    torch.manual_seed(0)
    return Mirasol(replace(model_config(), lora=CONFIG, **changes), model().geometry, VOCABULARY).eval()


def disturb(network: nn.Module) -> None:
    """As training would leave it."""
    for name, parameter in network.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.3)


def test_it_starts_as_the_model_without_it() -> None:
    network, plain = adapted(), model()
    plain.load_state_dict({name: tensor for name, tensor in network.state_dict().items() if ".lora_" not in name})
    with torch.no_grad():
        assert network(media(), text(), WEIGHTS).total(WEIGHTS) == plain(media(), text(), WEIGHTS).total(WEIGHTS)
        disturb(network)
        assert network(media(), text(), WEIGHTS).total(WEIGHTS) != plain(media(), text(), WEIGHTS).total(WEIGHTS)


def test_it_is_the_product_scaled_by_alpha_over_rank() -> None:
    torch.manual_seed(0)
    base = nn.Linear(6, 4)
    layer, x = LoraLinear(base, LoraConfig(parts=("text",), rank=2, alpha=5.0)), torch.randn(3, 6)
    nn.init.normal_(layer.lora_b)
    expected = x @ (base.weight + 2.5 * layer.lora_b @ layer.lora_a).T + base.bias
    torch.testing.assert_close(layer(x), expected)


def test_merged_equals_unmerged() -> None:
    network = adapted()
    disturb(network)
    with torch.no_grad():
        before, logits = network.encode(media()).latents_BTMD, network.text(text().tokens_BQL)
        merge_lora(network)
        assert (network.encode(media()).latents_BTMD - before).abs().max() <= 1e-5
        assert (network.text(text().tokens_BQL) - logits).abs().max() <= 1e-5
    assert network.state_dict().keys() == model().state_dict().keys()
    assert not any(isinstance(module, LoraLinear) for module in network.modules())


def test_all_of_a_part_is_kept_but_what_is_new_here() -> None:
    network = adapted(video_encoder=TrunkConfig(width=48, layers=2, heads=2, mlp_dim=40))
    kept = kept_by_lora(network, CONFIG)
    learns = {name for name, _ in network.named_parameters() if name not in kept}
    assert {"text.embed_tokens.weight", "text.norm.weight", "text.layers.0.self_attn.q_proj.weight", "video_encoder.norm.bias"} <= kept
    assert {"video_encoder.blocks.1.mlp.up.bias", "audio_encoder.blocks.0.attention.key_value.weight"} <= kept
    assert {"text.cross_layers.0.q_proj.weight", "text.kv_proj.k_proj.0.weight", "video_encoder.output_proj.weight"} <= learns
    assert {"text.layers.0.mlp.down_proj.lora_a", "audio_encoder.blocks.0.attention.out.lora_b", "video_tokens.kind"} <= learns
    adapters = [name for name, module in network.named_modules() if isinstance(module, LoraLinear)]
    assert len(adapters) == 7 * len(network.text.layers) + 5 * (2 + len(network.audio_encoder.blocks))


def test_a_part_that_the_model_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(FieldError, match=r"'video_encoder' is not in this model, which has encoder, text"):
        Mirasol(replace(model_config(), lora=LoraConfig(parts=("video_encoder",))), model().geometry, VOCABULARY)
    with pytest.raises(FieldError, match="'combiner' is not one of"):
        LoraConfig(parts=("combiner",))
