"""What goes into the model: tensors only. The model never sees a path, YAML or a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class _Moves:
    """A dataclass of tensors, tuples of tensors and None, moved or picked from as one."""

    def to(self, device: torch.device | str) -> Self:
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def clips(self, rows: Sequence[int]) -> Self:
        """The batch of these clips, in this order."""
        return self._with_each(lambda tensor: tensor[list(rows)])

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, tuple):
                return tuple(changed(item) for item in value)
            return value

        return replace(self, **{field.name: changed(getattr(self, field.name)) for field in fields(self)})  # type: ignore[type-var,arg-type]


@dataclass(frozen=True, kw_only=True)
class MediaBatch(_Moves):
    """Sound and picture of B clips. A mask of None means that everything is valid (and saves the work of masking)."""

    tubes: tuple[Tensor, ...]  # one [B, T, N_k, P_k] uint8 per tube kind, geometry order
    mel_BTZS: Tensor  # float32, normalised log-mel; 0 where masked
    thumbnails: Tensor  # uint8 [B, T, 4, 32, 32, 3], RGB
    video_valid_BTN: Tensor | None = None  # bool, per tube token; all False where the picture is absent or dropped
    audio_valid_BTN: Tensor | None = None  # bool, per spectrogram patch; all False where sound is absent, silent or dropped
    column_valid_BTS: Tensor | None = None  # bool, per spectrogram column; what training changes in the sound keeps to these
    thumbnail_valid_BT: Tensor | None = None  # bool, chunk shows at least one real frame
    chunk_valid_BT: Tensor | None = None  # bool, False for chunks that only pad a shorter clip
    flip_B: Tensor | None = None  # bool, the tubes' pixels are mirrored, and so are their positions

    @property
    def chunks_BT(self) -> Tensor:
        """bool [B, T]: chunks of the clip, not of its padding."""
        if self.chunk_valid_BT is not None:
            return self.chunk_valid_BT
        return torch.ones(self.mel_BTZS.shape[:2], dtype=torch.bool, device=self.mel_BTZS.device)

    @property
    def present_BT(self) -> Tensor:
        """bool [B, T]: chunks that hold any picture or sound."""
        if self.video_valid_BTN is None or self.audio_valid_BTN is None:
            return self.chunks_BT
        return self.chunks_BT & (self.video_valid_BTN.any(-1) | self.audio_valid_BTN.any(-1))


@dataclass(frozen=True, kw_only=True)
class TrainingInputs(_Moves):
    """What only training needs of B clips: what is hidden from parts of the model, and what the losses compare with all the same."""

    masked_BT: Tensor | None = None  # bool, chunks replaced by the mask token before the latent model
    memory_only_B: Tensor | None = None  # bool, the text sees the Combiner's memory and no latent
    turns_BR: Tensor | None = None  # int64, the chunk that the Combiner takes at each turn, in order, -1: none; None: each chunk once
    whole_mel_BTZS: Tensor | None = None  # float32, the spectrogram with nothing masked, where the model hears less
    whole_audio_valid_BTN: Tensor | None = None  # bool, its patches, those of dropped chunks included


@dataclass(frozen=True, kw_only=True)
class TextBatch(_Moves):
    """Texts of B clips, Q to a clip (padded with empty rows), L tokens each: context, question, target, end."""

    tokens_BQL: Tensor  # int64; padding holds any id
    valid_BQL: Tensor  # bool, real tokens
    target_BQL: Tensor  # bool, tokens that carry loss: the answer and the end token
    weight_BQ: Tensor | None = None  # float32, what a token of the text counts in the loss, where clips are mixed; None: 1
