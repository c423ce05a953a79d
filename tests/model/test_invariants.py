"""What must hold of the whole model for every Combiner (the list in the design document, section "Model")."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mirasol_cli.config.reader import known_keys
from mirasol_cli.fields import to_plain
from mirasol_cli.geometry import TUBEVIT_TUBES, ClipGeometry
from mirasol_cli.model.batch import MediaBatch, TrainingInputs
from mirasol_cli.model.config import LoraConfig, ModelConfig, RopeScalingConfig, TrunkConfig
from mirasol_cli.model.mirasol import Mirasol, StreamState
from mirasol_cli.model.objectives import OBJECTIVES
from tests.small_model import EVERY_LOSS, KINDS, VOCABULARY, WEIGHTS, all_valid, change, media, model, model_config, text

EVERYTHING = EVERY_LOSS


def changed_chunks(network: Mirasol, before: MediaBatch, after: MediaBatch) -> Tensor:
    """Largest change [B, T] of a latent."""
    with torch.no_grad():
        return (network.encode(before).latents_BTMD - network.encode(after).latents_BTMD).abs().amax((2, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [2, 5, 16])
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_1_a_change_in_chunk_t_reaches_no_latent_before_t(kind: str, chunks: int, modality: str) -> None:
    network, batch = model(kind, chunks), media(2, chunks)
    for t in {1, chunks // 2, chunks - 1}:
        other = change(batch, 0, t, audio=modality == "audio", video=modality == "video")
        difference = changed_chunks(network, batch, other)
        assert (difference[0, :t] == 0).all()
        assert difference[0, t] > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_1_the_same_with_cache(kind: str) -> None:
    network, batch = model(kind, 5), media(1, 5)
    latents = []
    for batch_5 in (batch, change(batch, 0, 3)):
        state: StreamState | None = None
        for t in range(5):
            one = MediaBatch(
                tubes=tuple(x[:, t : t + 1] for x in batch_5.tubes),
                mel_BTZS=batch_5.mel_BTZS[:, t : t + 1],
                thumbnails=batch_5.thumbnails[:, t : t + 1],
            )
            encoded, state = network.encode_stream(one, state)
            latents.append(encoded.latents_BTMD)
    changes = [bool((latents[t] != latents[5 + t]).any()) for t in range(5)]
    assert changes == [False, False, False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_2_a_change_in_clip_0_changes_nothing_of_clip_1(kind: str) -> None:
    network, batch, words = model(kind), media(), text()
    other = change(change(batch, 0, 0), 0, 2)
    assert (changed_chunks(network, batch, other)[1] == 0).all()
    logits = []
    for each in (batch, other):
        logits.append(network.text(words.tokens_BQL, words.valid_BQL, network.text_kv(network.encode(each))))
    assert torch.equal(logits[0][1], logits[1][1])
    assert not torch.allclose(logits[0][0], logits[1][0])


@pytest.mark.parametrize("kind", KINDS)
def test_2_padding_chunks_change_nothing(kind: str) -> None:
    """A clip of two chunks beside one of four behaves as alone: latents, answers and losses."""
    network, words = model(kind, losses=OBJECTIVES), text(1)
    masks = all_valid(1)
    for mask in masks.values():
        mask[:, 2:] = False
    padded, alone = replace(media(1), **masks), media(1)
    alone = replace(alone, tubes=tuple(x[:, :2] for x in alone.tubes), mel_BTZS=alone.mel_BTZS[:, :2], thumbnails=alone.thumbnails[:, :2])
    torch.testing.assert_close(network.encode(padded).latents_BTMD[:, :2], network.encode(alone).latents_BTMD)
    ours, theirs = network(padded, words, EVERYTHING).parts, network(alone, words, EVERYTHING).parts
    for name, part in theirs.items():
        torch.testing.assert_close(ours[name].sum, part.sum, msg=lambda text, name=name: f"{name}: {text}")
        assert ours[name].count == part.count


@pytest.mark.parametrize("kind", KINDS)
def test_2_clips_without_sound_without_picture_and_with_both_behave_as_alone(kind: str) -> None:
    network, batch, masks = model(kind), media(4), all_valid(4)
    masks["audio_valid_BTN"][0] = False
    masks["video_valid_BTN"][1] = False
    masks["audio_valid_BTN"][2] = masks["video_valid_BTN"][2] = False
    together = network.encode(replace(batch, **masks)).latents_BTMD
    assert together.isfinite().all()
    for clip in range(4):
        row = slice(clip, clip + 1)
        one = MediaBatch(tubes=tuple(x[row] for x in batch.tubes), mel_BTZS=batch.mel_BTZS[row], thumbnails=batch.thumbnails[row])
        own = {} if clip == 3 else {key: value[row] for key, value in masks.items()}
        torch.testing.assert_close(together[row], network.encode(replace(one, **own)).latents_BTMD)
    silenced = replace(batch, mel_BTZS=torch.cat([batch.mel_BTZS[:1] + 5, batch.mel_BTZS[1:]]), **masks)
    assert torch.equal(network.encode(silenced).latents_BTMD, together)


@pytest.mark.parametrize("kind", KINDS)
def test_2_what_lies_under_a_mask_changes_nothing(kind: str) -> None:
    """Single patches and tubes of a chunk, and padding chunks that are told by their own mask alone."""
    network, batch, masks = model(kind), media(), all_valid()
    masks["audio_valid_BTN"][:, :, 2:] = False  # the upper row of patches
    masks["video_valid_BTN"][:, :, ::3] = False
    before = network.encode(replace(batch, **masks)).latents_BTMD
    audio, hidden = batch.mel_BTZS.clone(), ~masks["video_valid_BTN"]
    audio[:, :, 16:] += 3
    tubes, start = [], 0
    for pixels in batch.tubes:
        end = start + pixels.shape[2]
        tubes.append(torch.where(hidden[:, :, start:end, None], 255 - pixels, pixels))
        start = end
    after = network.encode(replace(batch, mel_BTZS=audio, tubes=tuple(tubes), **masks)).latents_BTMD
    assert torch.equal(before, after)

    padding = torch.tensor([[True] * 4, [True, True, False, False]])
    ragged = replace(batch, chunk_valid_BT=padding)
    assert network.encode(ragged).present_BT.equal(padding)
    assert (changed_chunks(network, ragged, change(ragged, 1, 2)) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_3_one_state_dict_at_every_length(kind: str) -> None:
    """128 frames as 16 x 8; 512 as 64 x 8 and as 16 x 32, at the default tubes and a small size."""
    config = model_config(kind)
    trained = Mirasol(config, ClipGeometry(frames=128, chunks=16, size=32), VOCABULARY)
    for chunks in (64, 16):
        geometry = ClipGeometry(frames=512, chunks=chunks, size=32)
        longer = Mirasol(config, geometry, VOCABULARY).eval()
        longer.load_state_dict(trained.state_dict())
        batch = MediaBatch(
            tubes=tuple(
                torch.randint(0, 256, (1, chunks, n, t.numbers_per_token), dtype=torch.uint8)
                for n, t in zip(geometry.tube_tokens, geometry.tubes, strict=True)
            ),
            mel_BTZS=torch.randn(1, chunks, 128, 256),
            thumbnails=torch.zeros(1, chunks, 4, 32, 32, 3, dtype=torch.uint8),
        )
        with torch.no_grad():
            latents = longer.encode(batch).latents_BTMD
        outputs = geometry.tokens_per_chunk if kind == "none" else 4
        assert latents.shape == (1, chunks, outputs, 40)
        assert latents.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_4_two_evaluation_passes_are_identical(kind: str) -> None:
    config = model_config(kind)
    busy = replace(
        config,
        encoder=replace(config.encoder, dropout=0.3, drop_path=0.3),
        combiner=replace(config.combiner, dropout=0.3),
        latent=replace(config.latent, dropout=0.3),
        text=replace(config.text, dropout=0.3),
    )
    network = Mirasol(busy, model().geometry, VOCABULARY)
    for evaluating in (True, False):
        network.train(not evaluating)
        first, second = (network(media(), text(), WEIGHTS).total(WEIGHTS) for _ in range(2))
        assert (first == second) == evaluating


def test_5_question_and_context_are_seen_and_carry_no_loss() -> None:
    network, words = model(), text()
    only_text = {"text": 1.0}
    part = network(media(), words, only_text).parts["text"]
    tokens = words.tokens_BQL.clone()
    tokens[0, 0, 0] = (tokens[0, 0, 0] + 1) % VOCABULARY
    other = network(media(), replace(words, tokens_BQL=tokens), only_text).parts["text"]
    assert other.sum != part.sum
    assert part.count == other.count == words.target_BQL.sum()
    longer = replace(words, target_BQL=words.target_BQL | (torch.arange(9) == 2))
    assert network(media(), longer, only_text).parts["text"].count == part.count + 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_5_every_parameter_gets_a_gradient(kind: str, share: bool, masked: bool) -> None:
    network = model(kind, losses=OBJECTIVES, encoder=replace(model_config().encoder, share=share)).train()
    masks, extra = all_valid(), TrainingInputs(masked_BT=torch.tensor([[False, True, False, False]] * 2))
    masks["audio_valid_BTN"][0, 1:] = False
    masks["video_valid_BTN"][1, 0] = False
    network(media(**(masks if masked else {})), text(), EVERYTHING, extra if masked else None).total(EVERYTHING).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    unused = {"filler", "mask_token", *(("tokens",) if "last" in kind else ())}  # these have work only where something is masked
    silent = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() == 0]
    assert {name.split(".")[-1] for name in silent} <= unused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("missing", ["audio_valid_BTN", "video_valid_BTN", "both"])
def test_5_a_batch_without_a_modality_still_reaches_every_parameter(kind: str, missing: str) -> None:
    """A rank of a distributed run that happens to see no sound must not lack a gradient."""
    network, masks = model(kind, losses=OBJECTIVES).train(), all_valid()
    for name in ("audio_valid_BTN", "video_valid_BTN"):
        if missing in (name, "both"):
            masks[name][:] = False
    losses = network(media(**masks), text(), EVERYTHING)
    losses.total(EVERYTHING).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


OTHER_VALUES = {
    "encoder": {
        "width": 36, "layers": 3, "heads": 3, "mlp_dim": 60, "share": False, "activation": "quick_gelu", "input_norm": True,
        "norm_eps": 0.1, "dropout": 0.2, "drop_path": 0.5,
    },
    "combiner": {
        "kind": "perceiver", "context": "history", "output_tokens": "last",
        "num_outputs": 3, "width": 40, "layers": 3, "heads": 4, "mlp_dim": 60, "dropout": 0.2,
    },
    "combiner (ttm)": {"memory_tokens": 5, "write": "gated", "initial_memory": "zero", "positions": False, "mlp_dim": 60},
    "latent": {"width": 44, "layers": 1, "heads": 4, "mlp_dim": 60, "window": 2, "dropout": 0.2},
    "reconstruction": {"width": 28, "layers": 2, "heads": 3, "mlp_dim": 60},
    "text (ttm)": {"sees_memory": False},
    "text": {
        "width": 32, "layers": 1, "heads": 14, "kv_heads": 2, "mlp_dim": 60, "cross_attention_every": 2, "rope_theta": 100.0,
        "norm_eps": 0.1, "head_dim": 6, "qkv_bias": True, "qk_norm": True,
        "tie_embeddings": False, "dropout": 0.2, "cross_attention_gate_init": "closed", "sees": "last",
    },
}  # fmt: skip
# The model's name; how prompts are cut before they become tokens.
ELSEWHERE = {"preset", "text.max_context", "text.max_question", "text.max_answer"}


SCALING = RopeScalingConfig(factor=8.0, low_freq_factor=0.5, high_freq_factor=2.0, original_max_positions=8)
INNER_VALUES: dict[str, dict[str, Any]] = {
    "text.rope_scaling": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_positions": 16},
    "video_encoder": {key: value for key, value in OTHER_VALUES["encoder"].items() if key != "share"},
    "audio_encoder": {key: value for key, value in OTHER_VALUES["encoder"].items() if key != "share"},
    "lora": {"parts": ("text",), "rank": 3, "alpha": 40.0},
}
"""Sections that have values only where a model needs them."""


def test_5_the_table_of_values_knows_every_model_key() -> None:
    tables = OTHER_VALUES | INNER_VALUES
    known = {f"{section.split()[0]}.{key}" for section, values in tables.items() for key in values}
    keys = known_keys(ModelConfig)
    assert known | ELSEWHERE == {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}


def fingerprint(config: ModelConfig) -> list[float]:
    """The losses and the size of the gradient of a model of this config."""
    torch.manual_seed(0)
    network = Mirasol(config, model().geometry, VOCABULARY, OBJECTIVES).train()
    torch.manual_seed(1)
    losses = network(media(), text(), EVERYTHING)
    losses.total(EVERYTHING).backward()
    squares = sum(float(p.grad.double().square().sum()) for p in network.parameters() if p.grad is not None)
    return [float(part.sum.detach()) for part in losses.parts.values()] + [squares]


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, values in INNER_VALUES.items() for key in values])
def test_5_every_key_of_an_inner_section_changes_output_or_gradient(section: str, key: str) -> None:
    config = model_config()
    if section == "lora":
        before, after = (
            replace(config, lora=LoraConfig(**{"parts": ("text", "encoder")} | change))
            for change in ({}, {key: INNER_VALUES[section][key]})
        )
    elif section == "text.rope_scaling":
        before = replace(config, text=replace(config.text, rope_scaling=SCALING))
        scaling = replace(SCALING, **{key: INNER_VALUES[section][key]})
        after = replace(config, text=replace(config.text, rope_scaling=scaling))
    else:
        sizes = to_plain(config.encoder)
        del sizes["share"]
        before, after = (replace(config, **{section: TrunkConfig(**sizes | change)}) for change in ({}, {key: INNER_VALUES[section][key]}))
    assert fingerprint(before) != fingerprint(after)


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, values in OTHER_VALUES.items() for key in values])
def test_5_every_model_key_changes_output_or_gradient(section: str, key: str) -> None:
    part = section.split()[0]
    config = model_config("ttm" if "ttm" in section else "transformer")
    changed = replace(config, **{part: replace(getattr(config, part), **{key: OTHER_VALUES[section][key]})})
    assert fingerprint(config) == fingerprint(config)
    assert fingerprint(config) != fingerprint(changed)


@pytest.mark.parametrize("key", list(OBJECTIVES))
def test_5_every_loss_key_changes_the_gradient(key: str) -> None:
    def gradient(weights: dict[str, float]) -> Tensor:
        network = model(losses=OBJECTIVES)
        network(media(), text(), weights).total(weights).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    assert not torch.allclose(gradient(EVERYTHING), gradient(EVERYTHING | {key: 0.5}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "case", ["one chunk", "one clip of one chunk", "no sound", "no picture", "neither", "ragged", "no text", "all masked"]
)
def test_6_edge_cases_give_a_finite_loss_and_gradient(kind: str, case: str) -> None:
    chunks, clips = (1 if "one chunk" in case else 4), (1 if "one clip" in case else 2)
    network, masks = model(kind, chunks, losses=OBJECTIVES).train(), all_valid(clips, chunks)
    extra = TrainingInputs()
    if case in ("no sound", "neither"):
        masks["audio_valid_BTN"][:] = False
    if case in ("no picture", "neither"):
        masks["video_valid_BTN"][:] = False
        masks["thumbnail_valid_BT"][:] = False
    if case == "ragged":
        for mask in masks.values():
            mask[0, 1:] = False
            mask[1, 3:] = False
    if case == "all masked":
        extra = TrainingInputs(masked_BT=torch.ones(clips, chunks, dtype=torch.bool))
        for name in ("video_valid_BTN", "audio_valid_BTN", "chunk_valid_BT", "thumbnail_valid_BT"):
            masks[name][:] = False
    losses = network(media(clips, chunks, **masks), None if case == "no text" else text(clips), EVERYTHING, extra)
    total = losses.total(EVERYTHING)
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert all(value == value for value in losses.diagnostics.values())


def test_8_tube_counts() -> None:
    """The arithmetic of TubeViT's own tubes: 539 tokens at 32 x 224 x 224, whatever its paper prints."""
    counts = ClipGeometry(frames=32, chunks=1, size=224, tubes=TUBEVIT_TUBES).tube_tokens
    assert counts == (98, 147, 98, 196)
    assert ClipGeometry(frames=128, chunks=16).tube_tokens == ClipGeometry(frames=512, chunks=64).tube_tokens
