"""The text model: a decoder-only Transformer in the layout of Llama-format checkpoints, with cross-attention to the latents.

Text rows are the Q questions of B clips, padded on the right. Self-attention sees B*Q independent rows; cross-attention
folds a clip's questions into the query axis, [B, Q*L] queries against [B, K] keys, so that keys and values are projected
once per clip and never copied.

Mirasol3B (section 3.4) gives no details of this model; size, placing of the cross-attention and gates are OURS.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirasol_cli.model.config import TextConfig
from mirasol_cli.model.kv_cache import CacheSlot, TextCache
from mirasol_cli.model.layers import join_heads, project_width, residual, rotary_table, rotate, split_heads

Rotary = tuple[Tensor, Tensor]  # cosines and sines [1 or R, 1, L, d / 2], the same for all heads


@dataclass(frozen=True)
class TextKV:
    """What the text attends to: keys and values of every cross-attention layer, projected once per clip."""

    keys: tuple[Tensor, ...]  # per cross-attention layer [B, key/value heads, K, head width]
    values: tuple[Tensor, ...]
    valid_BK: Tensor | None = None  # bool, latents first, then the Combiner's memory; None: all may be attended to

    def mask(self) -> tuple[Tensor | None, Tensor | None]:
        """(attention mask [B, 1, 1, K], present [B, 1, 1]), both bool, or (None, None) where all is valid.

        A clip without any valid latent gets an open mask, since a softmax over nothing is NaN, and present = False,
        by which its output is set to zero.
        """
        if self.valid_BK is None:
            return None, None
        present_B1 = self.valid_BK.any(dim=1, keepdim=True)
        return (self.valid_BK | ~present_B1)[:, None, None, :], present_B1[:, :, None]


class TextDecoder(nn.Module):
    """Tokens to next-token logits, given the latents of the clip.

    Args:
        config: sizes. `gate: closed` starts every cross-attention at exactly zero, so that a pretrained decoder starts
            as the language model it was.
        vocab_size: V.
        latent_width: width of the latents.
        ttm_memory: number and width of the tokens that the Combiner's memory adds to them; None: it has no memory.
    """

    def __init__(self, config: TextConfig, vocab_size: int, latent_width: int, ttm_memory: tuple[int, int] | None = None):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.cross_layers = nn.ModuleList(CrossAttention(config) for _ in range(config.layers // config.cross_attention_every))
        self.kv_proj = TextKVProjection(config, latent_width, len(self.cross_layers), ttm_memory)
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.width, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """OURS: fan-in scaled normal weights; what is added to the residual stream starts smaller by sqrt(2 * layers)."""
        branches = (2 * self.config.layers) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                scale = branches if name.endswith(("o_proj", "down_proj")) else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.width**-0.5)

    def project_kv(self, latents_BKD: Tensor, valid_BK: Tensor | None = None, ttm_memory_BED: Tensor | None = None) -> TextKV:
        """Keys and values for every cross-attention layer, once per clip.

        Args:
            latents_BKD: latents of all chunks, in the order of time (chunk by chunk, K = T * M).
            valid_BK: bool, False for latents of padding chunks; None: all valid. A clip may have none at all.
            ttm_memory_BED: the Combiner's memory after the last chunk, where it has one; always valid.
        """
        keys, values = self.kv_proj(latents_BKD, valid_BK, ttm_memory_BED)
        if valid_BK is not None and ttm_memory_BED is not None:
            valid_BK = F.pad(valid_BK, (0, ttm_memory_BED.shape[1]), value=True)
        return TextKV(keys, values, valid_BK)

    def forward(self, tokens_BQL: Tensor, valid_BQL: Tensor | None = None, text_kv: TextKV | None = None) -> Tensor:
        """Next-token logits [B, Q, L, V] of right-padded rows; those at padding mean nothing.

        Args:
            tokens_BQL: int64 ids; padding may hold any number.
            valid_BQL: bool, real tokens; None: no padding.
            text_kv: from `project_kv`; None leaves the cross-attention out (text alone).
        """
        return self.logits(self.hidden(tokens_BQL, valid_BQL, text_kv))

    def hidden(self, tokens_BQL: Tensor, valid_BQL: Tensor | None = None, text_kv: TextKV | None = None) -> Tensor:
        """States [B, Q, L, D] after the final norm, before the output layer."""
        if valid_BQL is not None:
            tokens_BQL = tokens_BQL.masked_fill(~valid_BQL, 0)
        position_1L = torch.arange(tokens_BQL.shape[2], device=tokens_BQL.device)[None]
        return self._run(tokens_BQL, position_1L, text_kv, None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Output layer: [..., D] to [..., V]."""
        return F.linear(hidden, self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)

    def target_loss(
        self,
        tokens_BQL: Tensor,
        valid_BQL: Tensor | None,
        target_BQL: Tensor,
        text_kv: TextKV | None = None,
        label_smoothing: float = 0.0,
        weight_BQ: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the target tokens, each predicted from what stands before it: (sum in nats, count).

        Only the rows before a target token pass the output layer. Without any target the sum is a zero that still
        reaches every parameter, as distributed training needs.

        Args:
            target_BQL: bool, tokens that carry loss. The first token of a row has nothing before it and never counts.
            weight_BQ: float32, what each token of a row counts, in the sum and in the count; None: 1.
        """
        hidden_BQLD = self.hidden(tokens_BQL, valid_BQL, text_kv)
        wanted = target_BQL[:, :, 1:]
        logits_NV = self.logits(hidden_BQLD[:, :, :-1][wanted])
        target_N = tokens_BQL[:, :, 1:][wanted]
        if weight_BQ is None:
            return F.cross_entropy(logits_NV.float(), target_N, reduction="sum", label_smoothing=label_smoothing), wanted.sum()
        weight_N = weight_BQ[:, :, None].expand(wanted.shape)[wanted]
        loss_N = F.cross_entropy(logits_NV.float(), target_N, reduction="none", label_smoothing=label_smoothing)
        return (weight_N * loss_N).sum(), weight_N.sum()

    # Decoding token by token ------------------------------------------------------------------------------------

    def start_cache(self, clips: int, questions: int, capacity: int) -> TextCache:
        """An empty cache for `clips` x `questions` rows of at most `capacity` tokens."""
        weight = self.embed_tokens.weight
        device = weight.device
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else weight.dtype
        config = self.config
        return TextCache.empty(clips, questions, config.layers, config.kv_heads, capacity, config.head_width, device, dtype)

    def step(self, tokens_BQL: Tensor, cache: TextCache, text_kv: TextKV | None = None, valid_BQL: Tensor | None = None) -> Tensor:
        """Append tokens to every row; returns the logits [B, Q, V] that follow each row's last token.

        The first call takes the whole prompts (right-padded, told by `valid_BQL`), later ones usually L = 1. Rows may
        have different lengths: each goes on where its own tokens ended. Raises ValueError beyond the cache's capacity.
        """
        B, Q, L = tokens_BQL.shape
        if valid_BQL is not None:
            tokens_BQL = tokens_BQL.masked_fill(~valid_BQL, 0)
        place = cache.append(L)
        hidden_BQLD = self._run(tokens_BQL, place.position_RL, text_kv, place.slots)
        count_BQ = torch.full((B, Q), L, device=tokens_BQL.device) if valid_BQL is None else valid_BQL.sum(dim=2)
        cache.advance(L, count_BQ.flatten())
        last_BQ1D = (count_BQ - 1).clamp(min=0)[:, :, None, None].expand(-1, -1, 1, hidden_BQLD.shape[3])
        return self.logits(hidden_BQLD.gather(2, last_BQ1D).squeeze(2))

    def decode_trie(
        self, tokens_BQN: Tensor, depth_BQN: Tensor, ancestor_BQNN: Tensor, cache: TextCache, text_kv: TextKV | None = None
    ) -> Tensor:
        """States [B, Q, N, D] of a tree of continuations of the cached rows, all in one pass; the cache goes on as before.

        Args:
            tokens_BQN: int64, one token per node of the tree.
            depth_BQN: int64, tokens between the cached row and the node (0: follows the row directly).
            ancestor_BQNN: bool, [.., i, j]: node i continues from node j or is it.
        """
        place = cache.append_trie(depth_BQN.flatten(0, 1), ancestor_BQNN.flatten(0, 1))
        return self._run(tokens_BQN, place.position_RL, text_kv, place.slots)

    def _run(self, tokens_BQL: Tensor, position_RL: Tensor, text_kv: TextKV | None, slots: list[CacheSlot] | None) -> Tensor:
        B, Q, L = tokens_BQL.shape
        x_RLD = F.dropout(residual(self.embed_tokens(tokens_BQL)).flatten(0, 1), self.config.dropout, self.training)
        cosines, sines = rotary_table(position_RL, self.config.head_width, self.config.rope_theta, self.config.rope_scaling)
        rotary = cosines[:, None], sines[:, None]
        mask, present = (None, None) if text_kv is None else text_kv.mask()
        for number, layer in enumerate(self.layers):
            x_RLD = layer(x_RLD, rotary, None if slots is None else slots[number])
            cross, rest = divmod(number + 1, self.config.cross_attention_every)
            if text_kv is not None and not rest:
                x_BqD = x_RLD.view(B, Q * L, -1)
                x_BqD = self.cross_layers[cross - 1](x_BqD, text_kv.keys[cross - 1], text_kv.values[cross - 1], mask, present)
                x_RLD = x_BqD.view(B * Q, L, -1)
        return self.norm(x_RLD).view(B, Q, L, -1)


class DecoderLayer(nn.Module):
    """One Llama layer: pre-norm self-attention and gated MLP, each with a residual."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dropout = config.dropout
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, x_RLD: Tensor, rotary: Rotary, slot: CacheSlot | None = None) -> Tensor:
        x_RLD = x_RLD + F.dropout(self.self_attn(self.input_layernorm(x_RLD), rotary, slot), self.dropout, self.training)
        return x_RLD + F.dropout(self.mlp(self.post_attention_layernorm(x_RLD)), self.dropout, self.training)


class SelfAttention(nn.Module):
    """Causal grouped-query attention with rotary positions. Padding on the right needs no mask: nothing before it sees it."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        wide, narrow = config.heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, wide, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, narrow, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, narrow, bias=config.qkv_bias)
        self.o_proj = nn.Linear(wide, config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_width, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_width, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_RLD: Tensor, rotary: Rotary, slot: CacheSlot | None) -> Tensor:
        query = rotate(self.q_norm(split_heads(self.q_proj(x_RLD), self.heads)), *rotary)
        key = rotate(self.k_norm(split_heads(self.k_proj(x_RLD), self.kv_heads)), *rotary)
        value = split_heads(self.v_proj(x_RLD), self.kv_heads)
        if slot is not None:
            slot.write(key, value)
        if slot is None or slot.mask_R1LC is None:
            mixed = attend(query, key, value, causal=True)
        else:
            mixed = attend(query, slot.keys, slot.values, mask=slot.mask_R1LC)
        return self.o_proj(join_heads(mixed))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_dim, bias=False)
        self.down_proj = nn.Linear(config.mlp_dim, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class CrossAttention(nn.Module):
    """Attention of text to latents behind a tanh gate, with a residual. Keys and values come from `TextKVProjection`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        wide = config.heads * config.head_width
        self.q_proj = nn.Linear(config.width, wide, bias=False)
        self.o_proj = nn.Linear(wide, config.width, bias=False)
        # One number, not a scalar tensor: sharded training takes no parameters without a dimension.
        self.gate = nn.Parameter(torch.full((1,), 1.0 if config.cross_attention_gate_init == "open" else 0.0))

    def forward(self, x_BqD: Tensor, keys: Tensor, values: Tensor, mask_B11K: Tensor | None, present_B11: Tensor | None) -> Tensor:
        query = split_heads(self.q_proj(self.norm(x_BqD)), self.heads)
        mixed_BqD = self.o_proj(join_heads(attend(query, keys, values, mask=mask_B11K)))
        if present_B11 is not None:
            mixed_BqD = mixed_BqD * present_B11
        return x_BqD + F.dropout(torch.tanh(self.gate) * mixed_BqD, self.dropout, self.training)


class TextKVProjection(nn.Module):
    """Latents, and behind them the Combiner's memory where it has one, to the keys and values of every cross-attention layer.

    OURS: the latents are normalised and receive a fixed sine/cosine of their place in the sequence. The latent model
    knows chunks only by rotary angles, which leave no trace in its outputs; without this, "what comes last?" could
    only be answered through whatever order the latents happen to encode. A memory's tokens have no place in time: each
    has a learned vector of its own, of the same scale.
    """

    def __init__(self, config: TextConfig, latent_width: int, cross_layers: int, ttm_memory: tuple[int, int] | None = None):
        super().__init__()
        self.kv_heads = config.kv_heads
        narrow = config.kv_heads * config.head_width
        self.norm = nn.RMSNorm(latent_width, eps=config.norm_eps)
        if ttm_memory is not None:
            count, width = ttm_memory
            self.input_proj = project_width(width, latent_width)
            self.memory_norm = nn.RMSNorm(latent_width, eps=config.norm_eps)
            self.memory_position = nn.Parameter(torch.randn(count, latent_width) * 0.5**0.5)  # the scale of sines and cosines
        self.k_proj = nn.ModuleList(nn.Linear(latent_width, narrow, bias=False) for _ in range(cross_layers))
        self.v_proj = nn.ModuleList(nn.Linear(latent_width, narrow, bias=False) for _ in range(cross_layers))

    def forward(
        self, latents_BKD: Tensor, valid_BK: Tensor | None, ttm_memory_BED: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if valid_BK is not None:
            latents_BKD = latents_BKD.masked_fill(~valid_BK[:, :, None], 0)
        position_K = torch.arange(latents_BKD.shape[1], device=latents_BKD.device)
        x_BKD = self.norm(latents_BKD)
        x_BKD = x_BKD + sine_positions(position_K, latents_BKD.shape[2]).to(x_BKD.dtype)
        if ttm_memory_BED is not None:
            x_BKD = torch.cat(
                [x_BKD, self.memory_norm(self.input_proj(ttm_memory_BED).to(self.memory_position.dtype)) + self.memory_position], dim=1
            )
        # Each head's in one piece: decoding reads them again for every token.
        keys = tuple(split_heads(project(x_BKD), self.kv_heads).contiguous() for project in self.k_proj)
        values = tuple(split_heads(project(x_BKD), self.kv_heads).contiguous() for project in self.v_proj)
        return keys, values


def attend(query: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Softmax attention of [R, heads, L, d] queries; keys and values [R, key/value heads, C, d] serve groups of heads."""
    R, heads, L, d = query.shape
    groups = heads // keys.shape[1]
    if groups > 1 and not causal and (mask is None or mask.shape[2] == 1):
        # The queries of a group are so many more queries to the same keys: nothing is repeated.
        folded = query.reshape(R, keys.shape[1], groups * L, d)
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask).reshape(R, heads, L, d)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1)


def sine_positions(position: Tensor, width: int) -> Tensor:
    """Fixed sine/cosine code, float32 [..., width], of positions [...]; an odd last channel stays zero."""
    half = width // 2
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=position.device) / half)
    angle = position[..., None].float() * rate
    return F.pad(torch.cat((angle.sin(), angle.cos()), dim=-1), (0, width - 2 * half))
