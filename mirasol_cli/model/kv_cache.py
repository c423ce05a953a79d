"""Keys and values of the text so far, in buffers that are allocated once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CacheSlot:
    """One layer's part of the cache during one call: where the new tokens go, and what they may attend to."""

    key_buffer: Tensor  # [R, key/value heads, capacity, d]
    value_buffer: Tensor
    column_RL: Tensor  # int64, buffer column of each new token
    used: int  # columns that any row uses, the new ones included
    mask_R1LC: Tensor | None  # bool; None: nothing came before, the new tokens are causal among themselves

    def write(self, key_RHLd: Tensor, value_RHLd: Tensor) -> None:
        row_R1 = torch.arange(self.column_RL.shape[0], device=self.column_RL.device)[:, None]
        self.key_buffer[row_R1, :, self.column_RL] = key_RHLd.transpose(1, 2).to(self.key_buffer.dtype)
        self.value_buffer[row_R1, :, self.column_RL] = value_RHLd.transpose(1, 2).to(self.value_buffer.dtype)

    @property
    def keys(self) -> Tensor:
        return self.key_buffer[:, :, : self.used]

    @property
    def values(self) -> Tensor:
        return self.value_buffer[:, :, : self.used]


@dataclass(frozen=True)
class Placement:
    """Positions of new tokens, and the slot of every layer."""

    position_RL: Tensor  # int64, for the rotary embedding
    slots: list[CacheSlot]


@dataclass
class TextCache:
    """The cache of R = B * Q rows. Each row fills its own columns from the left; padding is overwritten by what follows."""

    clips: int
    keys: list[Tensor]  # per layer [R, key/value heads, capacity, d]
    values: list[Tensor]
    length_R: Tensor  # int64, tokens of each row
    longest: int = 0  # no row is longer; a plain number, so that no step waits for the device

    @staticmethod
    def empty(
        clips: int, questions: int, layers: int, heads: int, capacity: int, head_width: int, device: torch.device, dtype: torch.dtype
    ) -> TextCache:
        def buffers() -> list[Tensor]:
            # Zeros, not whatever was there: a masked NaN would still spoil the weighted sum.
            return [torch.zeros(clips * questions, heads, capacity, head_width, device=device, dtype=dtype) for _ in range(layers)]

        return TextCache(clips, buffers(), buffers(), torch.zeros(clips * questions, dtype=torch.int64, device=device))

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def append(self, tokens: int) -> Placement:
        """Room for `tokens` further tokens at the end of every row (`advance` then counts them)."""
        position_RL = self.length_R[:, None] + torch.arange(tokens, device=self.length_R.device)
        used = self._room(tokens)
        mask = None
        if self.longest:
            mask = (torch.arange(used, device=position_RL.device) <= position_RL[:, :, None])[:, None]
        return Placement(position_RL, self._slots(position_RL, used, mask))

    def advance(self, tokens: int, count_R: Tensor) -> None:
        """`count_R` of the `tokens` just written are real; the rest is padding."""
        self.length_R = self.length_R + count_R
        self.longest += tokens

    def append_trie(self, depth_RN: Tensor, ancestor_RNN: Tensor) -> Placement:
        """Room for a tree of continuations behind all rows; the next call overwrites it."""
        rows, nodes = depth_RN.shape
        used = self._room(nodes)
        column_RN = torch.arange(self.longest, used, device=depth_RN.device).expand(rows, -1)
        text_RNC = (torch.arange(self.longest, device=depth_RN.device) < self.length_R[:, None])[:, None].expand(-1, nodes, -1)
        mask = torch.cat((text_RNC, ancestor_RNN), dim=2)[:, None]
        return Placement(self.length_R[:, None] + depth_RN, self._slots(column_RN, used, mask))

    def repeat(self, times: int) -> TextCache:
        """Every row `times` times in a row: the start of a beam search."""
        keys, values = ([part.repeat_interleave(times, dim=0) for part in side] for side in (self.keys, self.values))
        return TextCache(self.clips, keys, values, self.length_R.repeat_interleave(times), self.longest)

    def reorder(self, source_R: Tensor) -> None:
        """Row i goes on from row source_R[i]; only used columns are moved."""
        for buffer in (*self.keys, *self.values):
            buffer[:, :, : self.longest] = buffer[source_R, :, : self.longest]
        self.length_R = self.length_R[source_R]

    def _room(self, tokens: int) -> int:
        used = self.longest + tokens
        if used > self.capacity:
            raise ValueError(f"{used} tokens do not fit into a text cache of {self.capacity}")
        return used

    def _slots(self, column_RL: Tensor, used: int, mask: Tensor | None) -> list[CacheSlot]:
        return [CacheSlot(keys, values, column_RL, used, mask) for keys, values in zip(self.keys, self.values, strict=True)]
