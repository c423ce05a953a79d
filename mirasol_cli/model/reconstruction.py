"""Reconstruction of the next chunk from the latents of this one: thumbnails, and on request the spectrogram.

A small Transformer with one learned query per patch asks the M latents of chunk t for chunk t + 1 (Mirasol3B
section 3.2). Tubes are sparse, so that the target can't be their own pixels: OURS are small pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirasol_cli.geometry import THUMBNAIL_FRAMES, THUMBNAIL_SIZE
from mirasol_cli.model.config import ReconstructionConfig
from mirasol_cli.model.layers import Block, learned_parameter, linear, norm, project_width, residual

PATCH = 8  # px of a thumbnail; a query predicts its square in all four thumbnails
THUMBNAIL_QUERIES = (THUMBNAIL_SIZE // PATCH) ** 2
THUMBNAIL_NUMBERS = THUMBNAIL_FRAMES * PATCH * PATCH * 3


class PatchPredictor(nn.Module):
    """Learned queries that attend to the latents of one chunk and to each other."""

    def __init__(self, config: ReconstructionConfig, input_width: int, queries: int, numbers: int):
        super().__init__()
        self.input_proj = project_width(input_width, config.width)
        self.queries = learned_parameter(queries, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_dim) for _ in range(config.layers))
        self.norm = norm(config.width)
        self.out = linear(config.width, numbers)

    def forward(self, latents_BTMD: Tensor) -> Tensor:
        """[B, T, M, D] -> [B, T, queries, numbers]."""
        latents = residual(self.input_proj(latents_BTMD)).flatten(0, 1)
        x = self.queries.to(latents.dtype).expand(latents.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, None, torch.cat([latents, x], dim=1))
        return self.out(self.norm(x)).unflatten(0, latents_BTMD.shape[:2])


def thumbnail_patches(thumbnails: Tensor) -> Tensor:
    """uint8 [B, T, 4, 32, 32, 3] -> float [B, T, 16, 768]: 8 px squares through the four thumbnails.

    OURS: (x / 255 - 0.5) / 0.25, since natural pixels have a standard deviation of about a quarter of their range.
    """
    squares = thumbnails.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))  # B T F row py column px C
    return squares.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(2, 3).float() / 63.75 - 2
