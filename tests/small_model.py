"""A model of a few thousand parameters, and random media and text for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.model.batch import MediaBatch, TextBatch
from mirasol_cli.model.config import CombinerConfig, EncoderConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.model.text_decoder import TextKV

VOCABULARY = 50
TUBES = (
    Tube(kernel=(2, 8, 8), stride=(4, 16, 16), space_to_depth=(2, 1, 1)),
    Tube(kernel=(4, 4, 4), stride=(4, 16, 16), space_to_depth=(1, 2, 2)),
    Tube(kernel=(1, 16, 16), stride=(4, 16, 16)),
)
KINDS = ("transformer", "history", "last", "history, last", "ttm", "perceiver", "mean", "none")


def geometry(chunks: int = 4, frames_per_chunk: int = 4) -> ClipGeometry:
    """4 + 4 + 4 video tokens and 4 spectrogram patches per chunk of 4 frames."""
    audio = AudioGeometry(n_mels=32, columns=32)
    return ClipGeometry(frames=chunks * frames_per_chunk, chunks=chunks, size=32, tubes=TUBES, audio=audio)


def combiner_config(kind: str = "transformer", **changes) -> CombinerConfig:
    context = "history" if "history" in kind else "chunk"
    output_tokens = "last" if "last" in kind else "learned"
    kind = "transformer" if context == "history" or output_tokens == "last" else kind
    values = {
        "kind": kind, "context": context, "output_tokens": output_tokens, "num_outputs": 4, "width": 32, "layers": 2, "heads": 2,
        "mlp_dim": 64, "memory_tokens": 6,
    }  # fmt: skip
    return CombinerConfig(**{**values, **changes})


def model_config(kind: str = "transformer", **changes) -> ModelConfig:
    """Another width in every part, so that no part works by luck."""
    config = ModelConfig(
        encoder=EncoderConfig(width=24, layers=2, heads=2, mlp_dim=48),
        combiner=combiner_config(kind),
        latent=LatentConfig(width=40, layers=2, heads=2, mlp_dim=64),
        reconstruction=ReconstructionConfig(width=24, layers=1, heads=2, mlp_dim=48),
        text=TextConfig(width=28, layers=2, heads=2, kv_heads=1, mlp_dim=64, cross_attention_every=1),
    )
    return replace(config, **changes)


WEIGHTS = {"text": 1.0, "latent": 1.0, "video": 1.0}
EVERY_LOSS = {name: 1.0 for name in OBJECTIVES}


def model(kind: str = "transformer", chunks: int = 4, *, losses: Iterable[str] = tuple(WEIGHTS), **changes) -> Mirasol:
    torch.manual_seed(0)
    return Mirasol(model_config(kind, **changes), geometry(chunks), VOCABULARY, losses).eval()


def media(clips: int = 2, chunks: int = 4, *, seed: int = 0, frames_per_chunk: int = 4, **masks: Tensor) -> MediaBatch:
    shape = geometry(chunks, frames_per_chunk)
    random = torch.Generator().manual_seed(seed)

    def pixels(*size: int) -> Tensor:
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=random)

    return MediaBatch(
        tubes=tuple(pixels(clips, chunks, n, t.numbers_per_token) for n, t in zip(shape.tube_tokens, shape.tubes, strict=True)),
        mel_BTZS=torch.randn(clips, chunks, 32, 32, generator=random),
        thumbnails=pixels(clips, chunks, 4, 32, 32, 3),
        **masks,
    )


def text(clips: int = 2, questions: int = 3, length: int = 9, *, target: int = 4, seed: int = 0) -> TextBatch:
    """Rows of `length` tokens, the last `target` of which carry loss."""
    random = torch.Generator().manual_seed(seed)
    return TextBatch(
        tokens_BQL=torch.randint(0, VOCABULARY, (clips, questions, length), generator=random),
        valid_BQL=torch.ones(clips, questions, length, dtype=torch.bool),
        target_BQL=(torch.arange(length) >= length - target).expand(clips, questions, length),
    )


def change(batch: MediaBatch, clip: int, chunk: int, *, audio: bool = True, video: bool = True) -> MediaBatch:
    """The batch with other sound and picture in one chunk of one clip."""
    other = media(*batch.mel_BTZS.shape[:2], seed=99)

    def swap(ours: Tensor, theirs: Tensor) -> Tensor:
        ours = ours.clone()
        ours[clip, chunk] = theirs[clip, chunk]
        return ours

    if video:
        batch = replace(batch, tubes=tuple(swap(a, b) for a, b in zip(batch.tubes, other.tubes, strict=True)))
    return replace(batch, mel_BTZS=swap(batch.mel_BTZS, other.mel_BTZS)) if audio else batch


def all_valid(clips: int = 2, chunks: int = 4, frames_per_chunk: int = 4) -> dict[str, Tensor]:
    """The masks of `MediaBatch`, all true."""
    shape = geometry(chunks, frames_per_chunk)
    return {
        "video_valid_BTN": torch.ones(clips, chunks, shape.video_tokens, dtype=torch.bool),
        "audio_valid_BTN": torch.ones(clips, chunks, shape.audio_tokens, dtype=torch.bool),
        "thumbnail_valid_BT": torch.ones(clips, chunks, dtype=torch.bool),
        "chunk_valid_BT": torch.ones(clips, chunks, dtype=torch.bool),
    }


def of_clip(memory: TextKV, clip: int) -> TextKV:
    """What the text attends to of one clip, as a batch of its own."""
    part = slice(clip, clip + 1)
    valid = None if memory.valid_BK is None else memory.valid_BK[part]
    return TextKV(tuple(key[part] for key in memory.keys), tuple(value[part] for value in memory.values), valid)
