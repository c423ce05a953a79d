"""Combiners: all sound and picture tokens of a chunk in, M tokens out (Mirasol3B, arXiv 2311.05698, section 3.3).

All have one interface: `forward(tokens_BTND, valid_BTN, state) -> (combined_BTMD, state)`. The state is what
later chunks need: TTM's memory, the history Transformer's keys and values, None for the others; feeding a clip
chunk by chunk with the state handed on equals feeding it at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirasol_cli.fields import FieldError
from mirasol_cli.model.chunk_causal import ChunkCache, ChunkTransformer
from mirasol_cli.model.config import CombinerConfig
from mirasol_cli.model.layers import BRANCH_INIT_SCALE, Block, keep_in_graph, key_mask, learned_parameter, norm, project_width
from mirasol_cli.model.token_turing import TokenTuringMachine

QUERY_INIT_GAIN = 4.0  # see `init_sharp_attention`

CombinerState = Tensor | ChunkCache | None


def build_combiner(config: CombinerConfig, input_width: int, tokens_per_chunk: int) -> Combiner:
    """The Combiner of `config.kind`; M > N is refused, since a Combiner compresses."""
    if config.kind != "none" and config.num_outputs > tokens_per_chunk:
        raise FieldError(
            "combiner.num_outputs",
            f"model.combiner.num_outputs: M = {config.num_outputs} outputs are more than the N = {tokens_per_chunk} tokens of a chunk; "
            f"set it to {tokens_per_chunk} or less",
        )
    kinds = {combiner.kind: combiner for combiner in Combiner.__subclasses__()}
    return kinds["history" if (config.kind, config.context) == ("transformer", "history") else config.kind](config, input_width)


class Combiner(nn.Module):
    """Base: the change of width from the encoder, and the number of outputs."""

    kind: str  # its name in a recipe, `model.combiner.kind`, where config.py lists it; with `context: history` the Transformer's is history

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__()
        self.outputs = config.num_outputs
        self.input_proj = project_width(input_width, config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        raise NotImplementedError


class TransformerCombiner(Combiner):
    """Transformer over the tokens of one chunk; its last M valid outputs are kept ("transformer", context: chunk).

    A chunk with fewer than M valid tokens is filled up with learned tokens. Only the M kept tokens ask in the last
    block: what the others would compute there is never used.
    """

    kind = "transformer"

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__(config, input_width)
        self.blocks = init_sharp_attention(
            nn.ModuleList(Block(config.width, config.heads, config.mlp_dim, dropout=config.dropout) for _ in range(config.layers))
        )
        self.norm = norm(config.width)
        self.filler = learned_parameter(config.num_outputs, config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        shape = x_BTND.shape[:2]
        x = self.input_proj(x_BTND).flatten(0, 1)
        valid = None if valid_BTN is None else valid_BTN.flatten(0, 1)
        mask = key_mask(valid)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        last = LastValid(valid, self.outputs)
        x = self.norm(self.blocks[-1](last.pick(x), mask, x))
        return last.fill(x, self.filler).unflatten(0, shape), None


class CausalTransformerCombiner(Combiner):
    """Transformer over the tokens of this and all earlier chunks, causal in chunks ("transformer", context: history)."""

    kind = "history"

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__(config, input_width)
        if (config.width // config.heads) % 2:
            raise FieldError(
                "combiner.heads",
                f"model.combiner.heads: width {config.width} / {config.heads} heads is odd, but context: history has rotary positions",
            )
        self.transformer = ChunkTransformer(config.width, config.heads, config.mlp_dim, config.layers, dropout=config.dropout)
        init_sharp_attention(self.transformer.blocks)
        self.filler = learned_parameter(config.num_outputs, config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        assert not isinstance(state, Tensor)
        last = LastValid(valid_BTN, self.outputs)
        x, cache = self.transformer.append(self.input_proj(x_BTND), valid_BTN, state, last.pick)
        return last.fill(x, self.filler), cache


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
        """[..., M, D] with learned tokens where none was found."""
        if self.index is None:
            return keep_in_graph(x, filler_MD)
        return torch.where(self.found[..., None], x, filler_MD.to(x.dtype))


class TTMCombiner(Combiner):
    """The memory Combiner: a Token Turing Machine whose outputs are the M tokens; its memory is the state."""

    kind = "ttm"

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__(config, input_width)
        self.machine = TokenTuringMachine(config)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        assert not isinstance(state, ChunkCache)
        return self.machine(self.input_proj(x_BTND), valid_BTN, state)


class PerceiverCombiner(Combiner):
    """OURS: M learned queries; each block asks the chunk's tokens and the queries themselves."""

    kind = "perceiver"

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__(config, input_width)
        self.queries = learned_parameter(config.num_outputs, config.width)
        self.token_norm = norm(config.width)
        self.blocks = init_sharp_attention(
            nn.ModuleList(Block(config.width, config.heads, config.mlp_dim, dropout=config.dropout) for _ in range(config.layers))
        )
        self.norm = norm(config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        shape = x_BTND.shape[:2]
        tokens = self.token_norm(self.input_proj(x_BTND).flatten(0, 1))
        mask = with_valid_tokens(valid_BTN, self.outputs)
        x = self.queries.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, mask, torch.cat([tokens, x], dim=1))
        return self.norm(x).unflatten(0, shape), None


class ClassTokenCombiner(Combiner):
    """OURS: M learned tokens are appended to the chunk's tokens; their outputs are kept."""

    kind = "cls"

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__(config, input_width)
        self.tokens = learned_parameter(config.num_outputs, config.width)
        self.blocks = init_sharp_attention(
            nn.ModuleList(Block(config.width, config.heads, config.mlp_dim, dropout=config.dropout) for _ in range(config.layers))
        )
        self.norm = norm(config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        shape = x_BTND.shape[:2]
        x = self.input_proj(x_BTND).flatten(0, 1)
        x = torch.cat([x, self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
        mask = with_valid_tokens(valid_BTN, self.outputs)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        x = self.blocks[-1](x[:, -self.outputs :], mask, x)
        return self.norm(x).unflatten(0, shape), None


class MeanPoolCombiner(Combiner):
    """OURS: the means of M groups of neighbouring tokens; a group without a valid token is filled up."""

    kind = "mean"

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__(config, input_width)
        self.norm = norm(config.width)
        self.filler = learned_parameter(config.num_outputs, config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        x = self.input_proj(x_BTND)
        group = torch.arange(x.shape[2], device=x.device) * self.outputs // x.shape[2]
        member_MN = (group == torch.arange(self.outputs, device=x.device)[:, None]).to(x.dtype)
        if valid_BTN is None:
            mean = (member_MN / member_MN.sum(-1, keepdim=True)) @ x
            return keep_in_graph(self.norm(mean), self.filler), None
        member = member_MN * valid_BTN[:, :, None]
        count = member.sum(-1, keepdim=True)
        mean = self.norm((member / count.clamp(min=1)) @ x)
        return torch.where(count > 0, mean, self.filler.to(mean.dtype)), None


class IdentityCombiner(Combiner):
    """An ablation: all N tokens go on; invalid ones are replaced by one learned token."""

    kind = "none"

    def __init__(self, config: CombinerConfig, input_width: int):
        super().__init__(config, input_width)
        self.filler = learned_parameter(config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None, state: CombinerState = None) -> tuple[Tensor, CombinerState]:
        x = self.input_proj(x_BTND)
        if valid_BTN is None:
            return keep_in_graph(x, self.filler), None
        return torch.where(valid_BTN[..., None], x, self.filler.to(x.dtype)), None


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


def with_valid_tokens(valid_BTN: Tensor | None, added: int) -> Tensor | None:
    """Key mask [B T, 1, 1, N + added] for sequences that end in `added` tokens which are always valid."""
    if valid_BTN is None:
        return None
    return key_mask(nn.functional.pad(valid_BTN.flatten(0, 1), (0, added), value=True))
