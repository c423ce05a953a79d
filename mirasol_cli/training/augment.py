"""Augmentation: what a batch becomes between the shards and the model, in training only.

A clip's changes are drawn at once from its own generator (`Draw`), those of a step from the step's (`StepDraw`), then they are
made to the batch: to the audio as it was recorded (`retuned`), by mixing it with another batch's clips (`mixed`), and to all the
rest (`augmented`). What changes the input is done to it: shifted and louder audio, mirrored and recoloured pixels, masked
spectrograms, dropped modalities and chunks. What is hidden from a part of the model, and what the losses still compare with, goes
beside it (`TrainingInputs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mirasol_cli.config.schema import AugmentRecipe
from mirasol_cli.geometry import AudioGeometry, ClipGeometry
from mirasol_cli.media.spectrogram import audio_valid, log_power, louder, normalised
from mirasol_cli.model.batch import MediaBatch, TrainingInputs


@dataclass(frozen=True)
class StepDraw:
    """What happens to all clips of a step.

    OURS: a modality is dropped from the whole global batch, not clip by clip: a batch that mixes clips with and without it needs
    masked attention for all of them.
    """

    drop_audio: bool = False
    drop_video: bool = False
    chunk_repeats: int = 1

    @staticmethod
    def of(generator: torch.Generator, augment: AugmentRecipe) -> StepDraw:
        u_modality, u_repeats = torch.rand(2, generator=generator).tolist()
        return StepDraw(
            drop_audio=u_modality < augment.drop_modality,
            drop_video=augment.drop_modality <= u_modality < 2 * augment.drop_modality,
            chunk_repeats=1 + int(u_repeats * augment.max_chunk_repeats),
        )


@dataclass(frozen=True)
class Draw:
    """What happens to one training sample."""

    view: int
    flip: bool
    gain: float  # contrast factor around mid-grey
    offset: float  # brightness, in units of the full range
    dropped_T: Tensor  # bool: chunks that lose audio and video
    masked_T: Tensor | None  # bool: chunks hidden from the latents that predict the next one; None with mask_latents 0, so that all
    # processes agree on whether there is a second pass of the latents
    mel_bins: tuple[int, int]  # first masked bin, number of masked bins
    mel_columns: tuple[tuple[int, int], ...]  # the same for the columns of each chunk
    memory_only: bool  # the text sees the Combiner's memory and no latent
    time_shift: float  # share of the clip by which its sound begins later
    gain_db: float  # by how much its sound is louder
    own_share: float  # of the clip in its mix with another one, 0.5 to 1; 1: it is not mixed

    @staticmethod
    def of(generator: torch.Generator, augment: AugmentRecipe, geometry: ClipGeometry, views: int) -> Draw:
        """Everything at once and in a fixed order, so that switching one change off leaves the others as they were."""
        chunks, bins, columns = geometry.chunks, geometry.audio.n_mels, geometry.audio.columns
        u_view, u_flip, u_gain, u_offset, u_drop = torch.rand(5, generator=generator).tolist()
        drop_T, masked_T = torch.rand(chunks, generator=generator), torch.rand(chunks, generator=generator) < augment.mask_latents
        u_mel = torch.rand(2 + 2 * chunks, generator=generator).tolist()
        u_memory = float(torch.rand(1, generator=generator))
        u_shift, u_gain_db, u_mixup, u_share = torch.rand(4, generator=generator).tolist()
        # Half of the chunks on average, never all of them: one chunk always stays to be seen.
        dropped_T = (drop_T < 0.5) & (drop_T < drop_T.max()) if u_drop < augment.drop_chunks else torch.zeros(chunks, dtype=torch.bool)
        if chunks == 1 or bool(masked_T.all()):
            masked_T = masked_T & (torch.arange(chunks) > 0)
        return Draw(
            view=int(u_view * views),
            flip=u_flip < augment.flip,
            gain=1 + augment.colour * (u_gain - 0.5),
            offset=augment.colour * (u_offset - 0.5) * 0.5,
            dropped_T=dropped_T,
            masked_T=masked_T if augment.mask_latents > 0 else None,
            mel_bins=_span(u_mel[0], u_mel[1], augment.mask_bins, bins),
            mel_columns=tuple(_span(u_mel[2 + 2 * t], u_mel[3 + 2 * t], augment.mask_columns, columns) for t in range(chunks)),
            memory_only=u_memory < augment.memory_only,
            time_shift=augment.time_shift * (2 * u_shift - 1),
            gain_db=augment.gain_db * (2 * u_gain_db - 1),
            own_share=1 - u_share / 2 if u_mixup < augment.mixup else 1.0,
        )


def _span(u_length: float, u_start: float, longest: int, total: int) -> tuple[int, int]:
    length = int(u_length * (min(longest, total) + 1))
    return int(u_start * (total - length + 1)), length


def retuned(media: MediaBatch, draws: Sequence[Draw], audio: AudioGeometry) -> MediaBatch:
    """The batch with every clip's sound earlier or later, and louder or softer. Sound that goes with a picture stays in its time."""
    if media.mel_BTZS is None or all(draw.time_shift == 0 and draw.gain_db == 0 for draw in draws):
        return media
    clips, chunks, _, columns = media.mel_BTZS.shape
    column_BTS = _or_all(media.column_valid_BTS, (clips, chunks, columns))
    alone_B = torch.full((clips,), media.tubes is None)
    if media.video_valid_BTN is not None:
        alone_B |= ~media.video_valid_BTN.flatten(1).any(1)
    mels = []
    for mel_TZS, column_TS, alone, draw in zip(media.mel_BTZS, column_BTS, alone_B, draws, strict=True):
        mel_ZC, heard_C = mel_TZS.transpose(0, 1).flatten(1).clone(), column_TS.flatten()
        sound_ZC = mel_ZC[:, heard_C]
        if alone:
            sound_ZC = sound_ZC.roll(round(draw.time_shift * sound_ZC.shape[1]), dims=1)
        mel_ZC[:, heard_C] = louder(sound_ZC, draw.gain_db, audio)
        mels.append(mel_ZC.unflatten(1, (chunks, columns)).transpose(0, 1))
    return replace(media, mel_BTZS=torch.stack(mels))


def mixed(media: MediaBatch, others: MediaBatch, draws: Sequence[Draw], geometry: ClipGeometry) -> tuple[MediaBatch, list[float]]:
    """The batch with clips mixed into it (mixup, arXiv 1710.09412), and each clip's share of itself.

    Sounds are added as they are in the air, power to power, and pictures as in a cross-fade. A clip stays alone (share 1) where
    the other one is not of its kind: has more or fewer chunks, or audio or video where it has none.
    """
    clips, chunks = len(draws), geometry.chunks
    kinds = [(batch.tubes is None, batch.mel_BTZS is None, batch.thumbnails.shape) for batch in (media, others)]
    if all(draw.own_share == 1 for draw in draws) or kinds[0] != kinds[1]:
        return media, [1.0] * clips
    columns = (clips, chunks, geometry.audio.columns)
    column_BTS, other_column_BTS = (_or_all(batch.column_valid_BTS, columns) for batch in (media, others))
    video_BTN, other_video_BTN = (_or_all(batch.video_valid_BTN, (clips, chunks, geometry.video_tokens)) for batch in (media, others))
    alike_B = (video_BTN == other_video_BTN).flatten(1).all(1) & (column_BTS.flatten(1).any(1) == other_column_BTS.flatten(1).any(1))
    if media.chunk_valid_BT is not None or others.chunk_valid_BT is not None:
        alike_B &= (media.chunks_BT == others.chunks_BT).all(1)
    share_B = torch.where(alike_B, torch.tensor([draw.own_share for draw in draws]), 1.0)

    def cross_fade(own: Tensor, other: Tensor) -> Tensor:
        pairs = zip(own, other, share_B.tolist(), strict=True)
        return torch.stack([one if share == 1 else torch.lerp(two.float(), one.float(), share).round().byte() for one, two, share in pairs])

    together = replace(media, thumbnails=cross_fade(media.thumbnails, others.thumbnails))
    if media.tubes is not None and others.tubes is not None:
        tubes = zip(media.tubes, others.tubes, strict=True)
        together = replace(together, tubes=tuple(cross_fade(own, other) for own, other in tubes))
    if media.mel_BTZS is not None and others.mel_BTZS is not None:
        mix_B11 = (share_B < 1)[:, None, None]
        column_BTS = column_BTS | (other_column_BTS & mix_B11)
        both_BTZS = sum_of_sounds(media, others, share_B, geometry.audio)
        mel_BTZS = torch.where(mix_B11[..., None], both_BTZS, media.mel_BTZS)
        audio_BTN = torch.from_numpy(audio_valid(column_BTS.flatten(0, 1).numpy(), geometry)).unflatten(0, column_BTS.shape[:2])
        together = replace(
            together,
            mel_BTZS=mel_BTZS.masked_fill(~column_BTS[:, :, None, :], 0.0),
            column_valid_BTS=_unless_all(column_BTS),
            audio_valid_BTN=_unless_all(audio_BTN),
        )
    return together.with_hidden(), share_B.tolist()


def sum_of_sounds(own: MediaBatch, other: MediaBatch, share_B: Tensor, audio: AudioGeometry) -> Tensor:
    """Log-mel [B, T, Z, S] of both sounds at once, each with its share of the power; a masked column is silence."""

    def share_of_sound(batch: MediaBatch, share_B: Tensor) -> Tensor:
        assert batch.mel_BTZS is not None
        mel_BTZS = batch.mel_BTZS
        if batch.column_valid_BTS is not None:
            mel_BTZS = mel_BTZS.masked_fill(~batch.column_valid_BTS[:, :, None, :], -math.inf)
        return log_power(mel_BTZS, audio) + share_B.log()[:, None, None, None]

    return normalised(torch.logaddexp(share_of_sound(own, share_B), share_of_sound(other, 1 - share_B)), audio)


def augmented(
    media: MediaBatch, draws: Sequence[Draw], step: StepDraw, geometry: ClipGeometry, *, keep_audio: bool = False
) -> tuple[MediaBatch, TrainingInputs]:
    """The batch as the draws change it. A modality is only dropped from clips that also have the other one.

    `keep_audio` keeps the spectrogram as it was, for its reconstruction.
    """
    clips, chunks = len(draws), geometry.chunks
    video_BTN = _or_all(media.video_valid_BTN, (clips, chunks, geometry.video_tokens))
    audio_BTN = _or_all(media.audio_valid_BTN, (clips, chunks, geometry.audio_tokens))
    both = media.tubes is not None and media.mel_BTZS is not None
    both_B = video_BTN.flatten(1).any(1) & audio_BTN.flatten(1).any(1) & both
    drop_audio_B, drop_video_B = step.drop_audio & both_B, step.drop_video & both_B
    kept_BT1 = ~torch.stack([draw.dropped_T for draw in draws])[:, :, None]
    # A dropped modality is an absent one, so there is no target either; a dropped chunk is there to be predicted.
    whole_audio_BTN = audio_BTN & ~drop_audio_B[:, None, None]
    audio_BTN = whole_audio_BTN & kept_BT1
    video_BTN = video_BTN & kept_BT1 & ~drop_video_B[:, None, None]
    mel_BTZS = None if media.mel_BTZS is None else mask_spectrogram(media.mel_BTZS, draws)
    thumbnails_BT = _or_all(media.thumbnail_valid_BT, (clips, chunks)) & ~drop_video_B[:, None]
    flip_B = torch.tensor([draw.flip for draw in draws])
    changed = replace(
        media,
        tubes=None if media.tubes is None else tuple(recolour(tube, draws) for tube in media.tubes),
        thumbnails=_mirror(recolour(media.thumbnails, draws), flip_B),
        mel_BTZS=mel_BTZS,
        video_valid_BTN=_unless_all(video_BTN),
        audio_valid_BTN=_unless_all(audio_BTN),
        thumbnail_valid_BT=_unless_all(thumbnails_BT),
        flip_B=_if_any(flip_B),
    )
    masked = [draw.masked_T for draw in draws if draw.masked_T is not None]
    extra = TrainingInputs(
        masked_BT=torch.stack(masked) if masked else None,
        memory_only_B=_if_any(torch.tensor([draw.memory_only for draw in draws])),
        chunk_repeats=step.chunk_repeats,
        whole_mel_BTZS=media.mel_BTZS if keep_audio and mel_BTZS is not media.mel_BTZS else None,
        whole_audio_valid_BTN=whole_audio_BTN if keep_audio else None,
    )
    return changed.with_hidden(), extra


def _or_all(valid: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, dtype=torch.bool) if valid is None else valid


def _unless_all(valid: Tensor) -> Tensor | None:
    return None if bool(valid.all()) else valid


def _if_any(chosen: Tensor) -> Tensor | None:
    return chosen if bool(chosen.any()) else None


def _mirror(thumbnails: Tensor, flip_B: Tensor) -> Tensor:
    """Left and right exchanged (the model does the same to the tubes, whose pixels it knows the order of)."""
    return torch.where(flip_B[:, None, None, None, None, None], thumbnails.flip(4), thumbnails) if bool(flip_B.any()) else thumbnails


def recolour(pixels: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Contrast around mid-grey, then brightness; uint8 in, uint8 out."""
    if all(draw.gain == 1 and draw.offset == 0 for draw in draws):
        return pixels
    values = torch.arange(256, dtype=torch.float32)
    changed = []
    for draw, sample in zip(draws, pixels, strict=True):
        table = ((values - 127.5) * draw.gain + 127.5 + 255 * draw.offset).round().clamp(0, 255).to(torch.uint8)
        changed.append(torch.from_numpy(table.numpy()[sample.numpy()]))  # numpy looks up by uint8; torch would need eight bytes a pixel
    return torch.stack(changed)


def mask_spectrogram(mel_BTZS: Tensor, draws: Sequence[Draw]) -> Tensor:
    """SpecAugment (arXiv 1904.08779, frequency and time masking); 0 is the mean of the normalised spectrogram."""
    if all(draw.mel_bins[1] == 0 and not any(length for _, length in draw.mel_columns) for draw in draws):
        return mel_BTZS
    mel_BTZS = mel_BTZS.clone()
    for mel_TZS, draw in zip(mel_BTZS, draws, strict=True):
        first, length = draw.mel_bins
        mel_TZS[:, first : first + length] = 0
        for mel_ZS, (start, columns) in zip(mel_TZS, draw.mel_columns, strict=True):
            mel_ZS[:, start : start + columns] = 0
    return mel_BTZS
