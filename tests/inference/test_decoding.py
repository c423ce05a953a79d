"""Decoding against straight-line references: teacher forcing, brute force, one candidate at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from mirasol_cli.inference.decoding import Decoded, beam, greedy, sample, stream_greedy
from mirasol_cli.model.config import TextConfig
from mirasol_cli.model.text_decoder import TextDecoder, TextKV
from tests.small_model import of_clip

EOS, MEMORY_WIDTH = 0, 10
SMALL = TextConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_dim=24, cross_attention_every=1)
PROMPTS = [[[3, 1, 4], [1]], [[5, 2, 6, 5, 3]], [[2, 2], [4, 4, 4, 4], [1, 6]]]


def build(vocabulary: int = 8, seed: int = 0) -> TextDecoder:
    """A decoder that is sure of itself, so that a wrong mask or position changes its words."""
    torch.manual_seed(seed)
    decoder = TextDecoder(SMALL, vocabulary, MEMORY_WIDTH).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
    return decoder


def remember(decoder: TextDecoder, clips: int) -> TextKV:
    media = torch.randn(clips, 5, MEMORY_WIDTH, generator=torch.Generator().manual_seed(7))
    valid = torch.ones(clips, 5, dtype=torch.bool)
    valid[-1, 3:] = False
    return decoder.project_kv(media, valid)


def logprobs(decoder: TextDecoder, text_kv: TextKV, clip: int, ids: list[int]) -> Tensor:
    """[len(ids), V] by one uncached pass over the row alone."""
    logits = decoder(torch.tensor([[ids]]), None, of_clip(text_kv, clip))
    return logits[0, 0].float().log_softmax(dim=-1).detach()


def uncached_greedy(decoder: TextDecoder, text_kv: TextKV, clip: int, prompt: list[int], max_tokens: int) -> Decoded:
    ids: list[int] = []
    total = 0.0
    for _ in range(max_tokens):
        row = logprobs(decoder, text_kv, clip, prompt + ids)[-1]
        token = int(row.argmax())
        total += float(row[token])
        if token == EOS:
            break
        ids.append(token)
    return Decoded(ids, total)


def likelihood(decoder: TextDecoder, text_kv: TextKV, clip: int, prompt: list[int], answer: list[int]) -> float:
    row = logprobs(decoder, text_kv, clip, prompt + answer)
    return sum(float(row[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("seed", range(4))
def test_greedy_in_a_batch_equals_uncached_greedy_alone(seed: int) -> None:
    decoder = build(seed=seed)
    text_kv = remember(decoder, 3)
    found = greedy(decoder, text_kv, PROMPTS, EOS, 9)
    assert [len(row) for row in found] == [2, 1, 3]
    for clip, row in enumerate(PROMPTS):
        for question, prompt in enumerate(row):
            expected = uncached_greedy(decoder, text_kv, clip, prompt, 9)
            assert found[clip][question].ids == expected.ids
            assert found[clip][question].logprob == pytest.approx(expected.logprob, abs=1e-4)
            alone = greedy(decoder, of_clip(text_kv, clip), [[prompt]], EOS, 9)[0][0]
            assert alone.ids == expected.ids


def test_greedy_answers_differ_between_rows_and_some_end() -> None:
    """Otherwise the test above would show little."""
    answers = []
    for seed in range(4):
        decoder = build(seed=seed)
        answers += [tuple(a.ids) for row in greedy(decoder, remember(decoder, 3), PROMPTS, EOS, 9) for a in row]
    assert len(set(answers)) > 6
    assert {len(ids) == 9 for ids in answers} == {True, False}


def test_greedy_equals_teacher_forcing_of_its_own_answer() -> None:
    decoder = build()
    text_kv = remember(decoder, 3)
    for clip, row in enumerate(greedy(decoder, text_kv, PROMPTS, EOS, 9)):
        for prompt, answer in zip(PROMPTS[clip], row, strict=True):
            forced = logprobs(decoder, text_kv, clip, prompt + answer.ids)[len(prompt) - 1 :].argmax(dim=-1).tolist()
            assert forced[: len(answer.ids)] == answer.ids
            assert len(answer.ids) == 9 or forced[-1] == EOS


def test_two_runs_give_the_same_bits() -> None:
    decoder = build()
    text_kv = remember(decoder, 3)
    assert greedy(decoder, text_kv, PROMPTS, EOS, 9) == greedy(decoder, text_kv, PROMPTS, EOS, 9)


def test_a_stream_ends_with_the_greedy_answer() -> None:
    decoder = build()
    text_kv = remember(decoder, 3)
    for clip, prompts in enumerate(PROMPTS):
        for prompt, expected in zip(prompts, greedy(decoder, text_kv, PROMPTS, EOS, 9)[clip], strict=True):
            *early, last = stream_greedy(decoder, of_clip(text_kv, clip), prompt, EOS, 9)
            assert last.ids == expected.ids
            assert last.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert [item.ids for item in early] == [expected.ids[: i + 1] for i in range(len(early))]


def test_clips_without_questions_and_no_room_for_an_answer() -> None:
    decoder = build()
    text_kv = remember(decoder, 2)
    assert greedy(decoder, text_kv, [[], [[3, 1]]], EOS, 4)[0] == []
    assert greedy(decoder, text_kv, [[], []], EOS, 4) == [[], []]
    assert greedy(decoder, text_kv, [[[3]], [[4]]], EOS, 0) == [[Decoded([], 0.0)], [Decoded([], 0.0)]]
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        greedy(decoder, text_kv, [[[]], [[1]]], EOS, 4)


def every_answer(vocabulary: int, max_tokens: int) -> list[list[int]]:
    """All answers with their end token, and all that are cut off."""
    words = [token for token in range(vocabulary) if token != EOS]
    ended = [[*ids, EOS] for count in range(max_tokens) for ids in product(words, repeat=count)]
    return ended + [list(ids) for ids in product(words, repeat=max_tokens)]


@pytest.mark.parametrize("length_power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_what_brute_force_finds(seed: int, length_power: float) -> None:
    decoder, max_tokens = build(vocabulary=4, seed=seed), 3
    prompts = [[[3, 1], [2]], [[1, 1, 2]]]
    text_kv = remember(decoder, 2)
    found = beam(decoder, text_kv, prompts, EOS, max_tokens, beams=27, length_power=length_power)
    for clip, row in enumerate(prompts):
        for question, prompt in enumerate(row):
            answers = every_answer(4, max_tokens)
            scored = [(likelihood(decoder, text_kv, clip, prompt, ids) / len(ids) ** length_power, ids) for ids in answers]
            expected = sorted(scored, key=lambda entry: -entry[0])[:5]
            for (_, ids), answer in zip(expected, found[clip][question], strict=False):
                assert answer.ids == [token for token in ids if token != EOS]
                assert answer.logprob == pytest.approx(likelihood(decoder, text_kv, clip, prompt, ids), abs=1e-4)


def plain_beam(decoder: TextDecoder, text_kv: TextKV, clip: int, prompt: list[int], beams: int, max_tokens: int) -> list[list[int]]:
    """The textbook's search over one row, uncached and without stopping early: ends are set aside, `beams` others go on."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for _ in range(max_tokens):
        grown = []
        for total, ids in alive:
            row = logprobs(decoder, text_kv, clip, prompt + ids)[-1]
            ended.append(((total + float(row[EOS])) / (len(ids) + 1), ids))
            grown += [(total + float(row[token]), [*ids, token]) for token in range(len(row)) if token != EOS]
        alive = sorted(grown, key=lambda entry: -entry[0])[:beams]
    ended += [(total / max_tokens, ids) for total, ids in alive]
    return [ids for _, ids in sorted(ended, key=lambda entry: -entry[0])[:beams]]


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_narrow_beams_equal_the_textbooks(seed: int, beams: int) -> None:
    decoder = build(seed=seed)
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(0.25)  # less sure, so that ends compete with words
    text_kv = remember(decoder, 3)
    found = beam(decoder, text_kv, PROMPTS, EOS, 4, beams=beams)
    for clip, row in enumerate(PROMPTS):
        for question, prompt in enumerate(row):
            expected = plain_beam(decoder, text_kv, clip, prompt, beams, 4)
            assert found[clip][question][0].ids == expected[0]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_beams_in_a_batch_equal_beams_alone_and_never_repeat_an_answer(beams: int) -> None:
    decoder = build()
    text_kv = remember(decoder, 3)
    found = beam(decoder, text_kv, PROMPTS, EOS, 6, beams=beams)
    for clip, row in enumerate(PROMPTS):
        for question, prompt in enumerate(row):
            answers = found[clip][question]
            assert 1 <= len(answers) <= beams
            assert len({tuple(a.ids) for a in answers}) == len(answers)
            alone = beam(decoder, of_clip(text_kv, clip), [[prompt]], EOS, 6, beams=beams)[0][0]
            assert [a.ids for a in alone] == [a.ids for a in answers]


def test_one_beam_is_greedy() -> None:
    decoder = build(seed=1)
    text_kv = remember(decoder, 3)
    best = [[answers[0].ids for answers in row] for row in beam(decoder, text_kv, PROMPTS, EOS, 9, beams=1, length_power=0.0)]
    assert best == [[answer.ids for answer in row] for row in greedy(decoder, text_kv, PROMPTS, EOS, 9)]


def test_sampling_follows_the_model_and_its_seed() -> None:
    decoder = build(vocabulary=4)
    text_kv = remember(decoder, 1)
    prompts = [[[3, 1]] * 400]
    seeds = [list(range(400))]
    found = sample(decoder, text_kv, prompts, EOS, 1, seeds=seeds)[0]
    assert found == sample(decoder, text_kv, prompts, EOS, 1, seeds=seeds)[0]
    expected = logprobs(decoder, text_kv, 0, [3, 1])[-1].exp()
    words = [answer.ids[0] if answer.ids else EOS for answer in found]
    share = torch.bincount(torch.tensor(words), minlength=4) / 400
    assert (share - expected).abs().max() < 0.08
    assert found[0].logprob == pytest.approx(float(expected.log()[words[0]]), abs=1e-4)
    few = sample(decoder, text_kv, [[[3, 1]] * 3], EOS, 5, seeds=[[5, 6, 7]])[0]
    assert [answer.ids for answer in few] == [sample(decoder, text_kv, [[[3, 1]]], EOS, 5, seeds=[[seed]])[0][0].ids for seed in (5, 6, 7)]


def test_temperature_and_nucleus() -> None:
    decoder = build(seed=2)
    text_kv = remember(decoder, 3)
    seeds = [[1, 2], [3], [4, 5, 6]]
    certain = [[answer.ids for answer in row] for row in greedy(decoder, text_kv, PROMPTS, EOS, 6)]
    for options in ({"temperature": 1e-4}, {"top_p": 1e-6}):
        assert [[answer.ids for answer in row] for row in sample(decoder, text_kv, PROMPTS, EOS, 6, seeds=seeds, **options)] == certain
    assert [[a.ids for a in row] for row in sample(decoder, text_kv, PROMPTS, EOS, 6, seeds=seeds, temperature=5.0)] != certain
    row = logprobs(decoder, text_kv, 0, [3, 1, 4])[-1].exp().sort(descending=True)
    allowed = set(row.indices[: int((row.values.cumsum(0) < 0.9).sum()) + 1].tolist())
    words = sample(decoder, of_clip(text_kv, 0), [[[3, 1, 4]] * 300], EOS, 1, seeds=[list(range(300))], top_p=0.9, temperature=1.0)
    assert {answer.ids[0] if answer.ids else EOS for answer in words[0]} == allowed
    for wrong in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(ValueError, match="temperature"):
            sample(decoder, text_kv, PROMPTS, EOS, 6, seeds=seeds, **wrong)


def test_the_memory_is_heard() -> None:
    decoder = build()
    prompts = [[[3, 1, 4]]]
    answers = {tuple(greedy(decoder, decoder.project_kv(3 * torch.randn(1, 5, MEMORY_WIDTH)), prompts, EOS, 6)[0][0].ids) for _ in range(8)}
    assert len(answers) > 1


def test_untied_and_ungrouped_decoders_decode_too() -> None:
    torch.manual_seed(3)
    decoder = TextDecoder(replace(SMALL, tie_embeddings=False, kv_heads=2), 8, MEMORY_WIDTH).eval()
    text_kv = remember(decoder, 3)
    found = greedy(decoder, text_kv, PROMPTS, EOS, 5)
    assert found[2][1].ids == uncached_greedy(decoder, text_kv, 2, PROMPTS[2][1], 5).ids
