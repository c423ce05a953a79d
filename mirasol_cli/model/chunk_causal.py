"""Transformer over chunks of tokens, causal in chunks: every token sees its own chunk and the chunks before, whole.

Used twice: as the latent model (M tokens per chunk) and as the Combiner that sees history (N tokens per chunk).
OURS: positions are rotary and count chunks; inside a chunk the tokens carry what tells them apart.
Shapes: C chunks that are looked at, the cached ones included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirasol_cli.model.layers import Block, join_heads, norm, rotary_table, rotate, split_heads

KeyValue = tuple[Tensor, Tensor]  # each [B, heads, C, N, D / heads]

BLOCK_TOKENS = 256
"""Queries that share one attention call on a CPU. Measured, forward and backward, 8 or 32 tokens a chunk: one call per chunk
pays for its many small slices, one dense masked call for twice the products; at 2,048 tokens 256 takes about 0.6 of either.
Elsewhere each chunk has its own call, which needs no mask, so that the fast kernels run."""


@dataclass(frozen=True)
class ChunkCache:
    """What later chunks need of the earlier ones: keys and values per layer, and which of their tokens are valid."""

    layers: tuple[KeyValue, ...]
    valid_BCN: Tensor
    chunks: int  # seen so far, including those that a window has dropped


@dataclass(frozen=True)
class QueryBlock:
    """Neighbouring query chunks, the key chunks that any of them sees, and the mask between their tokens (None: all)."""

    queries: slice
    keys: slice
    mask: Tensor | None  # bool [1 or B, 1, query tokens or 1, key tokens]


class ChunkBlock(Block):
    """A block whose attention is causal in chunks. Same weights as `Block`."""

    def forward(  # type: ignore[override]
        self,
        x_BTLD: Tensor,
        source_BTND: Tensor,
        blocks: list[QueryBlock],
        rotary: tuple[Tensor, Tensor],
        past: KeyValue | None,
    ) -> tuple[Tensor, KeyValue]:
        """Queries x [B, T, L, D] at the chunks of memory [B, T, N, D]; also returns keys and values, past included."""
        heads = self.attention.heads
        normed = self.norm1(x_BTLD)
        query = rotate(_heads_first(self.attention.query(normed), heads), *rotary)
        source = normed if source_BTND is x_BTLD else self.norm1(source_BTND)
        key, value = (_heads_first(half, heads) for half in self.attention.key_value(source).chunk(2, dim=-1))
        key, value = rotate(key, *rotary), value.contiguous()  # copied once here, not once for each block of queries
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        attended = chunk_causal_attention(query, key, value, blocks)
        return self.after_attention(x_BTLD, self.attention.out(join_heads(attended.transpose(1, 2)))), (key, value)


class ChunkTransformer(nn.Module):
    """`layers` chunk-causal blocks and a final LayerNorm; with a window, a chunk looks back on window - 1 others."""

    def __init__(self, width: int, heads: int, mlp: int, layers: int, *, window: int = 0, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(ChunkBlock(width, heads, mlp, dropout=dropout) for _ in range(layers))
        self.norm = norm(width)
        self.head_width, self.window = width // heads, window

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None) -> Tensor:
        """[B, T, N, D] -> [B, T, N, D], all chunks at once."""
        return self._run(x_BTND, valid_BTN, None, None, self.window)[0]

    def append(
        self,
        x_BTND: Tensor,
        valid_BTN: Tensor | None = None,
        cache: ChunkCache | None = None,
        keep: Callable[[Tensor], Tensor] | None = None,
        *,
        window: int | None = None,
    ) -> tuple[Tensor, ChunkCache]:
        """As `forward` for chunks that follow those in `cache`; equal to running all of them at once.

        [B, T, N, D] -> [B, T, N, D], or [B, T, L, D] where `keep` picks L tokens of a chunk as the only outputs.
        `window` replaces the one it was built with.
        """
        window = self.window if window is None else window
        x, layers = self._run(x_BTND, valid_BTN, cache, keep, window)
        valid = torch.ones(x_BTND.shape[:3], dtype=torch.bool, device=x.device) if valid_BTN is None else valid_BTN
        if cache is not None:
            valid = torch.cat([cache.valid_BCN, valid], dim=1)
        chunks = x_BTND.shape[1] + (cache.chunks if cache is not None else 0)
        start = max(0, valid.shape[1] - (window - 1)) if window else 0
        kept = tuple((key[:, :, start:], value[:, :, start:]) for key, value in layers)
        return x, ChunkCache(kept, valid[:, start:], chunks)

    def _run(
        self, x: Tensor, valid_BTN: Tensor | None, cache: ChunkCache | None, keep: Callable[[Tensor], Tensor] | None, window: int
    ) -> tuple[Tensor, list[KeyValue]]:
        seen, past = (cache.chunks, cache.valid_BCN.shape[1]) if cache is not None else (0, 0)
        if cache is not None:
            own = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device) if valid_BTN is None else valid_BTN
            valid_BTN = torch.cat([cache.valid_BCN, own], dim=1)
        spans = Spans(valid_BTN, past, x.shape[1], x.shape[2], window, x.device)
        blocks = spans.blocks(x.shape[2])
        cosines, sines = rotary_table(torch.arange(seen, seen + x.shape[1], device=x.device), self.head_width)
        rotary = cosines[:, None], sines[:, None]  # one rotation for all tokens of a chunk
        layers: list[KeyValue] = []
        for index, block in enumerate(self.blocks):
            last = index == len(self.blocks) - 1
            queries = keep(x) if last and keep is not None else x
            if queries is not x:
                blocks = spans.blocks(queries.shape[2])
            x, key_value = block(queries, x, blocks, rotary, cache.layers[index] if cache is not None else None)
            layers.append(key_value)
        return self.norm(x), layers


@dataclass(frozen=True)
class Spans:
    """Who sees whom: a chunk sees the valid tokens of the chunks in its window, itself included. A chunk without any
    valid token sees all of its own, so that its outputs stay finite; whoever uses them masks them."""

    valid_BCN: Tensor | None  # of all keys, the cached ones included; None: all
    past: int  # cached chunks
    chunks: int  # T, query chunks
    tokens: int  # N, keys of a chunk
    window: int  # 0: all
    device: torch.device

    def blocks(self, queries: int) -> list[QueryBlock]:
        """Blocks of about BLOCK_TOKENS queries, for L = `queries` tokens per query chunk."""
        size = max(1, BLOCK_TOKENS // queries) if self.device.type == "cpu" else 1
        starts = range(0, self.chunks, size)
        return [self._block(start, min(start + size, self.chunks), queries) for start in starts]

    def _block(self, start: int, end: int, queries: int) -> QueryBlock:
        first = max(0, self.past + start + 1 - self.window) if self.window else 0
        keys = slice(first, self.past + end)
        if end - start == 1 and self.valid_BCN is None:
            return QueryBlock(slice(start, end), keys, None)
        query = torch.arange(self.past + start, self.past + end, device=self.device)[:, None]
        key = torch.arange(first, self.past + end, device=self.device)
        seen_TC = key <= query
        if self.window:
            seen_TC = seen_TC & (key > query - self.window)
        if self.valid_BCN is None:
            mask = seen_TC[None, :, :, None].expand(-1, -1, -1, self.tokens)
        else:
            valid = self.valid_BCN[:, None, keys]  # [B, 1, C, N]
            own_and_empty = (key == query)[None, :, :, None] & ~valid.any(-1, keepdim=True)
            mask = seen_TC[None, :, :, None] & (valid | own_and_empty)
        mask = mask.flatten(2)  # [1 or B, query chunks, key tokens]
        if end - start > 1:
            mask = mask.repeat_interleave(queries, dim=1)
        return QueryBlock(slice(start, end), keys, mask[:, None])


def chunk_causal_attention(query_BhTLd: Tensor, key_BhCNd: Tensor, value_BhCNd: Tensor, blocks: list[QueryBlock]) -> Tensor:
    """[B, h, T, L, d]: one attention per block of query chunks, over just the keys that the block sees."""
    outputs = []
    for block in blocks:
        query = query_BhTLd[:, :, block.queries]
        key, value = key_BhCNd[:, :, block.keys].flatten(2, 3), value_BhCNd[:, :, block.keys].flatten(2, 3)
        attended = F.scaled_dot_product_attention(query.flatten(2, 3), key, value, attn_mask=block.mask)
        outputs.append(attended.unflatten(2, query.shape[2:4]))
    return torch.cat(outputs, dim=2)


def _heads_first(x_BTND: Tensor, heads: int) -> Tensor:
    """[B, T, N, D] -> [B, heads, T, N, D / heads]."""
    return split_heads(x_BTND, heads).transpose(1, 2)
