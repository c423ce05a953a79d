"""Mirasol: two autoregressions, one over chunks of picture and sound, one over text, tied by cross-attention.

tubes, spectrogram -> tokens -> encoder (each chunk alone) -> Combiner (N -> M tokens a chunk)
    -> latents, autoregressive in chunks -> text decoder, cross-attending to the latents of all chunks (and to a TTM's memory)
                                         -> next chunk's Combiner output, thumbnails, spectrogram (losses)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirasol_cli.fields import FieldError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.model.batch import MediaBatch, TextBatch, TrainingInputs
from mirasol_cli.model.chunk_causal import ChunkCache
from mirasol_cli.model.combiner import CombinerState, build_combiner
from mirasol_cli.model.config import ModelConfig
from mirasol_cli.model.latent import LatentModel
from mirasol_cli.model.layers import Block
from mirasol_cli.model.lora import add_lora
from mirasol_cli.model.losses import Losses
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.model.text_decoder import CrossAttention, DecoderLayer, TextDecoder, TextKV
from mirasol_cli.model.tokens import Encoder, TubeTokens, build_audio_tokens


@dataclass(frozen=True)
class Encoded:
    """What the text decoder and the losses need of B clips."""

    combined_BTMD: Tensor  # Combiner outputs x_t
    latents_BTMD: Tensor  # h_t, of chunks up to t
    memory_BKD: Tensor | None  # a TTM's memory after the last chunk, of all chunks that were ever fed
    valid_BT: Tensor | None  # False for chunks that only pad a shorter clip
    present_BT: Tensor  # chunks that hold any picture or sound


@dataclass(frozen=True)
class StreamState:
    """What the chunks still to come need of those already fed."""

    combiner: CombinerState
    latent: ChunkCache


class Mirasol(nn.Module):
    """The whole model. Parts: video_tokens, audio_tokens, encoder (or video_encoder and audio_encoder), combiner,
    latent, objectives, text.

    Args:
        losses: names of the losses that it can give (`OBJECTIVES`); only their parameters exist, so that each gets a gradient.

    Raises SettingError where sizes do not fit together.
    """

    def __init__(self, config: ModelConfig, geometry: ClipGeometry, vocab_size: int, losses: Iterable[str] = ("text", "latent", "video")):
        super().__init__()
        self.config, self.geometry, self.vocab_size, self.losses = config, geometry, vocab_size, tuple(losses)
        video, audio = config.video_trunk, config.audio_trunk
        width = video.width if video.width == audio.width else config.combiner.width  # where they differ, each is projected by itself
        self.video_tokens = TubeTokens(geometry, video.width)
        self.audio_tokens = build_audio_tokens(geometry.audio, audio.width)
        if config.encoder.share:
            self.encoder = Encoder(config.encoder)
        else:
            self.video_encoder, self.audio_encoder = Encoder(video, width), Encoder(audio, width)
        self.combiner = build_combiner(config.combiner, width, geometry.tokens_per_chunk)
        slots = 0 if config.combiner.kind == "none" else config.combiner.num_outputs
        self.latent = LatentModel(config.latent, config.combiner.width, slots)
        built = {name: objective.build(config, geometry) for name, objective in OBJECTIVES.items() if name in self.losses}
        self.objectives = nn.ModuleDict({name: module for name, module in built.items() if module is not None})
        ttm_memory = (config.combiner.memory_tokens, config.combiner.width) if config.combiner.kind == "ttm" else None
        self.text = TextDecoder(config.text, vocab_size, config.latent.width, ttm_memory)
        add_lora(self, config.lora)

    # Sound and picture ------------------------------------------------------------------------------------------

    def encode(self, media: MediaBatch, masked_BT: Tensor | None = None, turns_BR: Tensor | None = None) -> Encoded:
        """All chunks at once.

        Args:
            masked_BT: bool, chunks that are hidden from the latent model.
            turns_BR: int64, the chunks that the Combiner takes one after the other, in order, as often as it says, and -1 for
                none; a chunk's outputs are those of its last turn. None: each chunk once.
        """
        tokens, valid = self._tokens(media)
        present = _present(tokens, valid)
        if turns_BR is None:
            combined, memory = self.combiner(tokens, valid)
        else:
            combined, memory = self.combiner(*in_turn(tokens, valid, turns_BR))
            combined = last_turns(combined, turns_BR, tokens.shape[1])
        latents = self.latent(combined, masked_BT, media.chunk_valid_BT)
        return Encoded(combined, latents, _ttm_memory(memory), media.chunk_valid_BT, present)

    def encode_stream(
        self, media: MediaBatch, state: StreamState | None = None, *, window: int | None = None
    ) -> tuple[Encoded, StreamState]:
        """The chunks in `media`, which follow those that made `state`. Equal to `encode` of all of them; memory stays
        constant with a TTM Combiner (or one that sees its chunk only) and a latent window. `window` replaces
        `config.latent.window`: chunks that a latent looks back on, itself included; 0: all."""
        tokens, valid = self._tokens(media)
        combined, memory = self.combiner(tokens, valid, state.combiner if state else None)
        latents, cache = self.latent.append(combined, media.chunk_valid_BT, state.latent if state else None, window=window)
        encoded = Encoded(combined, latents, _ttm_memory(memory), media.chunk_valid_BT, _present(tokens, valid))
        return encoded, StreamState(memory, cache)

    def _tokens(self, media: MediaBatch) -> tuple[Tensor, Tensor | None]:
        """Encoded tokens [B, T, N, D], picture first, and which are valid. Both modalities always run, masked or not,
        so that every process of a distributed run has a gradient for all parameters."""
        video = self.video_tokens(media.tubes, media.flip_B)
        audio = self.audio_tokens(media.mel_BTZS)
        video_encoder = self.encoder if self.config.encoder.share else self.video_encoder
        audio_encoder = self.encoder if self.config.encoder.share else self.audio_encoder
        video = video_encoder(video, media.video_valid_BTN)
        audio = audio_encoder(audio, media.audio_valid_BTN)
        return torch.cat([video, audio], dim=2), _token_valid(media, video, audio)

    # Text -------------------------------------------------------------------------------------------------------

    def text_kv(self, encoded: Encoded, memory_only_B: Tensor | None = None) -> TextKV:
        """Keys and values of every cross-attention layer, once per clip. A clip of `memory_only_B` hides its latents, so that
        the text has the Combiner's memory alone, as for what a long video showed before the window of its latents."""
        valid = encoded.valid_BT
        if memory_only_B is not None:
            seen_B1 = ~memory_only_B[:, None]
            valid = seen_B1.expand(encoded.latents_BTMD.shape[:2]) if valid is None else valid & seen_B1
        slots = encoded.latents_BTMD.shape[2]
        valid_BK = None if valid is None else valid.repeat_interleave(slots, dim=1)
        return self.text.project_kv(encoded.latents_BTMD.flatten(1, 2), valid_BK, encoded.memory_BKD)

    # Losses -----------------------------------------------------------------------------------------------------

    def forward(
        self, media: MediaBatch, text: TextBatch | None, weights: Mapping[str, float], extra: TrainingInputs | None = None
    ) -> Losses:
        """Every loss with a weight above zero that this batch can give; `weights` are by name (`OBJECTIVES`).

        Raises SettingError for a loss that the model was built without.
        """
        extra = extra or TrainingInputs()
        encoded = self.encode(media, extra.masked_BT, extra.turns_BR)
        losses = Losses(latents_BTMD=encoded.latents_BTMD.detach(), present_BT=encoded.present_BT)
        for name, weight in weights.items():
            if weight > 0 and name not in self.losses:
                raise FieldError(name, f"loss weight {weight}, but the model was built for {', '.join(self.losses)} only")
            if weight > 0 and (text is not None or not OBJECTIVES[name].reads_text):
                losses.parts[name] = OBJECTIVES[name].forward(self, encoded, media, text, extra)
        return losses

    # What it is made of -----------------------------------------------------------------------------------------

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules of each part, in the order of the data; two encoders are one part."""
        encoders: list[nn.Module] = [self.encoder] if self.config.encoder.share else [self.video_encoder, self.audio_encoder]
        return {
            "video_tokens": [self.video_tokens], "audio_tokens": [self.audio_tokens], "encoder": encoders,
            "combiner": [self.combiner], "latent": [self.latent], "objectives": [self.objectives], "text": [self.text],
        }  # fmt: skip

    def blocks(self) -> list[nn.Module]:
        """The Transformer layers: what is compiled, recomputed and sharded one by one."""
        return [module for module in self.modules() if isinstance(module, (Block, DecoderLayer, CrossAttention))]


def _ttm_memory(state: CombinerState) -> Tensor | None:
    """A TTM's memory; what other Combiners hand on is no summary that text could read."""
    return state if isinstance(state, Tensor) else None


def _token_valid(media: MediaBatch, video: Tensor, audio: Tensor) -> Tensor | None:
    """bool [B, T, N] over picture and sound; None when everything is valid."""
    if media.video_valid_BTN is None and media.audio_valid_BTN is None and media.chunk_valid_BT is None:
        return None
    parts = [
        torch.ones(x.shape[:3], dtype=torch.bool, device=x.device) if valid is None else valid
        for x, valid in ((video, media.video_valid_BTN), (audio, media.audio_valid_BTN))
    ]
    valid = torch.cat(parts, dim=2)
    return valid if media.chunk_valid_BT is None else valid & media.chunk_valid_BT[..., None]


def _present(tokens: Tensor, valid_BTN: Tensor | None) -> Tensor:
    """bool [B, T]: chunks with any valid token."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if valid_BTN is None else valid_BTN.any(-1)


def in_turn(x_BTND: Tensor, valid_BTN: Tensor | None, turns_BR: Tensor) -> tuple[Tensor, Tensor]:
    """The chunks of every turn [B, R, N, D], and which of their tokens are valid [B, R, N]: none at a turn of -1."""
    clip, chunk = torch.arange(len(turns_BR), device=turns_BR.device)[:, None], turns_BR.clamp(min=0)
    taken = (turns_BR >= 0)[..., None].expand(-1, -1, x_BTND.shape[2])
    return x_BTND[clip, chunk], taken if valid_BTN is None else taken & valid_BTN[clip, chunk]


def last_turns(x_BRMD: Tensor, turns_BR: Tensor, chunks: int) -> Tensor:
    """[B, R, M, D] -> [B, T, M, D]: each chunk's last turn."""
    turn = torch.arange(turns_BR.shape[1], device=turns_BR.device)
    chunk = torch.arange(chunks, device=turns_BR.device)
    last_BT = torch.where(turns_BR[:, None] == chunk[:, None], turn, 0).amax(-1)
    return x_BRMD[torch.arange(len(turns_BR), device=turns_BR.device)[:, None], last_BT]
