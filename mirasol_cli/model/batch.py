"""What goes into the model: tensors only. The model never sees a path, YAML or a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class _Moves:
    """A dataclass of tensors, tuples of tensors and None, moved or picked from as one."""

    def to(self, device: torch.device | str) -> Self:
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same in pinned memory, from which copies to a GPU run beside the host's work."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def used_on(self, stream: torch.Stream) -> None:
        """Keep the memory of all tensors until what is queued on `stream` is done."""

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._with_each(keep)

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

        return replace(self, **{field.name: changed(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Hidden:
    """How much the masks of a batch hide, known without looking at the device. Attention without a mask is the fast kind: a mask goes
    to attention only where tokens of one chunk differ, and what hides a chunk as a whole is applied to its outputs."""

    part_of_video: bool = True  # some chunk shows only some of its video tokens
    part_of_audio: bool = True
    all_video: bool = False  # no clip of the batch shows anything
    all_audio: bool = False
    part_of_chunks: bool = True  # some chunk lacks tokens, of the modalities that are there at all, but not all of them

    @staticmethod
    def of(media: MediaBatch) -> Hidden:
        """What the masks of a batch hide. They must be on the CPU."""
        video, audio = _Tokens.of(media.tubes, media.video_valid_BTN), _Tokens.of(media.mel_BTZS, media.audio_valid_BTN)
        if video.none or audio.none:
            part_of_chunks = audio.part if video.none else video.part
        else:
            part_of_chunks = video.part or audio.part or not torch.equal(*torch.broadcast_tensors(video.any_BT, audio.any_BT))
        return Hidden(video.part, audio.part, video.none, audio.none, part_of_chunks)


@dataclass(frozen=True)
class _Tokens:
    """What the mask of one modality says."""

    any_BT: Tensor  # chunks with any token
    part: bool  # some chunk has some, but not all
    none: bool  # no chunk has any

    @staticmethod
    def of(content: Any, valid_BTN: Tensor | None) -> _Tokens:
        if content is None or valid_BTN is None:
            return _Tokens(torch.ones(1, 1, dtype=torch.bool), part=False, none=content is None)
        any_BT = valid_BTN.any(-1)
        return _Tokens(any_BT, part=not torch.equal(any_BT, valid_BTN.all(-1)), none=not bool(any_BT.any()))


@dataclass(frozen=True, kw_only=True)
class MediaBatch(_Moves):
    """Audio and video of B clips. A mask of None means that everything is valid."""

    tubes: tuple[Tensor, ...] | None  # one [B, T, N_k, P_k] uint8 per tube kind, geometry order; None: the recipe leaves video out
    mel_BTZS: Tensor | None  # float32, normalised log-mel; 0 where masked; None: the recipe leaves audio out
    thumbnails: Tensor  # uint8 [B, T, 4, 32, 32, 3], RGB
    video_valid_BTN: Tensor | None = None  # bool, per tube token; all False where the picture is absent or dropped
    audio_valid_BTN: Tensor | None = None  # bool, per spectrogram patch; all False where sound is absent, silent or dropped
    column_valid_BTS: Tensor | None = None  # bool, per spectrogram column; what training changes in the sound keeps to these
    thumbnail_valid_BT: Tensor | None = None  # bool, chunk shows at least one real frame
    chunk_valid_BT: Tensor | None = None  # bool, False for chunks that only pad a shorter clip
    flip_B: Tensor | None = None  # bool, the tubes' pixels are mirrored, and so are their positions
    hidden: Hidden = Hidden()  # by the two masks of tokens; as it is here, nothing is known of them

    def with_hidden(self) -> Self:
        """The same batch, on the CPU, with `hidden` as its masks say."""
        return replace(self, hidden=Hidden.of(self))

    @property
    def chunks_BT(self) -> Tensor:
        """bool [B, T]: chunks of the clip, not of its padding."""
        if self.chunk_valid_BT is not None:
            return self.chunk_valid_BT
        return torch.ones(self.thumbnails.shape[:2], dtype=torch.bool, device=self.thumbnails.device)

    @property
    def present_BT(self) -> Tensor:
        """bool [B, T]: chunks that hold any video or audio."""
        masks = [valid for media, valid in ((self.tubes, self.video_valid_BTN), (self.mel_BTZS, self.audio_valid_BTN)) if media is not None]
        if not masks or any(valid is None for valid in masks):
            return self.chunks_BT
        return self.chunks_BT & torch.stack([valid.any(-1) for valid in masks if valid is not None]).any(0)


@dataclass(frozen=True, kw_only=True)
class TrainingInputs(_Moves):
    """What only training needs of B clips: what is hidden from parts of the model, and what the losses compare with all the same."""

    masked_BT: Tensor | None = None  # bool, chunks hidden from the latents that predict the next one
    memory_only_B: Tensor | None = None  # bool, the text sees the Combiner's memory and no latent
    chunk_repeats: int = 1  # times in a row that the Combiner takes each chunk, as if the clip were so many times as long
    whole_mel_BTZS: Tensor | None = None  # float32, the spectrogram with nothing masked, where the model hears less
    whole_audio_valid_BTN: Tensor | None = None  # bool, its patches, those of dropped chunks included


@dataclass(frozen=True, kw_only=True)
class TextBatch(_Moves):
    """Texts of B clips, Q to a clip (padded with empty rows), L tokens each: context, question, target, end."""

    tokens_BQL: Tensor  # int64; padding holds any id
    valid_BQL: Tensor  # bool, real tokens
    target_BQL: Tensor  # bool, tokens that carry loss: the answer and the end token
    weight_BQ: Tensor | None = None  # float32, what a token of the text counts in the loss, where clips are mixed; None: 1
