"""What training changes in the sound, and mixup: each change does what its key says, and nothing else."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mirasol_cli.batches import sources
from mirasol_cli.batches.collate import media_batch, text_batch
from mirasol_cli.config.schema import AugmentRecipe
from mirasol_cli.geometry import AudioGeometry
from mirasol_cli.media.audio import Window
from mirasol_cli.media.spectrogram import MEL_FLOOR, MEL_MEAN, MEL_STD, chunk_log_mel, louder
from mirasol_cli.model.batch import MediaBatch
from mirasol_cli.training import data
from mirasol_cli.training.augment import Draw, mixed, retuned
from tests import small_model, synthetic

AUDIO = synthetic.GEOMETRY.audio
QUIET = AugmentRecipe(drop_modality=0, drop_chunks=0, mask_latents=0)
QUIET_KEYS = ["train.augment.drop_modality=0", "train.augment.drop_chunks=0", "train.augment.mask_latents=0"]


def draw(**changes: float) -> Draw:
    return replace(Draw.of(torch.Generator().manual_seed(0), QUIET, synthetic.GEOMETRY, 1), **changes)


def batch(
    *keys: str, colours: Sequence[int] = (), video: bool = True, ends: int | None = None, audio: Sequence[int | None] = ()
) -> MediaBatch:
    """Clips by name; `ends`: columns of sound in each chunk (None: all)."""
    samples = [synthetic.sample(key, colour=colours[n] if colours else 0, audio=audio[n] if audio else 0) for n, key in enumerate(keys)]
    for sample in samples:
        if ends is not None:
            sample["mel_valid"][:, ends:] = 0
            sample["mel"][:, :, ends:] = 0
    return media_batch(samples, synthetic.GEOMETRY, video=video)


def in_time(mel_TZS: Tensor, columns: int) -> Tensor:
    """[Z, all heard columns]"""
    return torch.cat(list(mel_TZS[:, :, :columns]), dim=1)


def power(normal: Tensor) -> Tensor:
    return (normal * 2 * MEL_STD + MEL_MEAN).exp()


# ------------------------------------------------------------------------------------------------ time shift


@pytest.mark.parametrize("ends", [None, 10])
def test_sound_begins_later_and_what_leaves_the_end_enters_at_the_start(ends: int | None) -> None:
    media, columns = batch("a", "b", video=False, ends=ends), ends or AUDIO.columns
    shifted = retuned(media, [draw(time_shift=0.25), draw()], AUDIO)
    before, after = in_time(media.mel_BTZS[0], columns), in_time(shifted.mel_BTZS[0], columns)
    steps = round(0.25 * before.shape[1])
    assert steps > 0
    torch.testing.assert_close(after[:, steps:], before[:, :-steps], atol=1e-3, rtol=0)
    torch.testing.assert_close(after[:, :steps], before[:, -steps:], atol=1e-3, rtol=0)
    assert not bool(shifted.mel_BTZS[:, :, :, columns:].any())
    assert torch.equal(shifted.mel_BTZS[1], media.mel_BTZS[1])


def test_sound_stays_in_the_time_of_its_picture() -> None:
    media = batch("a", "b")
    assert torch.equal(retuned(media, [draw(time_shift=0.4)] * 2, AUDIO).mel_BTZS, media.mel_BTZS)


# ------------------------------------------------------------------------------------------------ gain


@pytest.mark.parametrize("db", [6.0, -6.0])
def test_louder_sound_has_more_power(db: float) -> None:
    media = batch("a", "b", ends=10)
    changed = retuned(media, [draw(gain_db=db), draw()], AUDIO)
    heard = media.mel_BTZS[0, :, :, :10]
    wanted = heard + db * math.log(10) / 10 / (2 * MEL_STD)
    silent = (math.log(MEL_FLOOR) - MEL_MEAN) / (2 * MEL_STD)
    floor = torch.full_like(heard, silent)
    torch.testing.assert_close(
        changed.mel_BTZS[0, :, :, :10], torch.where(heard <= silent + 2e-3, floor, wanted.clamp(min=silent)), atol=2e-3, rtol=0
    )
    assert not bool(changed.mel_BTZS[0, :, :, 10:].any())
    assert torch.equal(changed.mel_BTZS[1], media.mel_BTZS[1])


@pytest.mark.parametrize("frontend", ["mel", "ast"])
def test_the_spectrogram_of_louder_sound_is_the_louder_spectrogram(frontend: str) -> None:
    audio = AudioGeometry(frontend=frontend, n_mels=32, columns=64)
    noise = (0.05 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    noise[4000:6000] = 0
    (quiet, heard), (loud, _) = (chunk_log_mel(Window(k * noise, np.ones(8000, bool)), audio) for k in (1, 2))
    before, after = (torch.from_numpy(mel[:, heard]).float() for mel in (quiet, loud))
    found = louder(before, 20 * math.log10(2), audio)
    # Where sound begins and ends the quiet spectrogram may lie below the floor, which cannot be made louder.
    assert float(((found - after).abs() < 5e-3).float().mean()) > 0.95
    assert float((found - before)[:, 30:34].abs().max()) < 1e-3  # silence stays silence


# ------------------------------------------------------------------------------------------------ mixup


def test_sounds_are_added_in_power_and_pictures_cross_faded() -> None:
    media, others = batch("a", "b", colours=(0, 2)), batch("c", "d", colours=(2, 0), audio=(1, 1))
    together, shares = mixed(media, others, [draw(own_share=0.75), draw(own_share=1)], synthetic.GEOMETRY)
    assert shares == [0.75, 1]
    wanted = 0.75 * power(media.mel_BTZS[0]) + 0.25 * power(others.mel_BTZS[0])
    audible = wanted > 2 * MEL_FLOOR
    assert bool(audible.any())
    torch.testing.assert_close(power(together.mel_BTZS[0])[audible], wanted[audible], rtol=0.05, atol=0)
    for own, other, both in zip(
        (*media.tubes, media.thumbnails), (*others.tubes, others.thumbnails), (*together.tubes, together.thumbnails), strict=True
    ):
        assert both.dtype == torch.uint8
        torch.testing.assert_close(both[0].float(), 0.75 * own[0].float() + 0.25 * other[0].float(), atol=0.51, rtol=0)
        assert torch.equal(both[1], own[1])
    assert torch.equal(together.mel_BTZS[1], media.mel_BTZS[1])


def test_a_mix_is_heard_as_long_as_the_longer_of_both() -> None:
    media, others = batch("a", video=False, ends=5), batch("b", video=False, ends=12, audio=(1,))
    together, _ = mixed(media, others, [draw(own_share=0.5)], synthetic.GEOMETRY)
    assert together.column_valid_BTS is not None
    assert together.column_valid_BTS[0].sum(1).tolist() == [12] * 3
    torch.testing.assert_close(power(together.mel_BTZS[0, :, :, 5:12]), 0.5 * power(others.mel_BTZS[0, :, :, 5:12]), rtol=0.05, atol=2e-5)
    assert not bool(together.mel_BTZS[0, :, :, 12:].any())


def test_a_clip_stays_alone_where_the_other_lacks_what_it_has() -> None:
    media, others = batch("a", "b", audio=(0, None)), batch("c", "d", audio=(None, 0))
    together, shares = mixed(media, others, [draw(own_share=0.6)] * 2, synthetic.GEOMETRY)
    assert shares == [1, 1]
    assert torch.equal(together.mel_BTZS, media.mel_BTZS)
    blind = batch("c", "d", video=False)
    assert mixed(batch("a", "b"), blind, [draw(own_share=0.6)] * 2, synthetic.GEOMETRY)[1] == [1, 1]


def test_mixed_batches_train_both_texts_by_their_shares(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 12)
    found = {}
    for size in ("null", "1"):
        recipe = synthetic.recipe(
            tmp_path / "run", tmp_path / "shards", "train.augment.mixup=0.5", *QUIET_KEYS, f"train.micro_batch_size={size}"
        )
        source = data.TrainingData(recipe, sources.open_sources(recipe), synthetic.vocabulary())
        found[size] = [source.micro_batches(step, range(4)) for step in range(4)]
    answers = {0: "quiet", 1: "loud"}
    alone = together = 0
    for step, (whole,) in enumerate(found["null"]):
        assert whole.text.weight_BQ is not None
        for b, unit in enumerate(whole.units):
            (small,) = (found["1"][step][b],)  # the same sample, whoever makes it
            assert torch.equal(small.media.mel_BTZS[0], whole.media.mel_BTZS[b])
            weights = whole.text.weight_BQ[b][whole.text.target_BQL[b].any(-1)]
            own, texts = len(unit.text_indices), whole.text.tokens_BQL[b]
            assert float(weights[:own].std(correction=0)) == 0
            if len(weights) == own:
                assert weights.tolist() == [1] * own
                alone += 1
                continue
            together += 1
            partner = whole.units[(b + 1) % 4]
            assert len(weights) == own + len(partner.text_indices)
            assert 0.5 <= float(weights[0]) < 1
            torch.testing.assert_close(weights[own:], (1 - weights[0]).expand(len(weights) - own))
            said = {synthetic.vocabulary().decode(texts[q][whole.text.target_BQL[b, q]].tolist()) for q in range(own, len(weights))}
            assert {answers[partner.clip // 3 % 2], synthetic.COLOURS[partner.clip % 3]} == said
    assert alone
    assert together


def test_without_mixup_texts_have_no_weights(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 12)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards")
    source = data.TrainingData(recipe, sources.open_sources(recipe), synthetic.vocabulary())
    assert source.micro_batches(0, range(4))[0].text.weight_BQ is None


def test_shares_are_half_or_more_and_as_often_as_asked() -> None:
    augment = AugmentRecipe(mixup=0.3, time_shift=0.5, gain_db=6)
    draws = [Draw.of(torch.Generator().manual_seed(n), augment, synthetic.GEOMETRY, 1) for n in range(2000)]
    shares = torch.tensor([one.own_share for one in draws])
    assert float((shares < 1).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert float(shares.min()) >= 0.5
    assert float(shares[shares < 1].mean()) == pytest.approx(0.75, abs=0.03)
    for values, most in (([one.time_shift for one in draws], 0.5), ([one.gain_db for one in draws], 6)):
        assert -most <= min(values) < -0.95 * most
        assert 0.95 * most < max(values) <= most


def test_a_weighted_text_counts_by_its_weight() -> None:
    """A text of weight w is w times the loss; two halves of one text are that text."""
    model = small_model.model()
    texts = text_batch([[([5, 6], [7, 8])], [([5], [9, 10, 11])]])
    halves = text_batch([[([5, 6], [7, 8])] * 2, [([5], [9, 10, 11])] * 2], [[0.25, 0.75], [0.5, 0.5]])
    thirds = text_batch([[([5, 6], [7, 8])], [([5], [9, 10, 11])]], [[1.0], [0.25]])
    sums = {}
    for name, text in (("plain", texts), ("halves", halves), ("thirds", thirds)):
        sums[name] = model.text.target_loss(text.tokens_BQL, text.valid_BQL, text.target_BQL, weight_BQ=text.weight_BQ)
    torch.testing.assert_close(sums["plain"][0], sums["halves"][0])
    assert (float(sums["plain"][1]), float(sums["halves"][1]), float(sums["thirds"][1])) == (5, 5, 2.75)
    first, _ = model.text.target_loss(texts.tokens_BQL[:1], texts.valid_BQL[:1], texts.target_BQL[:1])
    second, _ = model.text.target_loss(texts.tokens_BQL[1:], texts.valid_BQL[1:], texts.target_BQL[1:])
    torch.testing.assert_close(sums["thirds"][0], first + 0.25 * second)
