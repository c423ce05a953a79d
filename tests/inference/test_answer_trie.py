"""Likelihoods of candidates against one uncached pass per candidate."""

from __future__ import annotations

import math

import pytest
import torch

from mirasol_cli.inference.answer_trie import build_tries
from mirasol_cli.inference.decoding import score_candidates
from mirasol_cli.model.config import TextConfig
from mirasol_cli.model.text_decoder import TextDecoder, TextKV
from tests.small_model import of_clip

EOS, VOCABULARY, MEMORY_WIDTH = 0, 9, 10
PROMPTS = [[[3, 1, 4], [1]], [[5, 2, 6, 5, 3]]]
CLASSES = [[1, 2, 3], [1, 2], [4], [1, 2, 3, 5], [], [4, 4, 4], [1, 2], [7, 8]]


def build() -> TextDecoder:
    torch.manual_seed(0)
    decoder = TextDecoder(
        TextConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_dim=24, cross_attention_every=1), VOCABULARY, MEMORY_WIDTH
    ).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
    return decoder


def remember(decoder: TextDecoder) -> TextKV:
    media = torch.randn(2, 5, MEMORY_WIDTH, generator=torch.Generator().manual_seed(7))
    return decoder.project_kv(media, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))


def alone(decoder: TextDecoder, text_kv: TextKV, clip: int, prompt: list[int], answer: list[int]) -> float:
    ids = [*prompt, *answer, EOS]
    row = decoder(torch.tensor([[ids]]), None, of_clip(text_kv, clip))[0, 0].detach().double().log_softmax(dim=-1)
    return sum(float(row[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))


@pytest.mark.parametrize("nodes", [1, 4, 512])
def test_scores_equal_those_of_each_candidate_alone(nodes: int) -> None:
    decoder = build()
    text_kv = remember(decoder)
    candidates = [[CLASSES, [[6], [5, 6], [5, 7]]], [CLASSES]]
    found = score_candidates(decoder, text_kv, PROMPTS, candidates, EOS, nodes=nodes)
    assert len({round(score, 3) for score in found[0][0]}) == 7
    for clip, row in enumerate(PROMPTS):
        for question, prompt in enumerate(row):
            options = candidates[clip][question]
            expected = [alone(decoder, text_kv, clip, prompt, ids) for ids in options]
            assert found[clip][question] == pytest.approx(expected, abs=1e-4)


def test_all_short_answers_together_are_certain() -> None:
    """Answers of at most one word and all beginnings of longer ones: the probabilities add up to one."""
    decoder = build()
    text_kv = remember(decoder)
    words = [token for token in range(VOCABULARY) if token != EOS]
    short = [[], *([word] for word in words), *([a, b] for a in words for b in words)]
    scores = score_candidates(decoder, text_kv, [[[3, 1]], []], [[short], []], EOS)[0][0]
    logits = decoder(torch.tensor([[[3, 1, a, b] for a in words for b in words]]), None, of_clip(text_kv, 0))[0].detach()
    row = logits.double().log_softmax(dim=-1)
    a, b = torch.tensor([[a, b] for a in words for b in words]).T
    index = torch.arange(len(a))
    begun = (row[index, 1, a] + row[index, 2, b]).exp()
    longer = float((begun * (1 - row[index, 3, EOS].exp())).sum())
    assert sum(map(math.exp, scores)) + longer == pytest.approx(1.0, abs=1e-4)


def test_a_tree_shares_beginnings_and_keeps_to_its_size() -> None:
    (trie,) = build_tries(CLASSES, EOS, 512)
    assert len(trie.token) == 9  # 1 2 3 5 | 4 4 4 | 7 8
    assert trie.last[()] == -1
    small = build_tries(CLASSES, EOS, 4)
    assert all(len(part.token) <= 4 for part in small)
    assert sorted(ids for part in small for ids in part.last) == sorted({tuple(ids) for ids in CLASSES})


def test_no_candidates_and_no_questions() -> None:
    decoder = build()
    text_kv = remember(decoder)
    assert score_candidates(decoder, text_kv, [[], []], [[], []], EOS) == [[], []]
    assert score_candidates(decoder, text_kv, [[[3]], [[4]]], [[[]], [[[1]]]], EOS)[0] == [[]]
    only_end = score_candidates(decoder, text_kv, [[[3]], []], [[[[]]], []], EOS)
    assert only_end[0][0] == pytest.approx([alone(decoder, text_kv, 0, [3], [])], abs=1e-4)


def test_a_candidate_with_the_end_token_is_refused() -> None:
    decoder = build()
    with pytest.raises(ValueError, match="holds the end token 0"):
        score_candidates(decoder, remember(decoder), [[[3]], []], [[[[1, EOS]]], []], EOS)
