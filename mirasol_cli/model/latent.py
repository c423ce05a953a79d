"""The time-aligned autoregression: latents h_t from the Combiner outputs of chunks up to t, and what predicts the next chunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirasol_cli.model.chunk_causal import ChunkCache, ChunkTransformer
from mirasol_cli.model.config import LatentConfig
from mirasol_cli.model.layers import (
    BRANCH_INIT_SCALE,
    Block,
    FeedForward,
    keep_in_graph,
    learned_parameter,
    norm,
    project_width,
    residual,
)


class LatentModel(nn.Module):
    """Block-causal Transformer over T x M tokens: rotary position by chunk plus a learned embedding of the slot.

    With `layers: 0` no chunk sees another (the ablation without autoregression). `slots` is M; 0 leaves the slot
    embedding out (Combiner `none`: its tokens have positions of their own, and their number depends on the frames).
    """

    def __init__(self, config: LatentConfig, input_width: int, slots: int):
        super().__init__()
        self.input_proj = project_width(input_width, config.width)
        self.slot = learned_parameter(slots, config.width) if slots else None
        self.mask_token = learned_parameter(config.width)
        self.transformer = ChunkTransformer(
            config.width, config.heads, config.mlp_dim, config.layers, window=config.window, dropout=config.dropout
        )
        init_full_branches(self.transformer.blocks)

    def forward(self, combined_BTMD: Tensor, masked_BT: Tensor | None = None, valid_BT: Tensor | None = None) -> Tensor:
        """[B, T, M, D] -> [B, T, M, D]. `masked_BT`: chunks hidden behind the mask token; `valid_BT`: False for padding."""
        return self.transformer(self._inputs(combined_BTMD, masked_BT), self._token_valid(combined_BTMD, valid_BT))

    def append(
        self, combined_BTMD: Tensor, valid_BT: Tensor | None = None, cache: ChunkCache | None = None, *, window: int | None = None
    ) -> tuple[Tensor, ChunkCache]:
        """As `forward`, for chunks that follow those in `cache`; `window` replaces the one it was built with."""
        valid = self._token_valid(combined_BTMD, valid_BT)
        return self.transformer.append(self._inputs(combined_BTMD, None), valid, cache, window=window)

    def _inputs(self, combined: Tensor, masked_BT: Tensor | None) -> Tensor:
        x = residual(self.input_proj(combined))
        if masked_BT is None:
            x = keep_in_graph(x, self.mask_token)
        else:
            x = torch.where(masked_BT[..., None, None], self.mask_token.to(x.dtype), x)
        return x if self.slot is None else x + self.slot

    def _token_valid(self, combined: Tensor, valid_BT: Tensor | None) -> Tensor | None:
        return None if valid_BT is None else valid_BT[..., None].expand(combined.shape[:3])


@torch.no_grad()
def init_full_branches(blocks: nn.ModuleList) -> None:
    """OURS: branches start at full size, as in a plain ViT. With the tenth of the encoders' blocks, latents began and stayed as copies of
    their own chunk, so that nothing was carried from chunk to chunk."""
    for block in blocks:
        assert isinstance(block, Block)
        block.scale_branches(1 / BRANCH_INIT_SCALE)


class NextChunk(nn.Module):
    """Predicts the Combiner output of chunk t + 1 from the latent of chunk t, slot by slot."""

    def __init__(self, width: int, output: int):
        super().__init__()
        self.norm = norm(width)
        self.mlp = FeedForward(width, 2 * width, output=output)

    def forward(self, latents_BTMD: Tensor) -> Tensor:
        return self.mlp(self.norm(latents_BTMD))
