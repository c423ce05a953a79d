"""Freezing by name pattern."""

from __future__ import annotations

import pytest
from torch import nn

from mirasol_cli.errors import RecipeError
from mirasol_cli.training.freezing import freeze


def build() -> nn.Module:
    part = {
        "encoder": nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])}),
        "text": nn.Linear(3, 3),
        "text_more": nn.Linear(1, 1),
    }
    return nn.ModuleDict(part)


def test_a_part_a_pattern_and_a_name() -> None:
    model = build()
    report = freeze(model, ["text", "encoder.blocks.*.bias", "encoder.blocks.0.weight"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"text.weight", "text.bias", "encoder.blocks.0.bias", "encoder.blocks.1.bias", "encoder.blocks.0.weight"}
    assert set(report.names) == frozen
    assert (report.frozen, report.total) == (12 + 2 + 2 + 4, 12 + 12 + 2)
    assert str(report) == "frozen: 5 tensors with 20 of 26 parameters"


def test_patterns_that_match_nothing_are_all_named_with_near_names() -> None:
    model = build()
    with pytest.raises(RecipeError) as refusal:
        freeze(model, ["text", "encodr.*", "encoder.block.0"])
    assert len(refusal.value.problems) == 2
    assert "'encodr.*' matches no parameter; near it: encoder" in refusal.value.problems[0]
    assert "encoder.blocks.0" in refusal.value.problems[1]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(RecipeError, match="nothing is left to train"):
        freeze(build(), ["*"])


def test_nothing_to_freeze() -> None:
    assert freeze(build(), []).names == ()
