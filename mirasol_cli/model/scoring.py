"""Exact log-likelihoods of given answers: class lists and multiple choice.

The prompt is read once. The candidates of a prompt become a tree of tokens in which common beginnings are shared, and
all nodes of a tree pass the decoder at once, each attending to the prompt and to its own ancestors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mirasol_cli.model.decoding import Prompts, read_prompts
from mirasol_cli.model.text_decoder import CrossMemory, TextDecoder

Candidates = Sequence[Sequence[int]]
NODES = 512
"""Nodes of one tree; longer lists of candidates are cut into several, which bounds memory."""


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


@torch.inference_mode()
def score_candidates(
    decoder: TextDecoder,
    memory: CrossMemory | None,
    prompts: Prompts,
    candidates: Sequence[Sequence[Candidates]],
    eos: int,
    *,
    nodes: int = NODES,
) -> list[list[list[float]]]:
    """Natural log-likelihood of every candidate, its end token included, in the order given.

    Args:
        prompts: `prompts[b][q]`, ids of question q of clip b.
        candidates: `candidates[b][q]`, ids of each possible answer without the end token.
        nodes: most tokens of one prompt that are scored at once; changes memory, not the result.

    Raises:
        ValueError: a candidate holds the end token, or a prompt is empty.
    """
    if not any(prompts):
        return [[] for _ in prompts]
    planted: dict[int, list[Tree]] = {}  # rows that share one list of candidates share its trees
    for options in (options for row in candidates for options in row):
        if id(options) not in planted:
            planted[id(options)] = plant(options, eos, nodes)
    forests = [[planted[id(options)] for options in row] for row in candidates]
    largest = max((len(tree.token) for trees in planted.values() for tree in trees), default=0) or 1
    cache, logits_BQV = read_prompts(decoder, memory, prompts, largest)
    first_BQV = logits_BQV.float().log_softmax(dim=-1)
    found: list[list[dict[tuple[int, ...], float]]] = [[{} for _ in row] for row in prompts]

    for turn in range(max((len(trees) for trees in planted.values()), default=0)):
        now = [[trees[turn] if turn < len(trees) else None for trees in row] for row in forests]
        tokens_BQN, depth_BQN, ancestor_BQNN = (part.to(logits_BQV.device) for part in _side_by_side(now, logits_BQV.shape[1]))
        hidden_BQND = decoder.branch(tokens_BQN, depth_BQN, ancestor_BQNN, cache, memory)
        for b, row in enumerate(now):
            for q, tree in enumerate(row):
                if tree is not None:
                    logprob_NV = decoder.logits(hidden_BQND[b, q, : len(tree.token)]).float().log_softmax(dim=-1)
                    found[b][q] |= _likelihoods(tree, logprob_NV, first_BQV[b, q], ancestor_BQNN[b, q], eos)
    return [
        [[scores[tuple(ids)] for ids in options] for scores, options in zip(*row, strict=True)]
        for row in zip(found, candidates, strict=True)
    ]


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


def _side_by_side(trees: list[list[Tree | None]], questions: int) -> tuple[Tensor, Tensor, Tensor]:
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


def _likelihoods(tree: Tree, logprob_NV: Tensor, first_V: Tensor, ancestor_NN: Tensor, eos: int) -> dict[tuple[int, ...], float]:
    """The sums along each candidate's path. `logprob_NV` follows the nodes, `first_V` the prompt."""
    count = len(tree.token)
    follows_NV = torch.cat((first_V[None], logprob_NV))  # row 0 follows the prompt, row i + 1 node i
    token, parent = (torch.tensor(part, dtype=torch.int64, device=first_V.device) for part in (tree.token, tree.parent))
    step_N = follows_NV[parent + 1, token].double()
    path_N = ancestor_NN[:count, :count].double() @ step_N
    end_N = follows_NV[:, eos].double()
    totals = (torch.cat((path_N.new_zeros(1), path_N)) + end_N).tolist()
    return {ids: totals[node + 1] for ids, node in tree.last.items()}
