"""Samples to batches: masks, padding, ragged clips and texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mirasol_cli.batches.collate import media_batch, text_batch
from mirasol_cli.errors import ShardError
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.model.batch import Hidden

GEOMETRY = ClipGeometry(
    frames=12,
    chunks=3,
    size=32,
    tubes=(Tube(kernel=(2, 16, 16), stride=(2, 16, 16)), Tube(kernel=(1, 16, 16), stride=(4, 16, 16))),
    audio=AudioGeometry(n_mels=32, columns=48),
)


def sample(chunks: int = 3, seed: int = 0, audio_state: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    fields = {
        f"tubes.{kind}": random.integers(0, 256, (chunks, count, tube.numbers_per_token), dtype=np.uint8)
        for kind, (count, tube) in enumerate(zip(GEOMETRY.tube_tokens, GEOMETRY.tubes, strict=True))
    }
    return fields | {
        "thumbnails": random.integers(0, 256, (chunks, 4, 32, 32, 3), dtype=np.uint8),
        "mel": random.normal(size=(chunks, 32, 48)).astype(np.float16),
        "mel_valid": np.ones((chunks, 48), np.uint8),
        "frame_valid": np.ones((chunks, 4), np.uint8),
        "frame_times": np.zeros((chunks, 4)),
        "span": np.zeros(2),
        "audio_state": np.array(audio_state, np.uint8),
    }


def test_a_whole_batch_has_no_masks_and_all_its_numbers() -> None:
    one, other = sample(seed=1), sample(seed=2)
    batch = media_batch([one, {name: torch.from_numpy(value) for name, value in other.items()}], GEOMETRY)
    assert batch.video_valid_BTN is batch.audio_valid_BTN is batch.thumbnail_valid_BT is batch.chunk_valid_BT is None
    assert [tuple(tubes.shape) for tubes in batch.tubes] == [(2, 3, 8, 1536), (2, 3, 4, 768)]
    assert np.array_equal(batch.tubes[1][1].numpy(), other["tubes.1"])
    assert np.array_equal(batch.thumbnails[0].numpy(), one["thumbnails"])
    assert batch.mel_BTZS.dtype == torch.float32
    assert np.array_equal(batch.mel_BTZS[0].numpy(), one["mel"].astype(np.float32))


@pytest.mark.parametrize("audio_state", [0, 1])
def test_absent_and_silent_sound_is_masked_and_zero(audio_state: int) -> None:
    batch = media_batch([sample(), sample(audio_state=audio_state)], GEOMETRY)
    assert batch.audio_valid_BTN is not None
    assert batch.audio_valid_BTN.shape == (2, 3, GEOMETRY.audio_tokens)
    assert batch.audio_valid_BTN[0].all()
    assert not batch.audio_valid_BTN[1].any()
    assert not batch.mel_BTZS[1].any()
    assert batch.mel_BTZS[0].any()


def test_a_modality_that_the_recipe_leaves_out_is_not_there() -> None:
    batch = media_batch([sample()], GEOMETRY, audio=False)
    assert batch.mel_BTZS is None
    assert batch.audio_valid_BTN is None
    assert batch.hidden == Hidden(part_of_video=False, part_of_audio=False, all_audio=True, part_of_chunks=False)
    batch = media_batch([sample()], GEOMETRY, video=False)
    assert batch.tubes is None
    assert batch.thumbnail_valid_BT is not None
    assert not batch.thumbnail_valid_BT.any()
    assert batch.hidden == Hidden(part_of_video=False, part_of_audio=False, all_video=True, part_of_chunks=False)


def test_sound_that_ends_early_is_masked_from_there() -> None:
    short = sample()
    short["mel_valid"][2, 17:] = 0
    batch = media_batch([short], GEOMETRY)
    assert batch.audio_valid_BTN is not None
    assert batch.audio_valid_BTN[0, :2].all()
    # 2 rows of 3 patches over 48 columns: 17 columns reach into the second patch.
    assert batch.audio_valid_BTN[0, 2].tolist() == [True, True, False] * 2
    assert not batch.mel_BTZS[0, 2, :, 17:].any()
    assert batch.mel_BTZS[0, 2, :, :17].any()


def test_frames_that_are_not_there_mask_their_tubes_and_thumbnails() -> None:
    short = sample()
    short["frame_valid"][1, 2:] = 0
    short["frame_valid"][2] = 0
    batch = media_batch([short, sample()], GEOMETRY)
    assert batch.video_valid_BTN is not None
    assert batch.thumbnail_valid_BT is not None
    assert batch.video_valid_BTN[1].all()
    assert batch.video_valid_BTN[0, 0].all()
    assert batch.video_valid_BTN[0, 1].tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert not batch.video_valid_BTN[0, 2].any()
    assert batch.thumbnail_valid_BT.tolist() == [[True, True, False], [True] * 3]
    assert batch.chunk_valid_BT is None


def test_clips_with_fewer_chunks_are_padded() -> None:
    batch = media_batch([sample(3), sample(1, seed=5)], GEOMETRY)
    assert batch.chunk_valid_BT is not None
    assert batch.video_valid_BTN is not None
    assert batch.chunk_valid_BT.tolist() == [[True] * 3, [True, False, False]]
    assert np.array_equal(batch.tubes[0][1, 0].numpy(), sample(1, seed=5)["tubes.0"][0])
    assert not batch.tubes[0][1, 1:].any()
    assert batch.video_valid_BTN[1].any(dim=1).tolist() == [True, False, False]
    assert batch.audio_valid_BTN is not None
    assert batch.audio_valid_BTN[1].any(dim=1).tolist() == [True, False, False]
    alone = media_batch([sample(1, seed=5)], GEOMETRY)
    assert alone.chunk_valid_BT is None
    assert alone.mel_BTZS.shape[1] == 1


def test_samples_of_another_geometry_are_refused_with_the_numbers() -> None:
    other = replace(GEOMETRY, audio=AudioGeometry(n_mels=32, columns=64))
    with pytest.raises(ShardError, match=r"'mel' of a sample is \(3, 32, 48\), the recipe's clip section gives \(3, 32, 64\)"):
        media_batch([sample()], other)
    broken = sample()
    del broken["tubes.1"]
    with pytest.raises(ShardError, match=r"lacks the field 'tubes\.1'"):
        media_batch([broken], GEOMETRY)
    with pytest.raises(ValueError, match="at least one clip"):
        media_batch([], GEOMETRY)


def test_texts_are_padded_and_only_targets_carry_loss() -> None:
    batch = text_batch([[([1, 5, 6], [7, 2]), ([1, 8], [])], [([1], [9, 9, 9, 2])], []])
    assert batch.tokens_BQL.shape == (3, 2, 5)
    assert batch.tokens_BQL.dtype == torch.int64
    assert batch.tokens_BQL[0, 0].tolist() == [1, 5, 6, 7, 2]
    assert batch.target_BQL[0, 0].tolist() == [False, False, False, True, True]
    assert batch.valid_BQL[0, 1].tolist() == [True, True, False, False, False]
    assert not batch.target_BQL[0, 1].any()
    assert batch.target_BQL[1, 0].tolist() == [False, True, True, True, True]
    assert not batch.valid_BQL[1, 1].any()
    assert not batch.valid_BQL[2].any()


def test_a_batch_without_any_text_still_has_a_shape() -> None:
    batch = text_batch([[], []])
    assert batch.tokens_BQL.shape == (2, 1, 1)
    assert not batch.valid_BQL.any()
