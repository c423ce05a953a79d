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
class Tree:
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


def plant(candidates: Candidates, eos: int, nodes: int) -> list[Tree]:
    """Trees that together hold all candidates, each of at most `nodes` nodes (or of one longer candidate)."""
    trees: list[Tree] = []
    branches: dict[tuple[int, ...], int] = {}
    for ids in sorted({tuple(ids) for ids in candidates}):
        if eos in ids:
            raise ValueError(f"a candidate holds the end token {eos}: {list(ids)}; it is added here")
        shared = next(length for length in range(len(ids), -1, -1) if not length or ids[:length] in branches)
        if not trees or (trees[-1].token and len(trees[-1].token) + len(ids) - shared > nodes):
            trees.append(Tree([], [], [], {}))
            branches, shared = {}, 0
        tree = trees[-1]
        for depth in range(shared, len(ids)):
            tree.parent.append(branches[ids[:depth]] if depth else -1)
            tree.token.append(ids[depth])
            tree.depth.append(depth)
            branches[ids[: depth + 1]] = len(tree.token) - 1
        tree.last[ids] = branches[ids] if ids else -1
    return trees


def side_by_side(trees: list[list[Tree | None]], questions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, depths [B, Q, N] and ancestors [B, Q, N, N], padded with nodes that see only the prompt and themselves."""
    clips = len(trees)
    widest = max((len(tree.token) for row in trees for tree in row if tree is not None), default=0) or 1
    tokens = torch.zeros(clips, questions, widest, dtype=torch.int64)
    depth = torch.zeros_like(tokens)
    ancestors = torch.eye(widest, dtype=torch.bool).repeat(clips, questions, 1, 1)
    for b, row in enumerate(trees):
        for q, tree in enumerate(row):
            if tree is not None:
                count = len(tree.token)
                tokens[b, q, :count] = torch.tensor(tree.token, dtype=torch.int64)
                depth[b, q, :count] = torch.tensor(tree.depth, dtype=torch.int64)
                ancestors[b, q, :count, :count] = tree.ancestors
    return tokens, depth, ancestors


def likelihoods(tree: Tree, logprob_NV: Tensor, first_V: Tensor, ancestor_NN: Tensor, eos: int) -> dict[tuple[int, ...], float]:
    """The sums along each candidate's path. `logprob_NV` follows the nodes, `first_V` the prompt."""
    count = len(tree.token)
    follows_NV = torch.cat((first_V[None], logprob_NV))  # row 0 follows the prompt, row i + 1 node i
    token, parent = (torch.tensor(part, dtype=torch.int64, device=first_V.device) for part in (tree.token, tree.parent))
    step_N = follows_NV[parent + 1, token].double()
    path_N = ancestor_NN[:count, :count].double() @ step_N
    end_N = follows_NV[:, eos].double()
    totals = (torch.cat((path_N.new_zeros(1), path_N)) + end_N).tolist()
    return {ids: totals[node + 1] for ids, node in tree.last.items()}
