"""What goes into the model: tensors only. The model never sees a path, YAML or a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class _Moves:
    """`.to(device)` for a dataclass of tensors, tuples of tensors and None."""

    def to(self, device: torch.device | str) -> Self:
        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value

        return replace(self, **{field.name: move(getattr(self, field.name)) for field in fields(self)})  # type: ignore[type-var,arg-type]


@dataclass(frozen=True, kw_only=True)
class MediaBatch(_Moves):
    """Sound and picture of B clips. A mask of None means that everything is valid (and saves the work of masking)."""

    tubes: tuple[Tensor, ...]  # one [B, T, N_k, P_k] uint8 per tube kind, geometry order
    mel_BTZS: Tensor  # float32, normalised log-mel; 0 where masked
    thumbnails: Tensor  # uint8 [B, T, 4, 32, 32, 3], RGB
    video_valid_BTN: Tensor | None = None  # bool, per tube token; all False where the picture is absent or dropped
    audio_valid_BTN: Tensor | None = None  # bool, per spectrogram patch; all False where sound is absent, silent or dropped
    thumbnail_valid_BT: Tensor | None = None  # bool, chunk shows at least one real frame
    chunk_valid_BT: Tensor | None = None  # bool, False for chunks that only pad a shorter clip
    latent_masked_BT: Tensor | None = None  # bool, training only: chunk replaced by the mask token before the latent model
    stretch_B: Tensor | None = None  # int64 from 1, training only: a TTM takes each chunk so many times, as if the clip were longer
    latents_hidden_B: Tensor | None = None  # bool, training only: the text sees the Combiner's memory and no latent
    flip_B: Tensor | None = None  # bool, training only: mirror pixels inside each tube and the position's x-centre
    # What the spectrogram's reconstruction is compared with, where training hides some of it from the model; None: what the model hears.
    target_mel_BTZS: Tensor | None = None  # float32, nothing masked
    target_audio_valid_BTN: Tensor | None = None  # bool, patches of dropped chunks included


@dataclass(frozen=True, kw_only=True)
class TextBatch(_Moves):
    """Texts of B clips, Q to a clip (padded with empty rows), L tokens each: context, question, target, end."""

    tokens_BQL: Tensor  # int64; padding holds any id
    valid_BQL: Tensor  # bool, real tokens
    target_BQL: Tensor  # bool, tokens that carry loss: the answer and the end token
