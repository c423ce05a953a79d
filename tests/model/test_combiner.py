"""The Combiners: M tokens out of N, masks, causality over chunks, chunk by chunk = at once."""

from __future__ import annotations

import pytest
import torch

from mirasol_cli.fields import FieldError
from mirasol_cli.model.chunk_causal import ChunkTransformer
from mirasol_cli.model.combiner import Combiner, LastValid, TransformerCombiner, build_combiner, group_means
from mirasol_cli.model.layers import join_heads, rotary_table, rotate, split_heads
from tests.small_model import KINDS, combiner_config

VIDEO, AUDIO, M = 7, 4, 4
N = VIDEO + AUDIO


def combiner(kind: str, **changes) -> Combiner:
    torch.manual_seed(0)
    result = build_combiner(combiner_config(kind, **changes), 24, (VIDEO, AUDIO)).eval()
    with torch.no_grad():
        for parameter in result.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return result


def tokens(clips: int = 2, chunks: int = 5, seed: int = 3) -> torch.Tensor:
    return torch.randn(clips, chunks, N, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_m_tokens_leave_a_chunk(kind: str) -> None:
    out, _ = combiner(kind)(tokens())
    assert out.shape == (2, 5, N if kind == "none" else M, 32)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_more_outputs_than_tokens_are_refused_with_the_numbers(kind: str) -> None:
    with pytest.raises(FieldError, match=r"M = 12 .* N = 11"):
        combiner(kind, num_outputs=12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_is_an_open_mask(kind: str) -> None:
    model, x = combiner(kind), tokens()
    torch.testing.assert_close(model(x)[0], model(x, torch.ones(2, 5, N, dtype=torch.bool))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block_tokens", [1, 22, 256])
def test_chunk_by_chunk_equals_at_once(kind: str, masked: bool, block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirasol_cli.model.chunk_causal.BLOCK_TOKENS", block_tokens)
    model, x = combiner(kind), tokens(chunks=6)
    valid = torch.rand(2, 6, N, generator=torch.Generator().manual_seed(1)) > 0.5
    valid[0, 2] = False
    whole, _ = model(x, valid if masked else None)
    state, pieces = None, []
    for start, end in ((0, 1), (1, 4), (4, 6)):
        out, state = model(x[:, start:end], valid[:, start:end] if masked else None, state)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_tokens_change_nothing_and_empty_chunks_are_finite(kind: str) -> None:
    model, x = combiner(kind), tokens()
    valid = torch.rand(2, 5, N, generator=torch.Generator().manual_seed(2)) > 0.4
    valid[0, 1] = False
    valid[1] = False
    out, _ = model(x, valid)
    changed = torch.where(valid[..., None], x, 7.0 * tokens(seed=9))
    torch.testing.assert_close(model(changed, valid)[0], out)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_without_masks(kind: str) -> None:
    model = combiner(kind)
    model(tokens())[0].square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_which_chunks_a_chunk_depends_on(kind: str) -> None:
    """Changing chunk 2 changes it, never an earlier one, and later ones only where there is memory."""
    model, x = combiner(kind), tokens()
    other = x.clone()
    other[0, 2] += 1
    difference = (model(x)[0] - model(other)[0]).abs().amax((2, 3))
    assert (difference[1] == 0).all()
    assert (difference[0, :2] == 0).all()
    assert difference[0, 2] > 1e-4
    assert bool((difference[0, 3:] > 1e-6).all()) == ("history" in kind or kind == "ttm")


def test_the_last_m_valid_outputs_are_kept_in_order_and_filled_up() -> None:
    valid = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    last = LastValid(valid, 3)
    x = torch.arange(6.0).expand(3, 6)[..., None]
    filler = torch.tensor([[-1.0], [-2.0], [-3.0]])
    assert last.fill(last.pick(x), filler)[..., 0].tolist() == [[1, 3, 4], [-1, 1, 4], [-1, -2, -3]]


@pytest.mark.parametrize("kind", ["transformer", "last"])
def test_keeping_m_queries_in_the_last_block_is_exact(kind: str) -> None:
    """Against the plain reading: all tokens through every block, then the last M."""
    model, x = combiner(kind), tokens()
    assert isinstance(model, TransformerCombiner)
    y = model.input_proj(x).flatten(0, 1)
    if kind == "transformer":
        means, _ = group_means(y.unflatten(0, (2, 5)), None, M, (VIDEO, AUDIO))
        y = torch.cat([y, means.flatten(0, 1) + model.output.tokens], dim=1)
    for block in model.blocks:
        y = block(y)
    torch.testing.assert_close(model(x)[0], model.norm(y)[:, -M:].unflatten(0, (2, 5)))


@pytest.mark.parametrize("block_tokens", [1, 6, 256])
def test_history_equals_a_dense_block_causal_mask(block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirasol_cli.model.chunk_causal.BLOCK_TOKENS", block_tokens)
    torch.manual_seed(0)
    stack, x = ChunkTransformer(16, 2, 32, 1).eval(), torch.randn(2, 4, 3, 16)
    block = stack.blocks[0]
    chunk = torch.arange(12) // 3
    dense = (chunk[:, None] >= chunk[None, :])[None, None]
    cosines, sines = rotary_table(chunk, 8)
    flat = x.flatten(1, 2)
    normed = block.norm1(flat)
    key, value = block.attention.key_value(normed).chunk(2, dim=-1)
    q, k, v = (split_heads(part, 2) for part in (block.attention.query(normed), key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(rotate(q, cosines, sines), rotate(k, cosines, sines), v, attn_mask=dense)
    expected = stack.norm(block.after_attention(flat, block.attention.out(join_heads(mixed))))
    torch.testing.assert_close(stack(x), expected.unflatten(1, (4, 3)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("none", "last", "history, last")])
def test_a_clip_without_audio_gives_the_outputs_of_video_tokens_alone(kind: str) -> None:
    """Beside a clip that has audio, and whatever the masked tokens hold."""
    model, x = combiner(kind), tokens()
    valid = torch.ones(2, 5, N, dtype=torch.bool)
    valid[0, :, VIDEO:] = False
    torch.testing.assert_close(model(x, valid)[0][0], model(x[:1, :, :VIDEO])[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x, ~valid)[0][0], model(x[:1, :, VIDEO:])[0][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["last", "history, last"])
def test_a_modality_of_fewer_than_m_tokens_is_filled_up(kind: str) -> None:
    """M = 6 outputs of 4 audio tokens: as where the video is there and masked."""
    model, x = combiner(kind, num_outputs=6), tokens()
    valid = torch.ones(2, 5, N, dtype=torch.bool)
    valid[:, :, :VIDEO] = False
    torch.testing.assert_close(model(x[:, :, VIDEO:])[0], model(x, valid)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_that_are_whole_or_absent_need_no_mask(kind: str) -> None:
    model, x = combiner(kind), tokens()
    valid = torch.ones(2, 5, N, dtype=torch.bool)
    valid[0, 2] = valid[1, 4] = False
    torch.testing.assert_close(model(x, valid, whole_chunks=True)[0], model(x, valid)[0])


def test_mean_groups_are_means_of_neighbours_in_both_modalities() -> None:
    model, x = combiner("mean", width=24), tokens()
    video, audio = ([[0, 1], [2, 3], [4, 5], [6]], [[7], [8], [9], [10]])
    means = [torch.stack([x[:, :, group].mean(2) for group in groups], dim=2) for groups in (video, audio)]
    expected = (7 / 11) ** 0.5 * means[0] + (4 / 11) ** 0.5 * means[1]
    torch.testing.assert_close(model(x)[0], model.norm(expected))
