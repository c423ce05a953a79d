"""How many items each loss will count, from the batch alone.

A loss is a mean over the global batch: the sum over micro batches and processes, divided by the number of items in all of
them. The numbers are needed before the first backward pass, so they are taken from the masks, not from the model's results.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.model.inputs import MediaBatch, TextBatch
from mirasol_cli.model.losses import LossWeights, consecutive

PARTS = ("text", "latent", "video", "audio", "contrastive")


def loss_counts(media: MediaBatch, text: TextBatch, weights: LossWeights, geometry: ClipGeometry) -> dict[str, int]:
    """The `count` of every loss part that `Mirasol.forward` gives for this batch; parts of weight zero are left out."""
    clips, chunks = media.mel_BTZS.shape[:2]
    valid_BT = _given(media.chunk_valid_BT, (clips, chunks))
    audio_BTN = _given(media.audio_valid_BTN, (clips, chunks, geometry.audio_tokens))
    video_BTN = _given(media.video_valid_BTN, (clips, chunks, geometry.video_tokens))
    present_BT = (video_BTN.any(-1) | audio_BTN.any(-1)) & valid_BT
    counts = {}
    if weights.text > 0:
        counts["text"] = (text.target_BQL & text.valid_BQL)[:, :, 1:].sum()
    if weights.latent > 0:
        counts["latent"] = consecutive(present_BT).sum()
    if weights.video > 0:
        seen_BT = valid_BT if media.thumbnail_valid_BT is None else media.thumbnail_valid_BT
        counts["video"] = (consecutive(valid_BT) & seen_BT[:, 1:]).sum()
    if weights.audio > 0:
        heard_BTN = audio_BTN if media.target_audio_valid_BTN is None else media.target_audio_valid_BTN
        counts["audio"] = (consecutive(valid_BT)[..., None] & heard_BTN[:, 1:]).sum()
    if weights.contrastive > 0:
        counts["contrastive"] = (present_BT.any(1) & text.valid_BQL.flatten(1).any(1)).sum()
    return {name: int(count) for name, count in counts.items()}


def summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def _given(valid: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, dtype=torch.bool) if valid is None else valid
