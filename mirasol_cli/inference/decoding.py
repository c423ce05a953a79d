"""Text out of a `TextDecoder`: greedy, streamed, sampled, beam search, and the likelihoods of given answers.

Prompts are nested as the text is: `prompts[b][q]` holds the ids of question q of clip b. Clips may have different
numbers of questions and prompts different lengths; every row is decoded as if it were alone. `text_kv` holds the
cross-attention's keys and values, projected once per clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mirasol_cli.inference.answer_trie import Candidates, Trie, build_tries, likelihoods, pad_tries
from mirasol_cli.model.kv_cache import TextCache
from mirasol_cli.model.text_decoder import TextDecoder, TextKV

Prompts = list[list[list[int]]]
NODES = 512
"""Tokens of one prompt's candidates that are scored at once; bounds memory."""


class Decoded(NamedTuple):
    """One answer: its ids without the end token, and the natural log-probability of all that was decided (the end included)."""

    ids: list[int]
    logprob: float


@torch.inference_mode()
def greedy(decoder: TextDecoder, text_kv: TextKV | None, prompts: Prompts, eos: int, max_tokens: int) -> list[list[Decoded]]:
    """The most probable next token, until `eos` or `max_tokens` tokens (then without an end)."""
    return _generate(decoder, text_kv, prompts, eos, max_tokens, lambda logprob_RV: logprob_RV.argmax(dim=-1))


@torch.inference_mode()
def sample(
    decoder: TextDecoder,
    text_kv: TextKV | None,
    prompts: Prompts,
    eos: int,
    max_tokens: int,
    *,
    seeds: list[list[int]],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[Decoded]]:
    """Random answers. `logprob` is the model's own, before temperature and nucleus.

    Args:
        seeds: one per prompt. Each row draws from its own generator on the CPU, so that its answer depends neither
            on the rest of the batch nor on the device.
        temperature: above 0; divides the logits.
        top_p: in (0, 1]; only the fewest most probable tokens that hold this much probability are drawn from.
    """
    if temperature <= 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be above 0 and top_p {top_p} in (0, 1]")
    widest = max(map(len, prompts))
    generators = [torch.Generator().manual_seed(seeds[b][q] if q < len(row) else 0) for b, row in enumerate(prompts) for q in range(widest)]

    def draw(logprob_RV: Tensor) -> Tensor:
        uniform_R1 = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
        sorted_RV, order_RV = (logprob_RV.double() / temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before_RV = sorted_RV.cumsum(dim=-1) - sorted_RV
        nucleus_RV = sorted_RV.masked_fill(before_RV >= top_p, 0.0)
        total_RV = nucleus_RV.cumsum(dim=-1)
        rank_R1 = torch.searchsorted(total_RV, uniform_R1.to(total_RV.device) * total_RV[:, -1:], right=True)
        return order_RV.gather(1, rank_R1.clamp(max=order_RV.shape[1] - 1)).squeeze(1)

    return _generate(decoder, text_kv, prompts, eos, max_tokens, draw)


@torch.inference_mode()
def beam(
    decoder: TextDecoder,
    text_kv: TextKV | None,
    prompts: Prompts,
    eos: int,
    max_tokens: int,
    *,
    beams: int = 4,
    length_power: float = 1.0,
) -> list[list[list[Decoded]]]:
    """Beam search; for every prompt its best answers, at most `beams`, best first.

    An answer is ranked by log-probability / tokens ** length_power, its end token counted; one cut off at `max_tokens`
    is ranked likewise. The beams of a clip are further rows of its questions: cross-attention copies nothing for them.
    """
    if not any(prompts) or max_tokens < 1:
        return [[[] for _ in row] for row in prompts]
    clips, widest = len(prompts), max(map(len, prompts))
    rows = clips * widest
    cache, logits_BQV = _read_prompts(decoder, text_kv, prompts, max_tokens)
    cache = cache.repeat(beams)
    device, vocabulary = logits_BQV.device, logits_BQV.shape[2]
    step_RKV = logits_BQV.view(rows, 1, vocabulary).expand(-1, beams, -1).float().log_softmax(dim=-1)
    # All beams of a prompt start equal: only the first is scored, or every answer would be found `beams` times.
    score_RK = torch.full((rows, beams), -torch.inf, device=device)
    score_RK[:, 0] = 0.0
    ids: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in range(rows)]
    asked = [q < len(row) for row in prompts for q in range(widest)]
    ended: list[list[tuple[float, Decoded]]] = [[] for _ in range(rows)]
    open_rows = {number for number, real in enumerate(asked) if real}

    for length in range(1, max_tokens + 1):
        total_RC = (score_RK[:, :, None] + step_RKV).flatten(1)
        # Of twice as many candidates at most half can be ends (one per beam), so `beams` of them always go on.
        best_RC, index_RC = total_RC.topk(min(2 * beams, total_RC.shape[1]), dim=1)
        candidates = zip(best_RC.tolist(), index_RC.tolist(), strict=True)
        source, token, score = [], [], []
        for row, (totals, indices) in enumerate(candidates):
            alive: list[tuple[int, int, float]] = []
            for total, index in zip(totals, indices, strict=True):
                parent, word = divmod(index, vocabulary)
                if total == -torch.inf:
                    continue
                if word == eos:
                    ended[row].append((total / length**length_power, Decoded(ids[row][parent], total)))
                elif len(alive) < beams:
                    alive.append((parent, word, total))
            ended[row] = sorted(ended[row], key=lambda entry: -entry[0])[:beams]
            if not alive or _beam_done(ended[row], alive[0][2], length, max_tokens, beams, length_power):
                open_rows.discard(row)
            padded = alive + [(0, eos, -torch.inf)] * (beams - len(alive))
            ids[row] = [ids[row][parent] + [word] for parent, word, _ in padded]
            source += [row * beams + parent for parent, _, _ in padded]
            token += [word for _, word, _ in padded]
            score += [total for _, _, total in padded]
            if length == max_tokens and row in open_rows:
                ended[row] += [(total / length**length_power, Decoded(ids[row][k], total)) for k, (_, _, total) in enumerate(alive)]
        if not open_rows or length == max_tokens:
            break
        cache.reorder(torch.tensor(source, device=device))
        score_RK = torch.tensor(score, device=device).view(rows, beams)
        step_BQV = decoder.step(torch.tensor(token, device=device).view(clips, widest * beams, 1), cache, text_kv)
        step_RKV = step_BQV.view(rows, beams, vocabulary).float().log_softmax(dim=-1)

    best = [[answer for _, answer in sorted(found, key=lambda entry: -entry[0])[:beams]] for found in ended]
    return [[best[b * widest + q] for q in range(len(row))] for b, row in enumerate(prompts)]


def _beam_done(
    ended: list[tuple[float, Decoded]], best_alive: float, length: int, max_tokens: int, beams: int, length_power: float
) -> bool:
    """Whether no unfinished answer can still enter the `beams` best: more tokens never raise a log-probability."""
    if len(ended) < beams:
        return False
    reach = max(best_alive / tokens**length_power for tokens in (length + 1, max_tokens))
    return reach <= ended[-1][0]


@torch.inference_mode()
def stream_greedy(decoder: TextDecoder, text_kv: TextKV | None, prompt: list[int], eos: int, max_tokens: int) -> Iterator[Decoded]:
    """Greedy decoding of one prompt about one clip, token by token.

    Yields after every token the ids so far and their log-probability; the last item is what `greedy` returns.
    """
    if max_tokens < 1:
        yield Decoded([], 0.0)
        return
    cache, logits_11V = _read_prompts(decoder, text_kv, [[prompt]], max_tokens)
    ids: list[int] = []
    total = 0.0
    for count in range(1, max_tokens + 1):
        logprob_V = logits_11V[0, 0].float().log_softmax(dim=-1)
        token = int(logprob_V.argmax())
        total += float(logprob_V[token])
        if token != eos:
            ids.append(token)
        yield Decoded(list(ids), total)
        if token == eos or count == max_tokens:
            return
        logits_11V = decoder.step(torch.tensor([[[token]]], device=logits_11V.device), cache, text_kv)


@torch.inference_mode()
def score_candidates(
    decoder: TextDecoder,
    text_kv: TextKV | None,
    prompts: Prompts,
    candidates: Sequence[Sequence[Candidates]],
    eos: int,
    *,
    nodes: int = NODES,
) -> list[list[list[float]]]:
    """Natural log-likelihood of every candidate, its end token included, in the order given.

    The prompt is read once; what its candidates have in common is computed once (`candidates.py`).

    Args:
        prompts: `prompts[b][q]`, ids of question q of clip b.
        candidates: `candidates[b][q]`, ids of each possible answer without the end token.
        nodes: most tokens of one prompt that are scored at once; changes memory, not the result.

    Raises:
        ValueError: a candidate holds the end token, or a prompt is empty.
    """
    if not any(prompts):
        return [[] for _ in prompts]
    built: dict[int, list[Trie]] = {}  # rows that share one list of candidates share its trees
    for options in (options for row in candidates for options in row):
        if id(options) not in built:
            built[id(options)] = build_tries(options, eos, nodes)
    all_tries = [[built[id(options)] for options in row] for row in candidates]
    largest = max((len(trie.token) for tries in built.values() for trie in tries), default=0) or 1
    cache, logits_BQV = _read_prompts(decoder, text_kv, prompts, largest)
    first_BQV = logits_BQV.float().log_softmax(dim=-1)
    found: list[list[dict[tuple[int, ...], float]]] = [[{} for _ in row] for row in prompts]

    for turn in range(max((len(tries) for tries in built.values()), default=0)):
        now = [[tries[turn] if turn < len(tries) else None for tries in row] for row in all_tries]
        tokens_BQN, depth_BQN, ancestor_BQNN = (part.to(logits_BQV.device) for part in pad_tries(now, logits_BQV.shape[1]))
        hidden_BQND = decoder.decode_trie(tokens_BQN, depth_BQN, ancestor_BQNN, cache, text_kv)
        for b, row in enumerate(now):
            for q, trie in enumerate(row):
                if trie is not None:
                    logprob_NV = decoder.logits(hidden_BQND[b, q, : len(trie.token)]).float().log_softmax(dim=-1)
                    found[b][q] |= likelihoods(trie, logprob_NV, first_BQV[b, q], ancestor_BQNN[b, q], eos)
    return [
        [[scores[tuple(ids)] for ids in options] for scores, options in zip(*row, strict=True)]
        for row in zip(found, candidates, strict=True)
    ]


def _read_prompts(decoder: TextDecoder, text_kv: TextKV | None, prompts: Prompts, room: int) -> tuple[TextCache, Tensor]:
    """Put all prompts into a cache with `room` tokens to spare; returns it with the logits [B, Q, V] that follow them."""
    if any(not ids for row in prompts for ids in row):
        raise ValueError("a prompt has no tokens; give it at least its start token")
    widest = max(map(len, prompts))
    longest = max(len(ids) for row in prompts for ids in row)
    tokens = torch.zeros(len(prompts), widest, longest, dtype=torch.int64)
    valid = torch.zeros_like(tokens, dtype=torch.bool)
    valid[:, :, 0] = True  # a row that only pads a clip with fewer questions reads one token, so that it has logits too
    for b, row in enumerate(prompts):
        for q, ids in enumerate(row):
            tokens[b, q, : len(ids)] = torch.tensor(ids)
            valid[b, q, : len(ids)] = True
    device = decoder.embed_tokens.weight.device
    cache = decoder.start_cache(len(prompts), widest, longest + room)
    return cache, decoder.step(tokens.to(device), cache, text_kv, valid.to(device))


def _generate(
    decoder: TextDecoder, text_kv: TextKV | None, prompts: Prompts, eos: int, max_tokens: int, choose: Callable[[Tensor], Tensor]
) -> list[list[Decoded]]:
    """Decode all rows side by side; `choose` picks the next token of each from its log-probabilities [R, V]."""
    if not any(prompts) or max_tokens < 1:
        return [[Decoded([], 0.0) for _ in row] for row in prompts]
    clips, widest = len(prompts), max(map(len, prompts))
    cache, logits_BQV = _read_prompts(decoder, text_kv, prompts, max_tokens)
    device = logits_BQV.device
    done_R = torch.tensor([q >= len(row) for row in prompts for q in range(widest)], device=device)
    total_R = torch.zeros(clips * widest, dtype=torch.float64, device=device)
    columns: list[Tensor] = []
    for count in range(1, max_tokens + 1):
        logprob_RV = logits_BQV.flatten(0, 1).float().log_softmax(dim=-1)
        token_R = choose(logprob_RV)  # of rows that are done too, where nobody reads it
        total_R += torch.where(done_R, 0.0, logprob_RV.gather(1, token_R[:, None]).squeeze(1))
        done_R = done_R | (token_R == eos)
        columns.append(token_R)
        if count == max_tokens or bool(done_R.all()):
            break
        logits_BQV = decoder.step(token_R.view(clips, widest, 1), cache, text_kv)
    ids_RL, totals = torch.stack(columns, dim=1).tolist(), total_R.tolist()
    return [
        [Decoded(_strip_eos(ids_RL[b * widest + q], eos), totals[b * widest + q]) for q in range(len(row))] for b, row in enumerate(prompts)
    ]


def _strip_eos(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids
