"""The whole model: wiring, losses of a batch, streaming, precision, compilation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mirasol_cli.fields import FieldError
from mirasol_cli.model.batch import MediaBatch, TextBatch, TrainingInputs
from mirasol_cli.model.config import EncoderConfig, LatentConfig
from mirasol_cli.model.mirasol import Mirasol, StreamState
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.model.reconstruction import THUMBNAIL_NUMBERS, thumbnail_patches
from mirasol_cli.model.text_decoder import TextKV
from mirasol_cli.model.tokens import spectrogram_patches
from mirasol_cli.runtime.distributed import prepare_blocks
from tests.small_model import EVERY_LOSS, KINDS, WEIGHTS, all_valid, combiner_config, media, model, model_config, text

EVERYTHING = EVERY_LOSS


def between(batch: MediaBatch, start: int, end: int) -> MediaBatch:
    """The chunks start .. end - 1."""

    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, start:end]

    return MediaBatch(
        tubes=tuple(x[:, start:end] for x in batch.tubes),
        mel_BTZS=batch.mel_BTZS[:, start:end],
        thumbnails=batch.thumbnails[:, start:end],
        video_valid_BTN=part(batch.video_valid_BTN),
        audio_valid_BTN=part(batch.audio_valid_BTN),
        chunk_valid_BT=part(batch.chunk_valid_BT),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_learns_random_data_by_heart(kind: str) -> None:
    network, batch, words = model(kind, losses=OBJECTIVES).train(), media(), text()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(25):
        total = network(batch, words, EVERYTHING).total(EVERYTHING)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.75 * losses[0]


def test_losses_of_zero_weight_are_not_computed() -> None:
    network = model(losses=OBJECTIVES)
    for name in OBJECTIVES:
        assert set(network(media(), text(), {name: 1.0}).parts) == {name}
    assert set(network(media(), None, EVERYTHING).parts) == {"latent", "video", "audio"}


def test_sound_is_rebuilt_as_it_was_before_some_of_it_was_hidden() -> None:
    network, whole = model(losses=OBJECTIVES), media()
    hidden_mel, heard_BTN = whole.mel_BTZS.clone(), torch.ones(2, 4, 4, dtype=torch.bool)
    hidden_mel[:, 2, 8:20] = 0
    heard_BTN[0, 1] = False
    hidden = replace(whole, mel_BTZS=hidden_mel, audio_valid_BTN=heard_BTN)
    kept = TrainingInputs(whole_mel_BTZS=whole.mel_BTZS, whole_audio_valid_BTN=torch.ones_like(heard_BTN))
    weights = {"audio": 1.0}
    predicted = network.objectives["audio"](network.encode(hidden).latents_BTMD[:, :-1])
    error = predicted - spectrogram_patches(whole.mel_BTZS[:, 1:], network.geometry.audio)
    part = network(hidden, None, weights, kept).parts["audio"]
    torch.testing.assert_close(part.sum, error.square().mean(-1).sum())
    assert part.count == 2 * 3 * 4
    assert network(hidden, None, weights).parts["audio"].count == 2 * 3 * 4 - 4


def test_sums_and_counts_add_up_over_micro_batches() -> None:
    network, words = model(losses=OBJECTIVES), text(4)
    batch = replace(media(4), **{key: value.clone() for key, value in all_valid(4).items()})
    assert batch.thumbnail_valid_BT is not None
    assert batch.audio_valid_BTN is not None
    batch.thumbnail_valid_BT[1, 2] = False
    batch.audio_valid_BTN[2, 1:] = False
    whole = network(batch, words, EVERYTHING).parts

    def rows(x, part: slice):
        taken = {name: value[part] for name, value in vars(x).items() if isinstance(value, Tensor)}
        if isinstance(x, MediaBatch):
            taken["tubes"] = tuple(tube[part] for tube in x.tubes)
        return type(x)(**taken)

    halves = [network(rows(batch, part), rows(words, part), EVERYTHING).parts for part in (slice(0, 2), slice(2, 4))]
    for name in ("text", "video", "audio"):
        torch.testing.assert_close(halves[0][name].sum + halves[1][name].sum, whole[name].sum)
        assert halves[0][name].count + halves[1][name].count == whole[name].count
    assert whole["video"].count == 4 * 3 - 1
    assert whole["audio"].count == (4 * 3 - 3) * 4
    assert whole["latent"].count == 4 * 3


def test_questions_grouped_by_clip_give_the_same_gradient_as_one_by_one() -> None:
    weights, words, batch = {"text": 1.0}, text(2, 3), media()
    gradients = []
    for grouped in (True, False):
        network = model(losses=("text",))
        if grouped:
            part = network(batch, words, weights)
        else:
            single = TextBatch(**{name: None if value is None else value.flatten(0, 1)[:, None] for name, value in vars(words).items()})
            copies = replace(
                batch,
                tubes=tuple(x.repeat_interleave(3, 0) for x in batch.tubes),
                mel_BTZS=batch.mel_BTZS.repeat_interleave(3, 0),
                thumbnails=batch.thumbnails.repeat_interleave(3, 0),
            )
            part = network(copies, single, weights)
        part.total(weights).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_text_loss_is_the_cross_entropy_of_target_tokens() -> None:
    network, batch, words = model(), media(), text()
    part = network(batch, words, {"text": 1.0}).parts["text"]
    logits = network.text(words.tokens_BQL, words.valid_BQL, network.text_kv(network.encode(batch)))
    expected = F.cross_entropy(logits[:, :, 4:8].flatten(0, 2), words.tokens_BQL[:, :, 5:].flatten(), reduction="sum")
    torch.testing.assert_close(part.sum, expected)
    assert part.count == 2 * 3 * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [0, 2])
def test_a_stream_equals_all_at_once(kind: str, window: int) -> None:
    network = model(kind, chunks=6, latent=LatentConfig(width=40, layers=2, heads=2, mlp_dim=64, window=window))
    batch = replace(media(2, 6), **all_valid(2, 6))
    assert batch.audio_valid_BTN is not None
    batch.audio_valid_BTN[0, 2:4] = False
    whole = network.encode(batch)
    state: StreamState | None = None
    pieces = []
    for start, end in ((0, 2), (2, 3), (3, 6)):
        piece, state = network.encode_stream(between(batch, start, end), state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat([p.latents_BTMD for p in pieces], 1), whole.latents_BTMD)
    torch.testing.assert_close(torch.cat([p.combined_BTMD for p in pieces], 1), whole.combined_BTMD)
    if kind == "ttm":
        assert whole.memory_BKD is not None
        torch.testing.assert_close(pieces[-1].memory_BKD, whole.memory_BKD)
    else:
        assert whole.memory_BKD is None


def answers(network: Mirasol, memory: TextKV) -> Tensor:
    words = text()
    return network.text(words.tokens_BQL, words.valid_BQL, memory)


def test_the_text_sees_the_latents_and_the_memory() -> None:
    network = model("ttm")
    encoded = network.encode(media())
    assert encoded.memory_BKD is not None
    before = answers(network, network.text_kv(encoded))
    for changed in (
        replace(encoded, latents_BTMD=encoded.latents_BTMD.flip(1)),
        replace(encoded, memory_BKD=encoded.memory_BKD.flip(0)),
        replace(encoded, memory_BKD=encoded.memory_BKD.flip(1)),  # each of its tokens has a place of its own
    ):
        assert (answers(network, network.text_kv(changed)) - before).abs().amax((1, 2, 3)).min() > 1e-4


def test_hidden_latents_leave_the_memory_alone() -> None:
    """What the latents hold changes nothing for the clip whose latents are hidden, and something for the other."""
    network, hidden = model("ttm"), torch.tensor([True, False])
    encoded = network.encode(media())
    other = replace(encoded, latents_BTMD=torch.randn_like(encoded.latents_BTMD))
    first, second = (answers(network, network.text_kv(each, hidden)) for each in (encoded, other))
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1], atol=1e-4)
    assert encoded.memory_BKD is not None
    alone = network.text.project_kv(encoded.latents_BTMD[:1, :0].flatten(1, 2), None, encoded.memory_BKD[:1])
    words = text(1)
    expected = network.text(words.tokens_BQL, words.valid_BQL, alone)
    torch.testing.assert_close(network.text(text().tokens_BQL, text().valid_BQL, network.text_kv(encoded, hidden))[:1], expected)


def test_a_stretched_clip_has_another_memory_and_as_many_latents() -> None:
    network, batch = model("ttm"), media()
    once, stretched = network.encode(batch), network.encode(batch, chunk_repeats=4)
    assert stretched.latents_BTMD.shape == once.latents_BTMD.shape
    state, memories, combined = None, [], []
    for chunk in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3):
        encoded, state = network.encode_stream(between(batch, chunk, chunk + 1), state)
        memories.append(encoded.memory_BKD)
        combined.append(encoded.combined_BTMD)
    torch.testing.assert_close(stretched.memory_BKD, memories[-1])
    torch.testing.assert_close(stretched.combined_BTMD, torch.cat(combined[3::4], dim=1))
    assert not torch.allclose(stretched.latents_BTMD, once.latents_BTMD, atol=1e-4)


def test_the_loss_of_a_clip_with_hidden_latents_reaches_what_writes_the_memory() -> None:
    network, batch = model("ttm", losses=("text",)), media()
    weights, alone = {"text": 1.0}, TrainingInputs(memory_only_B=torch.tensor([True, True]))
    network(batch, text(), weights, alone).total(weights).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    written = gradients["combiner.machine.write.scores.up.weight"]
    assert written is not None
    assert written.abs().sum() > 0
    latent = gradients["latent.transformer.norm.weight"]
    assert latent is not None
    assert latent.abs().sum() == 0


def test_a_windowed_ttm_stream_keeps_a_state_of_constant_size() -> None:
    network = model("ttm", latent=LatentConfig(width=40, layers=2, heads=2, mlp_dim=64, window=3))

    def size(state: StreamState) -> int:
        assert isinstance(state.combiner, Tensor)
        return state.combiner.numel() + sum(k.numel() + v.numel() for k, v in state.latent.layers) + state.latent.valid_BCN.numel()

    state, sizes = None, []
    with torch.no_grad():
        for step in range(8):
            _, state = network.encode_stream(media(1, 1, seed=step), state)
            sizes.append(size(state))
    assert len(set(sizes[2:])) == 1


@pytest.mark.parametrize("kind", [*KINDS, "gated", "gated, stretched"])
def test_bf16_autocast_stays_close_to_float32(kind: str) -> None:
    changes = {"combiner": combiner_config("ttm", write="gated")} if "gated" in kind else {}
    network = model("ttm" if changes else kind, losses=OBJECTIVES, **changes)
    batch = replace(media(), **all_valid(), flip_B=torch.tensor([True, False]))
    extra = TrainingInputs(masked_BT=torch.tensor([[True, False] * 2] * 2))
    if "stretched" in kind:
        extra = replace(extra, chunk_repeats=3, memory_only_B=torch.tensor([False, True]))
    exact = network(batch, text(), EVERYTHING, extra).total(EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(batch, text(), EVERYTHING, extra).total(EVERYTHING)
    rough.backward()
    assert rough.isfinite()
    assert abs(rough - exact) < 0.05 * exact


@pytest.mark.parametrize("kind", ["transformer", "history", "ttm"])
def test_activation_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    for on in (False, True):
        network = model(kind, losses=OBJECTIVES).train()
        prepare_blocks(network, activation_checkpointing=on, compile=False)
        network(media(), text(), EVERYTHING).total(EVERYTHING).backward()
        gradients.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "history", "ttm"])
def test_encode_compiles_into_one_graph(kind: str) -> None:
    network, batch = model(kind), media()
    compiled = torch.compile(lambda b: network.encode(b).latents_BTMD, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), network.encode(batch).latents_BTMD)


def test_a_flip_changes_the_flipped_clip_only() -> None:
    network = model()
    plain = network.encode(media()).latents_BTMD
    flipped = network.encode(media(flip_B=torch.tensor([False, True]))).latents_BTMD
    torch.testing.assert_close(flipped[0], plain[0])
    assert not torch.allclose(flipped[1], plain[1], atol=1e-3)


def test_two_encoders_when_asked_for() -> None:
    shared = model()
    apart = model(encoder=EncoderConfig(width=24, layers=2, heads=2, mlp_dim=48, share=False))
    names = {name.split(".")[0] for name, _ in apart.named_parameters()}
    assert {"video_encoder", "audio_encoder"} <= names
    assert "encoder" not in names
    count = sum(p.numel() for p in shared.encoder.parameters())
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in shared.parameters()) + count


def test_thumbnail_patches_hold_one_square_through_time() -> None:
    thumbnails = torch.randint(0, 256, (1, 2, 4, 32, 32, 3), dtype=torch.uint8)
    patches = thumbnail_patches(thumbnails)
    assert patches.shape == (1, 2, 16, THUMBNAIL_NUMBERS)
    square = thumbnails[0, 1, :, 8:16, 24:32].float()  # row 1, column 3
    torch.testing.assert_close(patches[0, 1, 7].reshape(4, 8, 8, 3), (square / 255 - 0.5) / 0.25)


def test_reconstruction_looks_at_the_next_chunk_only() -> None:
    """The thumbnails of the first chunk are never a target; those of the last are."""
    network, batch = model(), media()
    weights = {"video": 1.0}
    before = network(batch, None, weights).parts["video"].sum
    for chunk, changes in ((0, False), (3, True)):
        thumbnails = batch.thumbnails.clone()
        thumbnails[:, chunk] = 255 - thumbnails[:, chunk]
        assert bool(network(replace(batch, thumbnails=thumbnails), None, weights).parts["video"].sum != before) == changes


def test_diagnostics_are_there_for_every_batch_with_two_chunks() -> None:
    assert set(model()(media(), text(), WEIGHTS).diagnostics) == {"rank", "cosine", "r2"}
    assert "r2" not in model(chunks=1)(media(2, 1), text(), WEIGHTS).diagnostics


def test_the_text_sees_the_last_valid_chunk_alone() -> None:
    """A clip of two chunks beside one of four: each is told by its own last chunk, whatever the latents before it hold."""
    network, masks = model(text=replace(model_config().text, sees="last")), all_valid()
    masks["chunk_valid_BT"][0, 2:] = False
    encoded = network.encode(media(**masks))
    whole = answers(network, network.text_kv(encoded))
    for clip, last in ((0, 1), (1, 3)):
        for chunk in range(4):
            latents = encoded.latents_BTMD.clone()
            latents[clip, chunk] += 1
            changed = answers(network, network.text_kv(replace(encoded, latents_BTMD=latents)))
            assert torch.equal(changed, whole) == (chunk != last)


def test_a_text_that_sees_the_memory_alone() -> None:
    network = model("ttm", text=replace(model_config().text, sees="memory"))
    encoded = network.encode(media())
    assert encoded.memory_BKD is not None
    before = answers(network, network.text_kv(encoded))
    other = replace(encoded, latents_BTMD=torch.randn_like(encoded.latents_BTMD))
    assert torch.equal(answers(network, network.text_kv(other)), before)
    other = replace(encoded, memory_BKD=encoded.memory_BKD.flip(0))
    assert not torch.allclose(answers(network, network.text_kv(other)), before, atol=1e-4)


@pytest.mark.parametrize("kind", ["transformer", "ttm"])
def test_sees_memory_needs_a_memory_that_is_seen(kind: str) -> None:
    with pytest.raises(FieldError, match=r"text\.sees"):
        model(kind, text=replace(model_config().text, sees="memory", sees_memory=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_takes_away_what_is_carried_from_chunk_to_chunk(kind: str) -> None:
    """Each chunk behaves as a clip of its own, in the part that is cut and in no other."""
    network, batch = model(kind), media()
    whole, own, alone = (network.encode(batch, cut=cut) for cut in (None, "own-chunk", "no-memory"))
    torch.testing.assert_close(own.combined_BTMD, whole.combined_BTMD)
    for t in range(4):
        single = network.encode(between(batch, t, t + 1))
        torch.testing.assert_close(alone.combined_BTMD[:, t], single.combined_BTMD[:, 0])
        latents = network.latent(whole.combined_BTMD[:, t : t + 1])
        torch.testing.assert_close(own.latents_BTMD[:, t], latents[:, 0])
    assert (alone.memory_BKD is None) == (whole.memory_BKD is None)
    carries = kind == "ttm" or "history" in kind
    assert torch.allclose(alone.combined_BTMD, whole.combined_BTMD, atol=1e-5) != carries
    if kind == "ttm":
        torch.testing.assert_close(alone.memory_BKD, single.memory_BKD)
    last = answers(network, network.text_kv(whole, cut="last-chunk"))
    assert not torch.allclose(last, answers(network, network.text_kv(whole)), atol=1e-4)


def test_masked_chunks_are_hidden_from_the_latent_loss_alone() -> None:
    network, batch = model(), media()
    masked = TrainingInputs(masked_BT=torch.tensor([[False, True, False, False]] * 2))
    ours, theirs = network(batch, text(), WEIGHTS).parts, network(batch, text(), WEIGHTS, masked).parts
    for name in ("text", "video"):
        torch.testing.assert_close(ours[name].sum, theirs[name].sum)
    assert ours["latent"].sum != theirs["latent"].sum


def without(batch: MediaBatch, name: str) -> MediaBatch:
    return replace(batch, tubes=None) if name == "video" else replace(batch, mel_BTZS=None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "last" not in kind and kind != "none"])
@pytest.mark.parametrize("name", ["video", "audio"])
def test_a_modality_left_out_is_one_that_is_masked(kind: str, name: str) -> None:
    """Not computed at all by the recipe; in a batch that has none of it, and in one that mixes: the same latents."""
    network, batch, masks = model(kind), media(), all_valid()
    masks[f"{name}_valid_BTN"][:] = False
    expected = network.encode(without(batch, name)).latents_BTMD
    masked = replace(batch, **masks)
    assert masked.hidden.part_of_chunks
    told = masked.with_hidden()
    assert not told.hidden.part_of_chunks
    for each in (masked, told):
        torch.testing.assert_close(network.encode(each).latents_BTMD, expected, atol=1e-5, rtol=1e-5)
    masks[f"{name}_valid_BTN"][1] = True
    mixed = replace(batch, **masks).with_hidden()
    assert mixed.hidden.part_of_chunks
    torch.testing.assert_close(network.encode(mixed).latents_BTMD[0], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_chunks_need_no_mask_in_attention(kind: str) -> None:
    network, masks = model(kind), all_valid()
    masks["video_valid_BTN"][0, 1:3] = masks["audio_valid_BTN"][0, 1:3] = False
    masked = replace(media(), **masks)
    told = masked.with_hidden()
    assert not any((told.hidden.part_of_video, told.hidden.part_of_audio, told.hidden.part_of_chunks))
    torch.testing.assert_close(network.encode(told).latents_BTMD, network.encode(masked).latents_BTMD)


@pytest.mark.parametrize("name", ["video", "audio"])
def test_every_parameter_has_a_gradient_where_a_batch_has_none_of_a_modality(name: str) -> None:
    network, masks = model(losses=OBJECTIVES), all_valid()
    masks[f"{name}_valid_BTN"][:] = False
    batch = replace(media(), **masks).with_hidden()
    network(batch, text(), EVERYTHING).total(EVERYTHING).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
