"""Lists of possible answers as trees of tokens, in which common beginnings are shared.

All nodes of a tree pass the decoder at once, each attending to the prompt and to its own ancestors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Candidates = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Trie:
    """Candidates with shared beginnings. Node i holds `token[i]`, follows `parent[i]` (-1: the prompt) at `depth[i]`."""

    token: list[int]
    parent: list[int]
    depth: list[int]
    last: dict[tuple[int, ...], int]  # candidate -> its last node, -1 for an empty one

    @property
    def ancestors(self) -> Tensor:
        """bool [N, N]: [i, j], node i continues from node j or is it."""
        table = torch.eye(len(self.token), dtype=torch.bool)
        for node, parent in enumerate(self.parent):  # a parent always stands before its children
            if parent >= 0:
                table[node] |= table[parent]
        return table


def build_tries(candidates: Candidates, eos: int, nodes: int) -> list[Trie]:
    """Trees that together hold all candidates, each of at most `nodes` nodes (or of one longer candidate)."""
    tries: list[Trie] = []
    branches: dict[tuple[int, ...], int] = {}
    for ids in sorted({tuple(ids) for ids in candidates}):
        if eos in ids:
            raise ValueError(f"a candidate holds the end token {eos}: {list(ids)}; it is added here")
        shared = next(length for length in range(len(ids), -1, -1) if not length or ids[:length] in branches)
        if not tries or (tries[-1].token and len(tries[-1].token) + len(ids) - shared > nodes):
            tries.append(Trie([], [], [], {}))
            branches, shared = {}, 0
        trie = tries[-1]
        for depth in range(shared, len(ids)):
            trie.parent.append(branches[ids[:depth]] if depth else -1)
            trie.token.append(ids[depth])
            trie.depth.append(depth)
            branches[ids[: depth + 1]] = len(trie.token) - 1
        trie.last[ids] = branches[ids] if ids else -1
    return tries


def pad_tries(tries: list[list[Trie | None]], questions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, depths [B, Q, N] and ancestors [B, Q, N, N], padded with nodes that see only the prompt and themselves."""
    clips = len(tries)
    widest = max((len(trie.token) for row in tries for trie in row if trie is not None), default=0) or 1
    tokens = torch.zeros(clips, questions, widest, dtype=torch.int64)
    depth = torch.zeros_like(tokens)
    ancestors = torch.eye(widest, dtype=torch.bool).repeat(clips, questions, 1, 1)
    for b, row in enumerate(tries):
        for q, trie in enumerate(row):
            if trie is not None:
                count = len(trie.token)
                tokens[b, q, :count] = torch.tensor(trie.token, dtype=torch.int64)
                depth[b, q, :count] = torch.tensor(trie.depth, dtype=torch.int64)
                ancestors[b, q, :count, :count] = trie.ancestors
    return tokens, depth, ancestors


def likelihoods(trie: Trie, logprob_NV: Tensor, first_V: Tensor, ancestor_NN: Tensor, eos: int) -> dict[tuple[int, ...], float]:
    """The sums along each candidate's path. `logprob_NV` follows the nodes, `first_V` the prompt."""
    count = len(trie.token)
    follows_NV = torch.cat((first_V[None], logprob_NV))  # row 0 follows the prompt, row i + 1 node i
    token, parent = (torch.tensor(part, dtype=torch.int64, device=first_V.device) for part in (trie.token, trie.parent))
    step_N = follows_NV[parent + 1, token].double()
    path_N = ancestor_NN[:count, :count].double() @ step_N
    end_N = follows_NV[:, eos].double()
    totals = (torch.cat((path_N.new_zeros(1), path_N)) + end_N).tolist()
    return {ids: totals[node + 1] for ids, node in trie.last.items()}
