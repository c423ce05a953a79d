"""Mirasol: two autoregressive models, one over chunks of video and audio, one over text, connected by cross-attention.

tubes, spectrogram -> tokens -> encoder (each chunk alone) -> Combiner (N -> M tokens a chunk)
    -> latents, autoregressive in chunks -> text decoder, cross-attending to the latents (`text.sees`) and to a TTM's memory
                                         -> next chunk's Combiner output, thumbnails, spectrogram (losses)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from mirasol_cli.model.layers import Block, keep_in_graph
from mirasol_cli.model.lora import add_lora
from mirasol_cli.model.losses import Losses
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.model.text_decoder import CrossAttention, DecoderLayer, TextDecoder, TextKV
from mirasol_cli.model.token_turing import TokenTuringMachine
from mirasol_cli.model.tokens import Encoder, TubeTokens, build_audio_tokens

CUTS = ("own-chunk", "no-memory", "last-chunk")
"""What can be cut in a trained model to see what it uses: the latents' attention to earlier chunks, the Combiner's memory, the text's
attention to all chunks but the last."""


@dataclass(frozen=True)
class Encoded:
    """What the text decoder and the losses read of B clips."""

    combined_BTMD: Tensor  # Combiner outputs x_t
    latents_BTMD: Tensor  # h_t, of chunks up to t
    memory_BKD: Tensor | None  # a TTM's memory after the last chunk, of all chunks that were ever fed
    valid_BT: Tensor | None  # False for chunks that only pad a shorter clip
    present_BT: Tensor  # chunks that hold any video or audio
    tokens_BTND: Tensor  # the encoders' outputs


@dataclass(frozen=True)
class StreamState:
    """What later chunks need of the chunks already processed."""

    combiner: CombinerState
    latent: ChunkCache


class Mirasol(nn.Module):
    """The whole model. Parts: video_tokens, audio_tokens, encoder (or video_encoder and audio_encoder), combiner,
    latent, objectives, text.

    Args:
        losses: names of the losses it can compute (`OBJECTIVES`); only their parameters are created, so that each gets a gradient.

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
        self.combiner = build_combiner(config.combiner, width, (geometry.video_tokens, geometry.audio_tokens))
        slots = 0 if config.combiner.kind == "none" else config.combiner.num_outputs
        self.latent = LatentModel(config.latent, config.combiner.width, slots)
        built = {name: objective.build(config, geometry) for name, objective in OBJECTIVES.items() if name in self.losses}
        self.objectives = nn.ModuleDict({name: module for name, module in built.items() if module is not None})
        seen = config.combiner.kind == "ttm" and config.text.sees_memory
        ttm_memory = (config.combiner.memory_tokens, config.combiner.width) if seen else None
        self.text = TextDecoder(config.text, vocab_size, config.latent.width, ttm_memory)
        add_lora(self, config.lora)

    # Video and audio --------------------------------------------------------------------------------------------

    def encode(self, media: MediaBatch, *, chunk_repeats: int = 1, cut: str | None = None) -> Encoded:
        """All chunks at once.

        Args:
            chunk_repeats: how many times in a row the Combiner takes each chunk; the outputs are those of the last time. One
                that has a memory then writes as often as it would on a longer video, while the encoders run once per chunk.
            cut: one of `CUTS`, what is taken away.
        """
        tokens, valid, whole = self._tokens(media)

        def combine(x: Tensor, valid: Tensor | None) -> tuple[Tensor, CombinerState]:
            return self.combiner(x, valid, whole_chunks=whole)

        if cut == "no-memory":
            combined, state = each_chunk_alone(combine, tokens, valid)
            memory = _ttm_memory(state)
            memory = None if memory is None else last_chunk(memory.unflatten(0, tokens.shape[:2]), media.chunk_valid_BT)
        else:
            combined, state = combine(repeated(tokens, chunk_repeats), None if valid is None else repeated(valid, chunk_repeats))
            combined, memory = combined[:, chunk_repeats - 1 :: chunk_repeats], _ttm_memory(state)
        if cut == "own-chunk":
            latents, _ = each_chunk_alone(lambda x, valid: (self.latent(x, valid_BT=valid), None), combined, media.chunk_valid_BT)
        else:
            latents = self.latent(combined, valid_BT=media.chunk_valid_BT)
        return Encoded(combined, latents, memory, media.chunk_valid_BT, _present(tokens, valid), tokens)

    def encode_stream(
        self, media: MediaBatch, state: StreamState | None = None, *, window: int | None = None
    ) -> tuple[Encoded, StreamState]:
        """The chunks in `media`, which follow those that made `state`. Equal to `encode` of all of them; memory stays
        constant with a TTM Combiner (or one that sees its chunk only) and a latent window. `window` replaces
        `config.latent.window`: chunks that a latent looks back on, itself included; 0: all."""
        tokens, valid, whole = self._tokens(media)
        combined, memory = self.combiner(tokens, valid, state.combiner if state else None, whole_chunks=whole)
        latents, cache = self.latent.append(combined, media.chunk_valid_BT, state.latent if state else None, window=window)
        encoded = Encoded(combined, latents, _ttm_memory(memory), media.chunk_valid_BT, _present(tokens, valid), tokens)
        return encoded, StreamState(memory, cache)

    def _tokens(self, media: MediaBatch) -> tuple[Tensor, Tensor | None, bool]:
        """Encoded tokens [B, T, N, D], video first, which are valid, and whether those of a chunk are so all or none.

        A modality that the recipe leaves out is not computed. One that this batch alone lacks is, so that every process of a
        distributed run makes the same calls and has a gradient for all parameters, but its tokens go no further.
        """
        hidden, encoded = media.hidden, []
        if media.tubes is not None:
            encoded.append((self.encode_video(media), media.video_valid_BTN, hidden.all_video))
        if media.mel_BTZS is not None:
            encoded.append((self.encode_audio(media), media.audio_valid_BTN, hidden.all_audio))
        if not encoded:
            raise FieldError("data.video", "neither video nor audio: with data.video and data.audio false there is nothing to encode")
        leave_out = self.config.combiner.kind != "none" and not all(absent for *_, absent in encoded)  # `none` keeps a token's place
        kept = [(x, valid) for x, valid, absent in encoded if not (absent and leave_out)]
        tokens = torch.cat([x for x, _ in kept], dim=2)
        tokens = keep_in_graph(tokens, *(x for x, _, absent in encoded if absent and leave_out))
        if all(valid is None for _, valid in kept) and media.chunk_valid_BT is None:
            return tokens, None, True
        valid_BTN = torch.cat([x.new_ones(x.shape[:3], dtype=torch.bool) if valid is None else valid for x, valid in kept], dim=2)
        if media.chunk_valid_BT is not None:
            valid_BTN = valid_BTN & media.chunk_valid_BT[..., None]
        return tokens, valid_BTN, not hidden.part_of_chunks

    def encode_video(self, media: MediaBatch) -> Tensor:
        """The encoder's video tokens [B, T, N_video, D]."""
        assert media.tubes is not None
        encoder = self.encoder if self.config.encoder.share else self.video_encoder
        return encoder(self.video_tokens(media.tubes, media.flip_B), media.video_valid_BTN if media.hidden.part_of_video else None)

    def encode_audio(self, media: MediaBatch) -> Tensor:
        """The encoder's audio tokens [B, T, N_audio, D]."""
        assert media.mel_BTZS is not None
        encoder = self.encoder if self.config.encoder.share else self.audio_encoder
        return encoder(self.audio_tokens(media.mel_BTZS), media.audio_valid_BTN if media.hidden.part_of_audio else None)

    # Text -------------------------------------------------------------------------------------------------------

    def text_kv(self, encoded: Encoded, memory_only_B: Tensor | None = None, cut: str | None = None) -> TextKV:
        """Keys and values of every cross-attention layer, once per clip: of what the text may see (`text.sees`).

        A clip of `memory_only_B` hides its latents, so that the text has the Combiner's memory alone, as for what a long video
        showed before the window of its latents.
        """
        latents, valid, sees = encoded.latents_BTMD, encoded.valid_BT, self.config.text.sees
        if sees == "memory":
            latents, valid, memory_only_B = latents[:, :0], None, None
        elif sees == "last" or cut == "last-chunk":
            latents = last_chunk(latents, valid)[:, None]
            valid = None if valid is None else valid.any(1, keepdim=True)
        if memory_only_B is not None:
            seen_B1 = ~memory_only_B[:, None]
            valid = seen_B1.expand(latents.shape[:2]) if valid is None else valid & seen_B1
        valid_BK = None if valid is None else valid.repeat_interleave(latents.shape[2], dim=1)
        memory = encoded.memory_BKD if self.config.text.sees_memory else None
        return self.text.project_kv(latents.flatten(1, 2), valid_BK, memory)

    # Losses -----------------------------------------------------------------------------------------------------

    def forward(
        self, media: MediaBatch, text: TextBatch | None, weights: Mapping[str, float], extra: TrainingInputs | None = None
    ) -> Losses:
        """Every loss with a weight above zero that this batch can give; `weights` are by name (`OBJECTIVES`).

        Raises SettingError for a loss that the model was built without.
        """
        extra = extra or TrainingInputs()
        encoded = self.encode(media, chunk_repeats=extra.chunk_repeats)
        losses = Losses(latents_BTMD=encoded.latents_BTMD.detach(), present_BT=encoded.present_BT, tokens_BTND=encoded.tokens_BTND)
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
        """The Transformer layers: what is compiled and recomputed one by one."""
        return [module for module in self.modules() if isinstance(module, (Block, DecoderLayer, CrossAttention))]

    def sharded_units(self) -> list[nn.Module]:
        """What a sharded run gathers at once: the Transformer layers one by one, but a Token Turing Machine whole, because its
        recurrence comes back to every layer with every chunk."""
        machines = [module for module in self.modules() if isinstance(module, TokenTuringMachine)]
        inside = {id(module) for machine in machines for module in machine.modules()}
        return [*machines, *(block for block in self.blocks() if id(block) not in inside)]


def _ttm_memory(state: CombinerState) -> Tensor | None:
    """A TTM's memory; what other Combiners hand on is no summary that text could read."""
    return state if isinstance(state, Tensor) else None


def _present(tokens: Tensor, valid_BTN: Tensor | None) -> Tensor:
    """bool [B, T]: chunks with any valid token."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if valid_BTN is None else valid_BTN.any(-1)


def repeated(x_BTx: Tensor, times: int) -> Tensor:
    """Every chunk so many times in a row."""
    return x_BTx if times == 1 else x_BTx.repeat_interleave(times, dim=1)


def last_chunk(x_BTx: Tensor, valid_BT: Tensor | None) -> Tensor:
    """[B, T, ...] -> [B, ...]: each clip's last valid chunk."""
    if valid_BT is None:
        return x_BTx[:, -1]
    place = torch.arange(valid_BT.shape[1], device=x_BTx.device)
    last_B = torch.where(valid_BT, place, 0).amax(1)
    return x_BTx[torch.arange(len(x_BTx), device=x_BTx.device), last_B]


def each_chunk_alone(
    run: Callable[[Tensor, Tensor | None], tuple[Tensor, CombinerState]], x_BTND: Tensor, valid: Tensor | None
) -> tuple[Tensor, CombinerState]:
    """`run` on every chunk as a clip of its own: nothing is carried from chunk to chunk. The state is of B x T clips."""
    y, state = run(x_BTND.flatten(0, 1)[:, None], None if valid is None else valid.flatten(0, 1)[:, None])
    return y.squeeze(1).unflatten(0, x_BTND.shape[:2]), state
