"""Mirasol: two autoregressions, one over chunks of picture and sound, one over text, tied by cross-attention.

tubes, spectrogram -> tokens -> encoder (each chunk alone) -> Combiner (N -> M tokens a chunk)
    -> latents, autoregressive in chunks -> text decoder, cross-attending to the latents of all chunks (and to a TTM's memory)
                                         -> next chunk's Combiner output, thumbnails, spectrogram (losses)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.model.chunk_causal import ChunkCache
from mirasol_cli.model.combiner import CombinerState, build_combiner
from mirasol_cli.model.config import ModelConfig
from mirasol_cli.model.encoders import Encoder, SpectrogramTokens, TubeTokens
from mirasol_cli.model.inputs import MediaBatch, TextBatch
from mirasol_cli.model.latent import LatentModel
from mirasol_cli.model.losses import ContrastiveHead, Losses, LossPart, LossWeights, Prediction, consecutive, latent_loss
from mirasol_cli.model.reconstruction import Reconstruction
from mirasol_cli.model.text_decoder import CrossMemory, TextDecoder


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
    latent, reconstruction, contrastive, text. Only the heads in `config.heads` exist.

    Raises SettingError where sizes do not fit together.
    """

    def __init__(self, config: ModelConfig, geometry: ClipGeometry, vocab_size: int):
        super().__init__()
        self.config, self.geometry, self.vocab_size = config, geometry, vocab_size
        width, heads = config.encoder.width, config.heads
        self.video_tokens = TubeTokens(geometry, width)
        self.audio_tokens = SpectrogramTokens(geometry.audio, width)
        if config.encoder.share:
            self.encoder = Encoder(config.encoder)
        else:
            self.video_encoder, self.audio_encoder = Encoder(config.encoder), Encoder(config.encoder)
        self.combiner = build_combiner(config.combiner, width, geometry.tokens_per_chunk)
        slots = 0 if config.combiner.kind == "none" else config.combiner.outputs
        self.latent = LatentModel(config.latent, config.combiner.width, slots, predict="latent" in heads)
        rebuilds = "video" in heads or "audio" in heads
        self.reconstruction = Reconstruction(config.reconstruction, config.latent.width, geometry.audio, heads) if rebuilds else None
        self.contrastive = ContrastiveHead(config.latent.width, config.text.width) if "contrastive" in heads else None
        carried = (config.combiner.memory, config.combiner.width) if config.combiner.kind == "ttm" else None
        self.text = TextDecoder(config.text, vocab_size, config.latent.width, carried)

    # Sound and picture ------------------------------------------------------------------------------------------

    def encode(self, media: MediaBatch) -> Encoded:
        """All chunks at once."""
        tokens, valid = self._tokens(media)
        stretched = {} if media.stretch_B is None else {"stretch_B": media.stretch_B}
        combined, memory = self.combiner(tokens, valid, **stretched)
        latents = self.latent(combined, media.latent_masked_BT, media.chunk_valid_BT)
        return Encoded(combined, latents, _carried(memory), media.chunk_valid_BT, _present(tokens, valid))

    def encode_stream(self, media: MediaBatch, state: StreamState | None = None) -> tuple[Encoded, StreamState]:
        """The chunks in `media`, which follow those that made `state`. Equal to `encode` of all of them; memory stays
        constant with a TTM Combiner (or one that sees its chunk only) and a latent window."""
        tokens, valid = self._tokens(media)
        combined, memory = self.combiner(tokens, valid, state.combiner if state else None)
        latents, cache = self.latent.append(combined, media.chunk_valid_BT, state.latent if state else None)
        encoded = Encoded(combined, latents, _carried(memory), media.chunk_valid_BT, _present(tokens, valid))
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

    def answer_memory(self, encoded: Encoded, latents_hidden_B: Tensor | None = None) -> CrossMemory:
        """Keys and values of every cross-attention layer, once per clip. Where its latents are hidden, a clip is told by
        the Combiner's memory alone (`MediaBatch.latents_hidden_B`)."""
        valid = encoded.valid_BT
        if latents_hidden_B is not None:
            seen_B1 = ~latents_hidden_B[:, None]
            valid = seen_B1.expand(encoded.latents_BTMD.shape[:2]) if valid is None else valid & seen_B1
        slots = encoded.latents_BTMD.shape[2]
        valid_BK = None if valid is None else valid.repeat_interleave(slots, dim=1)
        return self.text.project_memory(encoded.latents_BTMD.flatten(1, 2), valid_BK, encoded.memory_BKD)

    # Losses -----------------------------------------------------------------------------------------------------

    def forward(self, media: MediaBatch, text: TextBatch | None, weights: LossWeights) -> Losses:
        """Every loss with a weight above zero that this batch can give."""
        weights.check_heads(self.config.heads)
        encoded = self.encode(media)
        losses = Losses(latents_BTMD=encoded.latents_BTMD.detach(), present_BT=encoded.present_BT)
        if weights.latent > 0:
            self._latent_loss(encoded, losses)
        if weights.video > 0 or weights.audio > 0:
            self._reconstruction_losses(media, encoded, weights, losses)
        if text is not None and weights.text > 0:
            target = text.target_BQL & text.valid_BQL
            memory = self.answer_memory(encoded, media.latents_hidden_B)
            total, count = self.text.target_loss(text.tokens_BQL, text.valid_BQL, target, memory, weights.label_smoothing)
            losses.parts["text"] = LossPart(total, count)
        if text is not None and weights.contrastive > 0:
            losses.parts["contrastive"] = self._contrastive_loss(encoded, text)
        return losses

    def _latent_loss(self, encoded: Encoded, losses: Losses) -> None:
        assert self.latent.next_chunk is not None
        predicted = self.latent.next_chunk(encoded.latents_BTMD[:, :-1])
        losses.parts["latent"] = latent_loss(predicted, encoded.combined_BTMD, encoded.latents_BTMD, encoded.present_BT)
        target = encoded.combined_BTMD[:, 1:].detach()
        losses.prediction = Prediction(predicted.detach(), target, consecutive(encoded.present_BT))

    def _reconstruction_losses(self, media: MediaBatch, encoded: Encoded, weights: LossWeights, losses: Losses) -> None:
        assert self.reconstruction is not None
        valid = torch.ones_like(encoded.present_BT) if encoded.valid_BT is None else encoded.valid_BT
        if weights.video > 0:
            seen = valid if media.thumbnail_valid_BT is None else media.thumbnail_valid_BT
            losses.parts["video"] = self.reconstruction.video_loss(encoded.latents_BTMD, media.thumbnails, seen, valid)
        if weights.audio > 0:
            mel = media.mel_BTZS if media.target_mel_BTZS is None else media.target_mel_BTZS
            heard = media.audio_valid_BTN if media.target_audio_valid_BTN is None else media.target_audio_valid_BTN
            if heard is None:
                heard = valid[..., None].expand(*valid.shape, self.geometry.audio_tokens)
            losses.parts["audio"] = self.reconstruction.audio_loss(encoded.latents_BTMD, mel, heard, valid)

    def _contrastive_loss(self, encoded: Encoded, text: TextBatch) -> LossPart:
        """A clip is the mean of its latents; its text is the mean of all its texts' states, read without the clip."""
        assert self.contrastive is not None
        chunk = encoded.present_BT[..., None].to(encoded.latents_BTMD.dtype)
        clips = (encoded.latents_BTMD.mean(2) * chunk).sum(1) / chunk.sum(1).clamp(min=1)
        hidden = self.text.hidden(text.tokens_BQL, text.valid_BQL, None)
        word = text.valid_BQL[..., None].to(hidden.dtype)
        texts = (hidden * word).sum((1, 2)) / word.sum((1, 2)).clamp(min=1)
        return self.contrastive(clips, texts, encoded.present_BT.any(1) & text.valid_BQL.flatten(1).any(1))


def _carried(state: CombinerState) -> Tensor | None:
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
