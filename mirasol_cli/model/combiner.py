"""Combiners: all audio and video tokens of a chunk in, M tokens out (Mirasol3B, arXiv 2311.05698, section 3.3).

All have one interface: `forward(tokens_BTND, valid_BTN, state) -> (combined_BTMD, state)`. The state is what
later chunks need: TTM's memory, the history Transformer's keys and values, None for the others; feeding a clip
chunk by chunk with the state handed on equals feeding it at once. `whole_chunks` promises that the tokens of a chunk are
all valid or all invalid, so that attention within a chunk needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirasol_cli.fields import FieldError
from mirasol_cli.model.chunk_causal import ChunkCache, ChunkTransformer
from mirasol_cli.model.config import CombinerConfig
from mirasol_cli.model.layers import BRANCH_INIT_SCALE, Block, keep_in_graph, key_mask, learned_parameter, norm, project_width, residual
from mirasol_cli.model.token_turing import TokenTuringMachine

QUERY_INIT_GAIN = 4.0  # see `init_sharp_attention`

CombinerState = Tensor | ChunkCache | None


def build_combiner(config: CombinerConfig, input_width: int, tokens: Sequence[int]) -> Combiner:
    """The Combiner of `config.kind` for chunks of so many tokens of each modality. M > N is refused, since a Combiner compresses."""
    tokens_per_chunk = sum(tokens)
    if config.kind != "none" and config.num_outputs > tokens_per_chunk:
        raise FieldError(
            "combiner.num_outputs",
            f"model.combiner.num_outputs: M = {config.num_outputs} outputs are more than the N = {tokens_per_chunk} tokens of a chunk; "
            f"set it to {tokens_per_chunk} or less",
        )
    kinds = {combiner.kind: combiner for combiner in Combiner.__subclasses__()}
    return kinds["history" if (config.kind, config.context) == ("transformer", "history") else config.kind](config, input_width, tokens)


class Combiner(nn.Module):
    """Base: the change of width from the encoder, the number of outputs, and the tokens of each modality in a chunk."""

    kind: str  # its name in a recipe, `model.combiner.kind`, where config.py lists it; with `context: history` the Transformer's is history

    def __init__(self, config: CombinerConfig, input_width: int, tokens: Sequence[int]):
        super().__init__()
        self.outputs, self.modality_tokens = config.num_outputs, tuple(tokens)
        self.input_proj = project_width(input_width, config.width)

    def input(self, x_BTND: Tensor) -> Tensor:
        """The encoders' tokens in the Combiner's width."""
        return residual(self.input_proj(x_BTND))

    def forward(
        self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None, *, whole_chunks: bool = False
    ) -> tuple[Tensor, CombinerState]:
        raise NotImplementedError


class TransformerCombiner(Combiner):
    """Transformer over the tokens of one chunk ("transformer", context: chunk).

    Only the M outputs ask in the last block: what the other tokens would compute there is never used.
    """

    kind = "transformer"

    def __init__(self, config: CombinerConfig, input_width: int, tokens: Sequence[int]):
        super().__init__(config, input_width, tokens)
        self.output = OutputTokens(config, tokens)
        self.blocks = init_sharp_attention(
            nn.ModuleList(Block(config.width, config.heads, config.mlp_dim, dropout=config.dropout) for _ in range(config.layers))
        )
        self.norm = norm(config.width)

    def forward(
        self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None, *, whole_chunks: bool = False
    ) -> tuple[Tensor, CombinerState]:
        shape = x_BTND.shape[:2]
        x, valid = self.output.append(self.input(x_BTND), None if whole_chunks else valid_BTN)
        x, valid = x.flatten(0, 1), None if valid is None else valid.flatten(0, 1)
        mask, last = key_mask(valid), self.output.last(valid)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        x = self.norm(self.blocks[-1](last.pick(x), mask, x))
        return self.output.fill(x.unflatten(0, shape), last, valid_BTN), None


class CausalTransformerCombiner(Combiner):
    """Transformer over the tokens of this and all earlier chunks, causal in chunks ("transformer", context: history).

    Later chunks see the output tokens of earlier ones, too.
    """

    kind = "history"

    def __init__(self, config: CombinerConfig, input_width: int, tokens: Sequence[int]):
        super().__init__(config, input_width, tokens)
        if (config.width // config.heads) % 2:
            raise FieldError(
                "combiner.heads",
                f"model.combiner.heads: width {config.width} / {config.heads} heads is odd, but context: history has rotary positions",
            )
        self.output = OutputTokens(config, tokens)
        self.transformer = ChunkTransformer(config.width, config.heads, config.mlp_dim, config.layers, dropout=config.dropout)
        init_sharp_attention(self.transformer.blocks)

    def forward(
        self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None, *, whole_chunks: bool = False
    ) -> tuple[Tensor, CombinerState]:
        assert not isinstance(state, Tensor)
        x, valid = self.output.append(self.input(x_BTND), valid_BTN)
        last = self.output.last(valid)
        x, cache = self.transformer.append(x, valid, state, last.pick)
        return self.output.fill(x, last, valid_BTN), cache


class OutputTokens(nn.Module):
    """Which M tokens of a chunk are the Combiner's outputs: the last ones of its sequence (Mirasol3B section 3.3).

    OURS, `output_tokens: learned`: M learned tokens stand at the end of the sequence, so that output j is the same thing in every
    chunk, whatever the chunk lacks. To each the mean of its group of tokens is added (`group_means`): what it will carry of them is
    then on the residual path from the start, and attention need not find it first. `last` is the literal reading: the last M valid
    input tokens, whichever these are; a chunk with fewer is filled up with the learned tokens. So is one without any, either way.
    """

    def __init__(self, config: CombinerConfig, modality_tokens: Sequence[int]):
        super().__init__()
        self.appended, self.modality_tokens = config.output_tokens == "learned", tuple(modality_tokens)
        self.tokens = learned_parameter(config.num_outputs, config.width)

    def append(self, x_BTND: Tensor, valid_BTN: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The chunk's sequence [B, T, N or N + M, D], at least M long, and which of it is valid."""
        if not self.appended:
            missing = len(self.tokens) - x_BTND.shape[2]  # above 0 where a modality is left out
            if missing <= 0:
                return x_BTND, valid_BTN
            valid_BTN = x_BTND.new_ones(x_BTND.shape[:3], dtype=torch.bool) if valid_BTN is None else valid_BTN
            return F.pad(x_BTND, (0, 0, missing, 0)), F.pad(valid_BTN, (missing, 0), value=False)
        means, _ = group_means(x_BTND, valid_BTN, len(self.tokens), self.modality_tokens)
        x = torch.cat([x_BTND, means + self.tokens.to(x_BTND.dtype)], dim=2)
        return x, with_output_tokens(valid_BTN, len(self.tokens))

    def last(self, valid: Tensor | None) -> LastValid:
        """How the outputs are picked from a sequence with this mask."""
        return LastValid(None if self.appended else valid, len(self.tokens))

    def fill(self, x_BTMD: Tensor, last: LastValid, valid_BTN: Tensor | None) -> Tensor:
        """The outputs, with learned tokens where the chunk had none to give."""
        x = x_BTMD if self.appended else last.fill(x_BTMD, self.tokens)
        return fill_absent(x, self.tokens, valid_BTN)


class LastValid:
    """Picks the last M valid tokens of each sequence [..., N, D], in order, and fills up where fewer are valid."""

    def __init__(self, valid: Tensor | None, count: int):
        self.count = count
        self.index: Tensor | None = None
        if valid is not None:
            place = torch.arange(valid.shape[-1], device=valid.device)
            latest = torch.where(valid, place, -1).topk(count, dim=-1).values.flip(-1)  # invalid ones come first, as -1
            self.found, self.index = latest >= 0, latest.clamp(min=0)

    def pick(self, x: Tensor) -> Tensor:
        """[..., N, D] -> [..., M, D]; unfilled places hold some token."""
        if self.index is None:
            return x[..., -self.count :, :]
        return x.gather(-2, self.index[..., None].expand(*self.index.shape, x.shape[-1]))

    def fill(self, x: Tensor, filler_MD: Tensor) -> Tensor:
        """[..., M, D] with learned tokens where none was found; the leading axes may be split."""
        if self.index is None:
            return keep_in_graph(x, filler_MD)
        return torch.where(self.found.view(x.shape[:-1])[..., None], x, filler_MD.to(x.dtype))


class TTMCombiner(Combiner):
    """The memory Combiner: a Token Turing Machine whose outputs are the M tokens; its memory is the state."""

    kind = "ttm"

    def __init__(self, config: CombinerConfig, input_width: int, tokens: Sequence[int]):
        super().__init__(config, input_width, tokens)
        self.machine = TokenTuringMachine(config)

    def forward(
        self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None, *, whole_chunks: bool = False
    ) -> tuple[Tensor, CombinerState]:
        assert not isinstance(state, ChunkCache)
        return self.machine(self.input(x_BTND), valid_BTN, state)


class PerceiverCombiner(Combiner):
    """OURS: M learned queries; each block asks the chunk's tokens and the queries themselves."""

    kind = "perceiver"

    def __init__(self, config: CombinerConfig, input_width: int, tokens: Sequence[int]):
        super().__init__(config, input_width, tokens)
        self.queries = learned_parameter(config.num_outputs, config.width)
        self.token_norm = norm(config.width)
        self.blocks = init_sharp_attention(
            nn.ModuleList(Block(config.width, config.heads, config.mlp_dim, dropout=config.dropout) for _ in range(config.layers))
        )
        self.norm = norm(config.width)

    def forward(
        self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None, *, whole_chunks: bool = False
    ) -> tuple[Tensor, CombinerState]:
        shape = x_BTND.shape[:2]
        tokens = self.token_norm(self.input(x_BTND).flatten(0, 1))
        valid = with_output_tokens(None if whole_chunks else valid_BTN, self.outputs)
        mask = key_mask(None if valid is None else valid.flatten(0, 1))
        x = self.queries.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, mask, torch.cat([tokens, x], dim=1))
        return fill_absent(self.norm(x).unflatten(0, shape), self.queries, valid_BTN), None


class MeanPoolCombiner(Combiner):
    """OURS: the means of M groups of neighbouring tokens (`group_means`). A group without a valid token is filled up."""

    kind = "mean"

    def __init__(self, config: CombinerConfig, input_width: int, tokens: Sequence[int]):
        super().__init__(config, input_width, tokens)
        self.norm = norm(config.width)
        self.filler = learned_parameter(config.num_outputs, config.width)

    def forward(
        self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None, *, whole_chunks: bool = False
    ) -> tuple[Tensor, CombinerState]:
        means, found = group_means(self.input(x_BTND), valid_BTN, self.outputs, self.modality_tokens)
        x = self.norm(means)
        return torch.where(found, x, self.filler.to(x.dtype)), None


class IdentityCombiner(Combiner):
    """An ablation: all N tokens go on; invalid ones are replaced by one learned token."""

    kind = "none"

    def __init__(self, config: CombinerConfig, input_width: int, tokens: Sequence[int]):
        super().__init__(config, input_width, tokens)
        self.filler = learned_parameter(config.width)

    def forward(
        self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None, *, whole_chunks: bool = False
    ) -> tuple[Tensor, CombinerState]:
        x = self.input(x_BTND)
        if valid_BTN is None:
            return keep_in_graph(x, self.filler), None
        return torch.where(valid_BTN[..., None], x, self.filler.to(x.dtype)), None


def group_means(x_BTND: Tensor, valid_BTN: Tensor | None, groups: int, modality_tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """OURS: the means of M groups of neighbouring tokens [B, T, M, D], and which groups hold a valid token, bool [B, T, M, 1].

    Each modality has M groups of its own, as even as they can be. Mean j joins the j-th group of either, as far as it holds a valid
    token, weighted by the root of its modality's share of the tokens, so that a change of one modality changes the means (in squares)
    by about that share.
    """
    tokens = x_BTND.shape[2]
    sizes = modality_tokens if tokens == sum(modality_tokens) else (tokens,)  # one modality may be left out
    valid_BTN = x_BTND.new_ones(x_BTND.shape[:3], dtype=torch.bool) if valid_BTN is None else valid_BTN
    joined, shares = x_BTND.new_zeros(1), x_BTND.new_zeros(1)
    for x, valid in zip(x_BTND.split(sizes, dim=2), valid_BTN.split(sizes, dim=2), strict=True):
        size = x.shape[2]
        group_N = torch.arange(size, device=x.device) * groups // size
        member_MN = (group_N == torch.arange(groups, device=x.device)[:, None]) & valid[:, :, None]
        count = member_MN.sum(-1, keepdim=True)
        joined = joined + sqrt(size / tokens) * (member_MN.to(x.dtype) / count.clamp(min=1)) @ x
        shares = shares + (size / tokens) * (count > 0)
    return joined / shares.clamp(min=1 / tokens).sqrt(), shares > 0


@torch.no_grad()
def init_sharp_attention(blocks: nn.ModuleList) -> nn.ModuleList:
    """OURS: a Combiner's blocks start with branches of full size and with queries so large that each output picks a few
    tokens. Attention that starts out even hands on the mean of all tokens, in which any one of them is lost: the gradient
    that should tell where to look is then too faint to be found."""
    for block in blocks:
        assert isinstance(block, Block)
        block.scale_branches(1 / BRANCH_INIT_SCALE)
        block.attention.query.weight *= QUERY_INIT_GAIN
    return blocks


def with_output_tokens(valid_BTN: Tensor | None, added: int) -> Tensor | None:
    """The mask of sequences that end in `added` tokens which are always valid, bool [B, T, N + added]."""
    return None if valid_BTN is None else F.pad(valid_BTN, (0, added), value=True)


def fill_absent(x_BTMD: Tensor, learned_MD: Tensor, valid_BTN: Tensor | None) -> Tensor:
    """Learned tokens for chunks without any valid token."""
    if valid_BTN is None:
        return keep_in_graph(x_BTMD, learned_MD)
    return torch.where(valid_BTN.any(-1)[..., None, None], x_BTMD, learned_MD.to(x_BTMD.dtype))
