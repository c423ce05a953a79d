"""Attention runs without a mask in the common case, which is what fast kernels ask for."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mirasol_cli.batches.order import Unit
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.model.batch import Hidden, MediaBatch
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.training.augment import Draw, StepDraw, augmented
from mirasol_cli.training.data import sample_generator, step_generator
from mirasol_cli.training.flops import forward_flops

CLIPS, STEPS, QUESTIONS, LENGTH = 8, 400, 4, 48


def patterns(recipe: Recipe) -> Counter[Hidden]:
    """What the masks hide in micro batches of clips that have all of both modalities, as training changes them."""
    geometry, data = recipe.clip, recipe.data
    plain = MediaBatch(
        tubes=(torch.zeros(CLIPS, geometry.chunks, 1, 1, dtype=torch.uint8),) if data.video else None,
        mel_BTZS=torch.zeros(CLIPS, geometry.chunks, geometry.audio.n_mels, geometry.audio.columns) if data.audio else None,
        thumbnails=torch.zeros(CLIPS, geometry.chunks, 1, 2, 2, 3, dtype=torch.uint8),
    )
    found: Counter[Hidden] = Counter()
    for step in range(STEPS):
        generators = (sample_generator(0, Unit(0, 0, CLIPS * step + clip, ())) for clip in range(CLIPS))
        draws = [Draw.of(generator, recipe.train.augment, geometry, 1) for generator in generators]
        drawn = StepDraw.of(step_generator(0, step), recipe.train.augment)
        found[augmented(plain, draws, drawn, geometry)[0].hidden] += 1
    return found


@torch.no_grad()
def attention_flops(recipe: Recipe, hidden: Hidden, monkeypatch: pytest.MonkeyPatch) -> dict[bool, int]:
    """Products of attention in a training step's forward pass, by whether it had a mask."""
    flops = {False: 0, True: 0}
    plain = F.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        flops[attn_mask is not None] += 4 * query.numel() * key.shape[-2]
        return plain(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    geometry, data = recipe.clip, recipe.data
    shape = (1, geometry.chunks)
    with torch.device("meta"):
        model = Mirasol(recipe.model, geometry, 1000)
        media = MediaBatch(
            tubes=tuple(
                torch.empty(*shape, count, tube.numbers_per_token, dtype=torch.uint8)
                for count, tube in zip(geometry.tube_tokens, geometry.tubes, strict=True)
            )
            if data.video
            else None,
            mel_BTZS=torch.empty(*shape, geometry.audio.n_mels, geometry.audio.columns) if data.audio else None,
            thumbnails=torch.empty(*shape, 4, 32, 32, 3, dtype=torch.uint8),
            video_valid_BTN=torch.empty(*shape, geometry.video_tokens, dtype=torch.bool) if data.video else None,
            audio_valid_BTN=torch.empty(*shape, geometry.audio_tokens, dtype=torch.bool) if data.audio else None,
            hidden=hidden,
        )
        tokens = torch.zeros(1, QUESTIONS, LENGTH, dtype=torch.int64)
        masked = torch.zeros(*shape, dtype=torch.bool)
    encoded = model.encode(media)
    model.latent(encoded.combined_BTMD, masked)
    model.objectives["video"](encoded.latents_BTMD[:, :-1])
    model.text.hidden(tokens, None, model.text_kv(encoded))
    monkeypatch.setattr(F, "scaled_dot_product_attention", plain)
    return flops


@pytest.mark.parametrize("name", ["vggsound", "activitynet", "pretrain"])
def test_nine_tenths_of_attention_have_no_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(name)
    count = functools.partial(attention_flops, recipe, monkeypatch=monkeypatch)
    without = with_mask = 0
    for hidden, times in patterns(recipe).items():
        flops = count(hidden)
        without, with_mask = without + times * flops[False], with_mask + times * flops[True]
    assert without / (without + with_mask) >= 0.9


def test_a_question_set_without_audio_costs_a_fifth_less() -> None:
    recipe = load_recipe("activitynet")
    with torch.device("meta"):
        model = Mirasol(recipe.model, recipe.clip, 8000)
    whole, silent = (sum(forward_flops(model, audio=audio, questions=8).values()) for audio in (True, False))
    assert silent <= 0.8 * whole
