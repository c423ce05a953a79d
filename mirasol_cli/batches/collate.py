"""Samples of shards and token ids to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirasol_cli.errors import ShardError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.spectrogram import audio_valid
from mirasol_cli.media.tubes import video_valid
from mirasol_cli.model.batch import MediaBatch, TextBatch
from mirasol_cli.sample import AUDIO, VIDEO, AudioState, field_shapes, fields_under, tube_field


def media_batch(samples: Sequence[Mapping[str, Any]], geometry: ClipGeometry, *, video: bool = True, audio: bool = True) -> MediaBatch:
    """B samples, as shards hold them, as one batch.

    Clips with fewer chunks than the longest are padded behind and told by `chunk_valid_BT`. A mask is None where all
    is valid. OURS: digital silence is a broken track, not sound, and is masked like an absent one.

    Args:
        samples: per clip the fields of a shard (numpy arrays or tensors); further fields are ignored.
        geometry: what the samples were made with; their number of chunks may differ.
        video, audio: False leaves it out, as if the batch had none.

    Raises:
        ShardError: a field is missing or its shape does not belong to `geometry`.
    """
    if not samples:
        raise ValueError("a batch needs at least one clip")
    clips = [_checked(sample, geometry) for sample in samples]
    chunks = max(clip["frame_valid"].shape[0] for clip in clips)

    def stack(name: str) -> Tensor:
        return torch.stack([_pad_chunks(clip[name], chunks) for clip in clips])

    frame_valid_BTF = stack("frame_valid").bool() & video
    column_valid_BTS = stack("mel_valid").bool()
    heard_B = torch.tensor([int(clip["audio_state"]) == AudioState.AUDIBLE for clip in clips])
    column_valid_BTS &= heard_B[:, None, None]
    chunk_valid_BT = torch.stack([torch.arange(chunks) < clip["frame_valid"].shape[0] for clip in clips])
    return MediaBatch(
        tubes=tuple(stack(tube_field(kind)) for kind in range(len(geometry.tubes))) if video else None,
        mel_BTZS=stack("mel").float().masked_fill(~column_valid_BTS[:, :, None, :], 0.0) if audio else None,
        thumbnails=stack("thumbnails"),
        video_valid_BTN=_unless_all(_per_chunk(video_valid, frame_valid_BTF, geometry)) if video else None,
        audio_valid_BTN=_unless_all(_per_chunk(audio_valid, column_valid_BTS, geometry)) if audio else None,
        column_valid_BTS=_unless_all(column_valid_BTS) if audio else None,
        thumbnail_valid_BT=_unless_all(frame_valid_BTF.any(dim=2)),
        chunk_valid_BT=_unless_all(chunk_valid_BT),
    ).with_hidden()


def text_batch(rows: Sequence[Sequence[tuple[list[int], list[int]]]], weights: Sequence[Sequence[float]] | None = None) -> TextBatch:
    """Texts of B clips, each (prompt ids, target ids), padded to the longest; clips may have different numbers of them.

    Args:
        weights: what each text counts in the loss; None: all the same.
    """
    questions = max((len(row) for row in rows), default=0)
    length = max((len(prompt) + len(target) for row in rows for prompt, target in row), default=0)
    tokens = torch.zeros(len(rows), max(questions, 1), max(length, 1), dtype=torch.int64)
    valid = torch.zeros_like(tokens, dtype=torch.bool)
    carries_loss = torch.zeros_like(valid)
    for b, row in enumerate(rows):
        for q, (prompt, target) in enumerate(row):
            end = len(prompt) + len(target)
            tokens[b, q, :end] = torch.tensor([*prompt, *target], dtype=torch.int64)
            valid[b, q, :end] = True
            carries_loss[b, q, len(prompt) : end] = True
    weight_BQ = None
    if weights is not None:
        weight_BQ = torch.zeros(tokens.shape[:2])
        for b, row_weights in enumerate(weights):
            weight_BQ[b, : len(row_weights)] = torch.tensor(row_weights)
    return TextBatch(tokens_BQL=tokens, valid_BQL=valid, target_BQL=carries_loss, weight_BQ=weight_BQ)


def _checked(sample: Mapping[str, Any], geometry: ClipGeometry) -> dict[str, Tensor]:
    """What is seen and heard of one clip as tensors, each with the shape that the geometry gives it."""
    read = fields_under(VIDEO, AUDIO)
    names = field_shapes(geometry, fields=read)
    missing = [name for name in names if name not in sample]
    if missing:
        raise ShardError(f"a sample lacks the field {missing[0]!r}")
    fields = {name: torch.as_tensor(sample[name]) for name in names}
    for name, (_, shape) in field_shapes(geometry, chunks=len(fields["frame_valid"]), fields=read).items():
        if tuple(fields[name].shape) != shape:
            raise ShardError(
                f"the field {name!r} of a sample is {tuple(fields[name].shape)}, the recipe's clip section gives {shape}",
                "prepare shards with this recipe's clip section, or use the recipe the shards were made with",
            )
    return fields


def _per_chunk(rule: Callable[[np.ndarray, ClipGeometry], np.ndarray], valid_BTx: Tensor, geometry: ClipGeometry) -> Tensor:
    """`rule` turns a mask [chunks, x] into one of tokens [chunks, N]; all chunks of all clips at once."""
    tokens = rule(valid_BTx.flatten(0, 1).numpy(), geometry)
    return torch.from_numpy(tokens).unflatten(0, valid_BTx.shape[:2])


def _pad_chunks(field: Tensor, chunks: int) -> Tensor:
    if field.shape[0] == chunks:
        return field
    return torch.cat((field, field.new_zeros(chunks - field.shape[0], *field.shape[1:])))


def _unless_all(valid: Tensor) -> Tensor | None:
    return None if bool(valid.all()) else valid
