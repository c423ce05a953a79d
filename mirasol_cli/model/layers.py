"""The pre-norm Transformer block that every audio-video part is made of, and the few functions around it.

Weights of a block, for importers (Hugging Face's ViT and AST, one to one):

    norm1, norm2            LayerNorm, eps 1e-6        layernorm_before, layernorm_after
    attention.query         Linear(D, D)               attention.attention.query
    attention.key_value     Linear(D, 2 D)             rows: all of attention.attention.key, then all of .value
    attention.out           Linear(D, D)               attention.output.dense
    mlp.up, mlp.down        Linear(D, H), Linear(H, D) intermediate.dense, output.dense

Keys and values are one product because they always have the same input; the query is apart because the last
block of a Combiner asks from M tokens only, while it looks at all N.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirasol_cli.model.config import RopeScalingConfig

NORM_EPS = 1e-6  # ViT's, not torch's 1e-5
BRANCH_INIT_SCALE = 0.1
"""OURS: what a block adds to its residual starts at a tenth (LayerScale, arXiv 2103.17239, does so with factors of its
own). The tokens then reach the text almost as they came in, and a model trained from nothing looks from the first steps
on; with full-size residual branches, training ignored the video for thousands of steps while learning from audio."""


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # ViT, AST, DINOv2, Whisper
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # SigLIP; Flax's default, so TTM's too
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),  # CLIP
}


class Attention(nn.Module):
    """Multi-head attention with biases; queries from one sequence, keys and values from the same or another one."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = linear(width, width)
        self.key_value = linear(width, 2 * width)
        self.out = linear(width, width)

    def forward(self, x_BLD: Tensor, source_BKD: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]. `mask` is bool, broadcast to [B, heads, L, K]; True lets a query see a key."""
        query = split_heads(self.query(x_BLD), self.heads)
        key, value = (split_heads(half, self.heads) for half in self.key_value(source_BKD).chunk(2, dim=-1))
        return self.out(join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))


class FeedForward(nn.Module):
    """Linear, activation, linear. `activation` is a key of `ACTIVATIONS`."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0, activation: str = "gelu", output: int | None = None):
        super().__init__()
        self.up = linear(width, hidden)
        self.down = linear(hidden, output or width)
        self.dropout, self.activation = dropout, activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(ACTIVATIONS[self.activation](self.up(x)), self.dropout, self.training)
        return F.dropout(self.down(x), self.dropout, self.training)


class Block(nn.Module):
    """y = x + Attention(norm1(x)); y + MLP(norm2(y)) (TubeViT Eqs. 1-2), with dropout and stochastic depth."""

    def __init__(
        self, width: int, heads: int, mlp: int, *, dropout: float = 0.0, drop_path: float = 0.0, activation: str = "gelu",
        norm_eps: float = NORM_EPS,
    ):  # fmt: skip
        super().__init__()
        self.norm1 = norm(width, norm_eps)
        self.attention = Attention(width, heads)
        self.norm2 = norm(width, norm_eps)
        self.mlp = FeedForward(width, mlp, dropout=dropout, activation=activation)
        self.dropout, self.drop_path = dropout, drop_path
        self.scale_branches(BRANCH_INIT_SCALE)

    @torch.no_grad()
    def scale_branches(self, factor: float) -> None:
        """Scale what this block adds to its residual."""
        self.attention.out.weight *= factor
        self.mlp.down.weight *= factor

    def forward(self, x_BLD: Tensor, mask: Tensor | None = None, source_BKD: Tensor | None = None) -> Tensor:
        """[B, L, D] -> [B, L, D]. Keys and values come from `source` where it is given, else from `x`."""
        query = self.norm1(x_BLD)
        source = query if source_BKD is None else self.norm1(source_BKD)
        return self.after_attention(x_BLD, self.attention(query, source, mask))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual and the feed-forward half; dimension 0 is the sample that stochastic depth drops as a whole."""
        x = x + self._drop(F.dropout(attended, self.dropout, self.training))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = torch.rand(branch.shape[0], *[1] * (branch.dim() - 1), device=branch.device) >= self.drop_path
        return branch * keep / (1.0 - self.drop_path)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Xavier-uniform weights and zero biases, as in the authors' ViT."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LayerNorm(nn.LayerNorm):
    """In float32, whatever the weights are held in: sharded ones are bf16, which torch's own refuses beside float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype:
            return super().forward(x)
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


def norm(width: int, eps: float = NORM_EPS) -> nn.LayerNorm:
    return LayerNorm(width, eps=eps)


def residual(x: Tensor) -> Tensor:
    """What enters a residual stream: float32 under autocast, whatever made it. Products are in bf16, sums of branches are not, in every
    part and however the weights are held (data parallel or sharded)."""
    return x.float() if not x.is_meta and torch.is_autocast_enabled(x.device.type) else x


def project_width(inputs: int, outputs: int) -> nn.Module:
    """A linear layer where two parts differ in width, nothing where they agree."""
    return nn.Identity() if inputs == outputs else linear(inputs, outputs)


def learned_parameter(*shape: int) -> nn.Parameter:
    """A learned token or embedding, N(0, 0.02)."""
    return nn.Parameter(torch.randn(shape) * 0.02)


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """[..., L, D] -> [..., heads, L, D / heads]."""
    return x_BLD.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """[..., heads, L, D / heads] -> [..., L, D]."""
    return x.transpose(-3, -2).flatten(-2)


def key_mask(valid_BL: Tensor | None) -> Tensor | None:
    """Mask [B, 1, 1, L] that hides invalid tokens. A sequence without any valid token sees itself, which keeps its
    outputs finite; whoever uses them masks them."""
    if valid_BL is None:
        return None
    return (valid_BL | ~valid_BL.any(-1, keepdim=True))[:, None, None, :]


def keep_in_graph(x: Tensor, *parameters: Tensor) -> Tensor:
    """x unchanged, with a zero gradient for parameters that this batch did not need: ranks of a distributed run must
    all have a gradient for all parameters, whatever masks their batches carry."""
    for parameter in parameters:
        x = x + 0.0 * parameter.sum()
    return x


def sine_cosine(coordinates: Tensor, width: int) -> Tensor:
    """Fixed positions [L, width] of `coordinates` [L, axes], interleaved by frequency (TubeViT 3.3, Eqs. 3-7).

    Frequency j of J = width // (2 axes) is 10000^(-j/J); it fills 2 axes channels, (sin, cos) of each axis in turn.
    The paper prints the exponent as a bare j, which underflows after a few frequencies; j/J is the usual form.
    The width mod (2 axes) channels that are left over stay zero.
    """
    count, axes = coordinates.shape
    frequencies = width // (2 * axes)
    omega = 10000.0 ** (-torch.arange(frequencies, dtype=torch.float64) / max(frequencies, 1))
    angles = coordinates.double()[:, None, :] * omega[:, None]  # [L, J, axes]
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(count, -1)
    return F.pad(table, (0, width - table.shape[1])).float()


def rotary_table(positions: Tensor, width: int, theta: float = 10000.0, scaling: RopeScalingConfig | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., width / 2] (float32) of rotary positions [...]; `width` is that of one head."""
    omega = theta ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    if scaling is not None and scaling.factor > 1:
        turns = omega * (scaling.original_max_positions / (2 * math.pi))
        kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
        omega = omega * (kept + (1 - kept) / scaling.factor)
    angles = positions.float()[..., None] * omega
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of the last axis, as Hugging Face's Llama files want it; the tables broadcast against [..., d / 2]."""
    first, second = x.chunk(2, dim=-1)
    cosines, sines = cosines.to(x.dtype), sines.to(x.dtype)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)
