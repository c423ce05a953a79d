"""Under bf16 autocast every residual stream is float32, with float32 weights (data parallel) and with bf16 ones (sharded) alike."""

from __future__ import annotations

import pytest
import torch

from mirasol_cli.model.layers import Block
from mirasol_cli.model.text_decoder import CrossAttention, DecoderLayer
from tests.small_model import KINDS, WEIGHTS, media, model, text


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_residual_streams_are_float32(kind: str, sharded: bool) -> None:
    network = model(kind)
    if sharded:  # what `fully_shard` does: weights in bf16, buffers and inputs as they are
        for parameter in network.parameters():
            parameter.data = parameter.data.bfloat16()
    entered: dict[str, torch.dtype] = {}
    for name, module in network.named_modules():
        if isinstance(module, (Block, DecoderLayer, CrossAttention)):
            module.register_forward_pre_hook(lambda _, inputs, name=name: entered.update({name: inputs[0].dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        network(media(), text(), WEIGHTS)
    assert {name for name, dtype in entered.items() if dtype != torch.float32} == set()
    assert len(entered) == len(network.blocks())
