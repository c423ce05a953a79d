"""The text decoder's invariants: padding, batches, caches, gates, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mirasol_cli.model.config import TextConfig
from mirasol_cli.model.text_decoder import TextDecoder, TextKV
from tests.small_model import of_clip

VOCABULARY, MEMORY_WIDTH = 23, 20
SMALL = TextConfig(width=32, layers=4, heads=4, kv_heads=2, mlp_dim=48, cross_attention_every=2)


def build(**changes: object) -> TextDecoder:
    torch.manual_seed(0)
    return TextDecoder(replace(SMALL, **changes), VOCABULARY, MEMORY_WIDTH).eval()  # type: ignore[arg-type]


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def latents(clips: int = 2, count: int = 6, seed: int = 2) -> Tensor:
    return torch.randn(clips, count, MEMORY_WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cached_steps_equal_the_uncached_pass(kv_heads: int) -> None:
    decoder, text = build(kv_heads=kv_heads), tokens(2, 3, 9)
    text_kv = decoder.project_kv(latents())
    whole = decoder(text, None, text_kv)
    cache = decoder.start_cache(2, 3, 9)
    steps = [decoder.step(text[:, :, :4], cache, text_kv)] + [decoder.step(text[:, :, i : i + 1], cache, text_kv) for i in range(4, 9)]
    torch.testing.assert_close(torch.stack(steps, dim=2), whole[:, :, 3:], atol=1e-5, rtol=1e-5)


def test_cached_steps_of_prompts_of_different_lengths_equal_each_row_alone() -> None:
    decoder, text = build(), tokens(2, 2, 8)
    lengths = torch.tensor([[3, 5], [1, 4]])
    text_kv = decoder.project_kv(latents())
    cache = decoder.start_cache(2, 2, 8)
    valid = torch.arange(5) < lengths[:, :, None]
    found = [decoder.step(text[:, :, :5], cache, text_kv, valid)]
    for offset in range(3):
        following = text.gather(2, (lengths + offset)[:, :, None])
        found.append(decoder.step(following, cache, text_kv))
    for b in range(2):
        for q in range(2):
            alone = decoder(text[b : b + 1, q : q + 1], None, of_clip(text_kv, b))[0, 0]
            first = int(lengths[b, q]) - 1
            torch.testing.assert_close(torch.stack([step[b, q] for step in found]), alone[first : first + 4], atol=1e-5, rtol=1e-5)


def test_a_reordered_cache_goes_on_from_the_rows_it_took() -> None:
    decoder, text = build(), tokens(1, 3, 4)
    lengths = torch.tensor([[4, 2, 3]])
    text_kv = decoder.project_kv(latents(1))
    cache = decoder.start_cache(1, 3, 6)
    decoder.step(text, cache, text_kv, torch.arange(4) < lengths[:, :, None])
    cache.reorder(torch.tensor([1, 1, 0]))
    after = decoder.step(torch.tensor([[[7], [8], [9]]]), cache, text_kv)
    for q, (source, word) in enumerate([(1, 7), (1, 8), (0, 9)]):
        row = torch.cat((text[0, source, : lengths[0, source]], torch.tensor([word])))[None, None]
        torch.testing.assert_close(after[0, q], decoder(row, None, text_kv)[0, 0, -1], atol=1e-5, rtol=1e-5)


def test_a_full_cache_is_refused() -> None:
    decoder = build()
    cache = decoder.start_cache(1, 1, 3)
    decoder.step(tokens(1, 1, 3), cache)
    with pytest.raises(ValueError, match="4 tokens do not fit into a text cache of 3"):
        decoder.step(tokens(1, 1, 1), cache)


def test_a_tree_of_continuations_equals_each_path_and_leaves_the_cache_as_it_was() -> None:
    decoder, prompt = build(), tokens(2, 2, 4)
    lengths = torch.tensor([[4, 2], [3, 4]])
    text_kv = decoder.project_kv(latents())
    cache = decoder.start_cache(2, 2, 12)
    decoder.step(prompt, cache, text_kv, torch.arange(4) < lengths[:, :, None])
    nodes, depth = torch.tensor([5, 6, 7, 8]), torch.tensor([0, 1, 1, 0])  # the paths 5 6, 5 7 and 8
    ancestor = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    for _ in range(2):
        states = decoder.decode_trie(nodes.expand(2, 2, 4), depth.expand(2, 2, 4), ancestor.expand(2, 2, 4, 4), cache, text_kv)
        for b, q, path, node in [(0, 0, [5, 6], 1), (0, 1, [5, 7], 2), (1, 0, [5, 7], 2), (1, 1, [8], 3)]:
            row = torch.cat((prompt[b, q, : lengths[b, q]], torch.tensor(path)))[None, None]
            alone = decoder.hidden(row, None, of_clip(text_kv, b))[0, 0, -1]
            torch.testing.assert_close(states[b, q, node], alone, atol=1e-5, rtol=1e-5)
    after = decoder.step(torch.tensor([[[9], [9]], [[9], [9]]]), cache, text_kv)
    row = torch.cat((prompt[0, 1, :2], torch.tensor([9])))[None, None]
    torch.testing.assert_close(after[0, 1], decoder(row, None, of_clip(text_kv, 0))[0, 0, -1], atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    decoder, text = build(), tokens(2, 2, 5)
    text_kv = decoder.project_kv(latents())
    padded = torch.cat((text, torch.full((2, 2, 3), -100)), dim=2)
    valid = (torch.arange(8) < 5).expand(2, 2, 8)
    torch.testing.assert_close(decoder(padded, valid, text_kv)[:, :, :5], decoder(text, None, text_kv), atol=1e-5, rtol=1e-5)


def test_no_row_sees_the_future_another_row_or_another_clip() -> None:
    decoder, text = build(), tokens(2, 2, 6)
    before = decoder(text, None, decoder.project_kv(latents()))
    changed = text.clone()
    changed[0, 0, 4] = (changed[0, 0, 4] + 1) % VOCABULARY
    after = decoder(changed, None, decoder.project_kv(latents()))
    assert torch.equal(after[0, 0, :4], before[0, 0, :4])
    assert torch.equal(after[0, 1], before[0, 1])
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0, 0, 4:], before[0, 0, 4:], atol=1e-3)
    other = latents()
    other[0] += 1
    after = decoder(text, None, decoder.project_kv(other))
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0], before[0], atol=1e-3)


def test_masked_latents_are_not_seen_and_a_clip_without_any_is_text_alone() -> None:
    decoder, text = build(), tokens(3, 2, 5)
    media = latents(3)
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [False] * 6])
    spoiled = media.masked_fill(~valid[:, :, None], float("nan"))
    logits = decoder(text, None, decoder.project_kv(spoiled, valid))
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:1], decoder(text[:1], None, decoder.project_kv(media[:1])), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[1:2], decoder(text[1:2], None, decoder.project_kv(media[1:2, :4])), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[2:], decoder(text[2:]), atol=1e-5, rtol=1e-5)


def test_a_clip_without_latents_gives_finite_gradients() -> None:
    decoder = build().train()
    media = latents().requires_grad_()
    loss, _ = decoder.target_loss(
        tokens(2, 1, 5), None, torch.ones(2, 1, 5, dtype=torch.bool),
        decoder.project_kv(media, torch.tensor([[True] * 6, [False] * 6])),
    )  # fmt: skip
    loss.backward()
    assert media.grad is not None
    assert media.grad[0].abs().sum() > 0
    assert not media.grad[1].any()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)


def test_the_order_of_the_latents_is_seen() -> None:
    decoder, text = build(), tokens(2, 1, 4)
    media = latents()
    forward = decoder(text, None, decoder.project_kv(media))
    backward = decoder(text, None, decoder.project_kv(media.flip(1)))
    assert (forward - backward).abs().max() > 1e-3


def test_a_closed_gate_is_exactly_the_language_model_and_an_open_one_is_not() -> None:
    text = tokens(2, 2, 5)
    closed, opened = build(cross_attention_gate_init="closed"), build(cross_attention_gate_init="open")
    assert torch.equal(closed(text, None, closed.project_kv(latents())), closed(text))
    assert (opened(text, None, opened.project_kv(latents())) - opened(text)).abs().max() > 1e-2


def test_a_closed_gate_learns() -> None:
    decoder = build(cross_attention_gate_init="closed")
    loss, _ = decoder.target_loss(tokens(2, 1, 5), None, torch.ones(2, 1, 5, dtype=torch.bool), decoder.project_kv(latents()))
    loss.backward()
    assert all(layer.gate.grad.abs() > 0 for layer in decoder.cross_layers)  # type: ignore[union-attr]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_target_loss_is_the_cross_entropy_of_the_targets(tied: bool, smoothing: float) -> None:
    decoder, text = build(tie_embeddings=tied), tokens(2, 2, 7)
    text_kv = decoder.project_kv(latents())
    target = torch.zeros(2, 2, 7, dtype=torch.bool)
    target[0, 0, 3:6] = target[1, 1, 1:3] = True
    valid = torch.ones_like(target)
    valid[0, 0, 6] = False
    loss, count = decoder.target_loss(text, valid, target, text_kv, smoothing)
    logits = decoder(text, valid, text_kv)
    rows = [(0, 0, 3), (0, 0, 4), (0, 0, 5), (1, 1, 1), (1, 1, 2)]
    expected = sum(F.cross_entropy(logits[b, q, i - 1], text[b, q, i], label_smoothing=smoothing) for b, q, i in rows)
    assert int(count) == 5
    torch.testing.assert_close(loss, torch.as_tensor(expected), atol=1e-5, rtol=1e-5)


def test_questions_of_a_clip_give_the_same_gradient_together_and_apart() -> None:
    together, apart = build(), build()
    text, target = tokens(1, 3, 6), torch.zeros(1, 3, 6, dtype=torch.bool)
    target[:, :, 3:] = True
    together.target_loss(text, None, target, together.project_kv(latents(1)))[0].backward()
    for q in range(3):
        part = slice(q, q + 1)
        apart.target_loss(text[:, part], None, target[:, part], apart.project_kv(latents(1)))[0].backward()
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_gets_a_gradient_even_without_a_target(tied: bool) -> None:
    decoder = build(tie_embeddings=tied).train()
    text_kv = decoder.project_kv(latents())
    some = torch.ones(2, 1, 5, dtype=torch.bool)
    for target in (some, ~some):
        decoder.zero_grad()
        loss, count = decoder.target_loss(tokens(2, 1, 5), some, target, text_kv)
        loss.backward(retain_graph=True)
        missing = [name for name, p in decoder.named_parameters() if p.grad is None or (bool(count) and not p.grad.any())]
        assert not missing
    assert loss.item() == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 50.0},
        {"norm_eps": 0.5},
        {"cross_attention_every": 1},
        {"kv_heads": 4},
        {"mlp_dim": 64},
        {"cross_attention_gate_init": "closed"},
        {"tie_embeddings": False},
    ],
)
def test_every_key_changes_the_output(change: dict) -> None:
    decoder, other = build(), build(**change)
    text, media = tokens(1, 1, 5), latents(1)
    assert (decoder(text, None, decoder.project_kv(media)) - other(text, None, other.project_kv(media))).abs().max() > 1e-4


def test_dropout_acts_in_training_only() -> None:
    decoder = build(dropout=0.5)
    text, text_kv = tokens(1, 1, 5), decoder.project_kv(latents(1))
    assert torch.equal(decoder(text, None, text_kv), decoder(text, None, text_kv))
    decoder.train()
    assert not torch.equal(decoder(text, None, text_kv), decoder(text, None, text_kv))


def test_a_clip_without_latents_gets_an_open_mask() -> None:
    """Some attention kernels make NaN of a row in which nothing may be seen."""
    assert TextKV((), ()).mask() == (None, None)
    mask, present = TextKV((), (), torch.tensor([[True, False], [False, False]])).mask()
    assert mask is not None
    assert present is not None
    assert mask[:, 0, 0].tolist() == [[True, False], [True, True]]
    assert present.flatten().tolist() == [True, False]


def test_decoding_projects_the_memory_once() -> None:
    decoder = build()
    calls = []
    for project in decoder.kv_proj.k_proj:
        project.register_forward_hook(lambda *_: calls.append(1))
    text_kv: TextKV = decoder.project_kv(latents())
    cache = decoder.start_cache(2, 2, 6)
    for i in range(6):
        decoder.step(tokens(2, 2, 1, seed=i), cache, text_kv)
    assert len(calls) == len(decoder.cross_layers)


def test_builds_on_the_meta_device_and_after_loading_has_no_hidden_state() -> None:
    with torch.device("meta"):
        hollow = TextDecoder(SMALL, VOCABULARY, MEMORY_WIDTH).eval()
    decoder = build()
    hollow = hollow.to_empty(device="cpu")
    hollow.load_state_dict(decoder.state_dict())
    assert torch.equal(hollow(tokens(1, 1, 4)), decoder(tokens(1, 1, 4)))


def test_bfloat16_autocast_steps_through_a_cache() -> None:
    decoder, text = build(), tokens(2, 1, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text_kv = decoder.project_kv(latents())
        cache = decoder.start_cache(2, 1, 6)
        decoder.step(text[:, :, :5], cache, text_kv)
        last = decoder.step(text[:, :, 5:], cache, text_kv)
        whole = decoder(text, None, text_kv)
    assert cache.keys[0].dtype == torch.bfloat16
    torch.testing.assert_close(last.float(), whole[:, :, -1].float(), atol=0.1, rtol=0.1)


def test_it_learns_which_latent_comes_first_and_which_last() -> None:
    """Only the place of a latent tells the answers apart: this fails without positions on the memory."""
    torch.manual_seed(0)
    decoder = TextDecoder(TextConfig(width=32, layers=1, heads=2, kv_heads=2, mlp_dim=64, cross_attention_every=1), 8, MEMORY_WIDTH)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=5e-3)
    meanings = torch.randn(4, MEMORY_WIDTH)
    right = 0.0
    for _ in range(120):
        answers = torch.randint(0, 4, (32, 6))
        rows = torch.tensor([[4, 0], [5, 0]]).repeat(32, 1, 1)  # two questions: which is first, which is last?
        rows[:, 0, 1], rows[:, 1, 1] = answers[:, 0], answers[:, -1]
        target = torch.tensor([False, True]).expand(32, 2, 2)
        text_kv = decoder.project_kv(meanings[answers])
        right = float((decoder(rows, None, text_kv)[:, :, 0].argmax(-1) == rows[:, :, 1]).float().mean())
        loss, count = decoder.target_loss(rows, None, target, text_kv)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    assert right > 0.95
