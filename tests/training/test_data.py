"""Micro batches: order, randomness by sample, masks, reading ahead."""

import threading
import time
from pathlib import Path

import pytest
import torch

from mirasol_cli.batches import read_ahead, sources
from mirasol_cli.batches.order import Unit
from mirasol_cli.config.schema import AugmentRecipe
from mirasol_cli.errors import ShardError
from mirasol_cli.model.batch import TrainingInputs
from mirasol_cli.training import data
from mirasol_cli.training.augment import Draw, StepDraw
from tests import synthetic

NOTHING = ["drop_modality", "drop_chunks", "mask_latents"]


def training_data(tmp_path: Path, *overrides: str, clips: int = 12, **options) -> data.TrainingData:  # type: ignore[no-untyped-def]
    if not (tmp_path / "shards").exists():
        synthetic.write_split(tmp_path / "shards" / "train", clips, **options)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", *overrides)
    return data.TrainingData(recipe, sources.open_sources(recipe), synthetic.vocabulary())


def tensors(batch: data.MicroBatch) -> list[torch.Tensor]:
    media = batch.media
    found = [*media.tubes, media.mel_BTZS, media.thumbnails, batch.text.tokens_BQL]
    return found + [mask for mask in (media.flip_B,) if mask is not None]


def test_shares_make_up_the_global_batch(tmp_path: Path) -> None:
    """Same samples, same augmentation, whoever makes them and in whatever pieces."""
    augment = ["train.augment.flip=0.5", "train.augment.colour=1", "train.augment.mask_bins=4"]
    whole = training_data(tmp_path, *augment)
    pieces = training_data(tmp_path, *augment, "train.micro_batch_size=1")
    for step in (0, 3):  # the second is in the second epoch
        (all_at_once,) = whole.micro_batches(step, range(4))
        one_by_one = [batch for rank in range(2) for batch in pieces.micro_batches(step, range(2 * rank, 2 * rank + 2))]
        assert len(one_by_one) == 4
        assert [unit for batch in one_by_one for unit in batch.units] == list(all_at_once.units)
        for position, batch in enumerate(one_by_one):
            assert torch.equal(batch.media.mel_BTZS[0], all_at_once.media.mel_BTZS[position])
            for small, large in zip(batch.media.tubes, all_at_once.media.tubes, strict=True):
                assert torch.equal(small[0], large[position])


def test_epochs_differ_and_steps_repeat(tmp_path: Path) -> None:
    source = training_data(tmp_path, "train.augment.colour=1")
    first, again = source.micro_batches(1, range(4)), source.micro_batches(1, range(4))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first[0]), tensors(again[0]), strict=True))
    draws = [Draw.of(data.sample_generator(0, Unit(0, epoch, 3, (1,))), AugmentRecipe(colour=1), synthetic.GEOMETRY, 1) for epoch in (0, 1)]
    assert draws[0].gain != draws[1].gain


def test_the_plan_does_not_depend_on_the_questions() -> None:
    one, other = (data.sample_generator(5, Unit(0, 2, 3, texts)) for texts in ((0,), (1, 2)))
    assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=other))


def test_frequencies_are_those_of_the_recipe() -> None:
    augment = AugmentRecipe(flip=0.3, drop_modality=0.2, drop_chunks=0.4, mask_latents=0.25, memory_only=0.35, max_chunk_repeats=4)
    draws = [Draw.of(data.sample_generator(0, Unit(0, 0, clip, ())), augment, synthetic.GEOMETRY, 3) for clip in range(3000)]

    def share(found) -> float:  # type: ignore[no-untyped-def]
        return sum(map(float, found)) / len(draws)

    assert share(draw.flip for draw in draws) == pytest.approx(0.3, abs=0.03)
    steps = [StepDraw.of(data.step_generator(0, step), augment) for step in range(3000)]
    assert share(step.drop_audio for step in steps) == pytest.approx(0.2, abs=0.03)
    assert share(step.drop_video for step in steps) == pytest.approx(0.2, abs=0.03)
    assert share(draw.memory_only for draw in draws) == pytest.approx(0.35, abs=0.03)
    assert [share(step.chunk_repeats == n for step in steps) for n in range(6)] == pytest.approx([0, *[0.25] * 4, 0], abs=0.03)
    assert not any(step.drop_audio and step.drop_video for step in steps)
    assert share(bool(draw.dropped_T.any()) for draw in draws) == pytest.approx(0.4 * 0.875, abs=0.05)
    assert share(draw.masked_T.float().mean() for draw in draws) == pytest.approx(0.25, abs=0.03)
    assert not any(draw.dropped_T.all() or draw.masked_T.all() for draw in draws)
    assert {draw.view for draw in draws} == {0, 1, 2}


def test_switching_one_change_off_leaves_the_others() -> None:
    unit = Unit(0, 0, 7, ())
    with_flip = Draw.of(data.sample_generator(0, unit), AugmentRecipe(flip=1, colour=0.5), synthetic.GEOMETRY, 1)
    without = Draw.of(data.sample_generator(0, unit), AugmentRecipe(flip=0, colour=0.5), synthetic.GEOMETRY, 1)
    assert with_flip.flip
    assert not without.flip
    assert with_flip.gain == without.gain
    assert torch.equal(with_flip.masked_T, without.masked_T)


def test_only_clips_with_both_lose_one(tmp_path: Path) -> None:
    """drop_modality 0.5: every clip loses its sound or its picture, but for those that had one only."""
    source = training_data(tmp_path, "train.augment.drop_modality=0.5", "train.augment.drop_chunks=0", silent_clips=range(0, 12, 2))
    for step in range(3):
        (batch,) = source.micro_batches(step, range(4))
        media = batch.media
        video = torch.ones(4, dtype=torch.bool) if media.video_valid_BTN is None else media.video_valid_BTN.flatten(1).any(1)
        assert media.audio_valid_BTN is not None
        audio = media.audio_valid_BTN.flatten(1).any(1)
        silent = torch.tensor([unit.clip % 2 == 0 for unit in batch.units])
        assert torch.equal(video ^ audio, torch.ones(4, dtype=torch.bool))
        assert bool(video[silent].all())
        assert media.thumbnail_valid_BT is None or torch.equal(media.thumbnail_valid_BT.any(1), video)


def test_without_changes_all_masks_are_none(tmp_path: Path) -> None:
    source = training_data(tmp_path, *(f"train.augment.{key}=0" for key in NOTHING))
    batch = source.micro_batches(0, range(4))[0]
    media = batch.media
    masks = (media.video_valid_BTN, media.audio_valid_BTN, media.thumbnail_valid_BT, media.flip_B)
    assert masks == (None,) * 4
    assert batch.extra == TrainingInputs()


def test_the_latents_of_some_clips_are_hidden_and_some_clips_are_stretched(tmp_path: Path) -> None:
    source = training_data(tmp_path, "model.combiner.kind=ttm", "train.augment.memory_only=0.5", "train.augment.max_chunk_repeats=3")
    extra = [source.micro_batches(step, range(4))[0].extra for step in range(12)]
    assert {one.chunk_repeats for one in extra} == {1, 2, 3}
    hidden = [one.memory_only_B for one in extra]
    found = torch.cat([torch.zeros(4, dtype=torch.bool) if one is None else one for one in hidden])
    assert 12 <= int(found.sum()) <= 36


def test_colour_changes_pixels_and_thumbnails_alike_and_keeps_uint8(tmp_path: Path) -> None:
    plain, changed = (training_data(tmp_path, f"train.augment.colour={value}").micro_batches(0, range(4))[0].media for value in (0, 1))
    for before, after in zip((*plain.tubes, plain.thumbnails), (*changed.tubes, changed.thumbnails), strict=True):
        assert after.dtype == torch.uint8
        assert not torch.equal(before, after)
    darker = [
        float(after.float().mean() - before.float().mean())
        for before, after in ((plain.tubes[0], changed.tubes[0]), (plain.thumbnails, changed.thumbnails))
    ]
    assert darker[0] == pytest.approx(darker[1], abs=3)


def test_flip_mirrors_the_thumbnails_and_leaves_the_tubes_to_the_model(tmp_path: Path) -> None:
    plain, flipped = (training_data(tmp_path, f"train.augment.flip={value}").micro_batches(0, range(4))[0].media for value in (0, 1))
    assert flipped.flip_B is not None
    assert bool(flipped.flip_B.all())
    assert torch.equal(flipped.thumbnails, plain.thumbnails.flip(4))
    assert torch.equal(flipped.tubes[0], plain.tubes[0])


def test_spectrogram_masks_are_zero_stretches(tmp_path: Path) -> None:
    plain, masked = (
        training_data(tmp_path, f"train.augment.mask_bins={value}", f"train.augment.mask_columns={value}")
        .micro_batches(0, range(4))[0]
        .media
        for value in (0, 6)
    )
    changed = masked.mel_BTZS != plain.mel_BTZS
    assert bool(changed.any())
    assert bool((masked.mel_BTZS[changed] == 0).all())
    assert bool((changed.all(dim=3).sum(dim=2) <= 6).all())


HIDING = ["drop_modality=0", "drop_chunks=0.9", "mask_latents=0", "mask_bins=6", "mask_columns=6"]


def test_what_training_hides_of_the_sound_stays_to_be_rebuilt(tmp_path: Path) -> None:
    hiding = [f"train.augment.{word}" for word in HIDING]
    plain = training_data(tmp_path, *(f"train.augment.{key}=0" for key in NOTHING)).micro_batches(0, range(4))[0].media
    heard = training_data(tmp_path, *hiding).micro_batches(0, range(4))[0].media
    batch = training_data(tmp_path, *hiding, "loss.audio=1").micro_batches(0, range(4))[0]
    rebuilt, extra = batch.media, batch.extra
    assert training_data(tmp_path, *hiding).micro_batches(0, range(4))[0].extra == TrainingInputs()
    assert torch.equal(rebuilt.mel_BTZS, heard.mel_BTZS)
    assert not torch.equal(rebuilt.mel_BTZS, plain.mel_BTZS)
    assert rebuilt.audio_valid_BTN is not None
    assert not bool(rebuilt.audio_valid_BTN.all())
    assert extra.whole_mel_BTZS is not None
    assert torch.equal(extra.whole_mel_BTZS, plain.mel_BTZS)
    assert extra.whole_audio_valid_BTN is not None
    assert bool(extra.whole_audio_valid_BTN.all())


def test_sound_that_a_clip_loses_as_a_whole_is_not_to_be_rebuilt(tmp_path: Path) -> None:
    source = training_data(tmp_path, "train.augment.drop_modality=0.5", "train.augment.drop_chunks=0", "loss.audio=1", silent_clips=(1,))
    for step in range(3):
        batch = source.micro_batches(step, range(4))[0]
        assert batch.media.audio_valid_BTN is not None
        assert batch.extra.whole_audio_valid_BTN is not None
        assert torch.equal(batch.extra.whole_audio_valid_BTN, batch.media.audio_valid_BTN)


def test_a_picture_that_a_clip_loses_is_not_to_be_rebuilt(tmp_path: Path) -> None:
    """Else the model would be taught to draw what it may not see; what only single chunks lose stays a target."""
    source = training_data(tmp_path, "train.augment.drop_modality=0.5", "train.augment.drop_chunks=0.9")
    lost = kept = 0
    for step in range(3):
        (batch,) = source.micro_batches(step, range(4))
        media, drawn = batch.media, StepDraw.of(data.step_generator(source.recipe.train.seed, step), source.recipe.train.augment)
        for b in range(len(batch.units)):
            target_T = torch.ones(3, dtype=torch.bool) if media.thumbnail_valid_BT is None else media.thumbnail_valid_BT[b]
            assert bool(target_T.any()) == bool(target_T.all()) == (not drawn.drop_video)
            lost, kept = lost + drawn.drop_video, kept + (not drawn.drop_video)
    assert lost
    assert kept


def test_a_source_without_answers_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 2, questions=0)
    with pytest.raises(ShardError, match="no text with an answer"):
        sources.open_sources(synthetic.recipe(tmp_path / "run", tmp_path / "shards"))
    with pytest.raises(ShardError, match="nowhere"):
        sources.open_sources(synthetic.recipe(tmp_path / "run", tmp_path / "nowhere"))


def test_another_geometry_is_refused_with_both_values(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 2)
    with pytest.raises(ShardError, match=r"clip\.frames: 24 here, 12 there"):
        sources.open_sources(synthetic.recipe(tmp_path / "run", tmp_path / "shards", "clip.frames=24"))


# ---------------------------------------------------------------------------------------------------------- reading ahead


def test_read_ahead_keeps_the_order_and_measures_waiting() -> None:
    def slow(step: int) -> int:
        time.sleep(0.02)
        return step * step

    with read_ahead.ReadAhead(slow, range(3, 7)) as ahead:
        assert list(ahead) == [9, 16, 25, 36]
        assert ahead.waited_s > 0.03


def test_an_error_is_raised_at_its_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ShardError("shard 2 is damaged")
        return step

    got = []
    with read_ahead.ReadAhead(make, range(5)) as ahead, pytest.raises(ShardError, match="shard 2"):
        for item in ahead:
            got.append(item)
    assert got == [0, 1]


def test_leaving_early_ends_the_threads() -> None:
    with read_ahead.ReadAhead(lambda step: step, range(10**9), threads=3) as ahead:
        assert next(iter(ahead)) == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_several_threads_keep_the_order_and_never_run_too_far_ahead(threads: int) -> None:
    made: list[int] = []
    busy, most, lock = 0, 0, threading.Lock()

    def make(step: int) -> int:
        nonlocal busy, most
        with lock:
            busy, made[:] = busy + 1, [*made, step]
            most = max(most, busy)
        time.sleep(0.01 if step % 3 else 0.03)  # later steps are done before earlier ones
        with lock:
            busy -= 1
        return step

    with read_ahead.ReadAhead(make, range(20), ahead=4, threads=threads) as ahead:
        for number, item in enumerate(ahead):
            assert item == number
            assert max(made) <= number + 5  # the one in use, at most one that was sent, and `ahead` more
    assert most == min(threads, 4)


def test_the_next_batch_is_sent_before_the_present_one_is_used() -> None:
    sent: list[int] = []

    def send(item: int) -> int:
        sent.append(item)
        return -item

    with read_ahead.ReadAhead(lambda step: step, range(1, 6), send=send) as ahead:
        for number, item in enumerate(ahead, 1):
            assert item == -number
            assert number in sent
            time.sleep(0.05)  # the next ones are made by now
            assert sent in ([*range(1, number + 1)], [*range(1, number + 2)])
    assert sent == [1, 2, 3, 4, 5]
    with read_ahead.ReadAhead(lambda step: step, range(1, 6), send=send) as ahead:
        items = iter(ahead)
        next(items)
        time.sleep(0.05)
        next(items)
        assert sent[-1] == 3


@pytest.mark.parametrize("readers", [1, 5])
def test_the_number_of_readers_changes_no_batch(tmp_path: Path, readers: int) -> None:
    one, other = training_data(tmp_path, "data.readers=2"), training_data(tmp_path, f"data.readers={readers}")
    expected = [tensors(one.micro_batches(step, range(4))[0]) for step in range(7)]  # three steps are an epoch
    with other.ahead(range(7), range(4), torch.device("cpu")) as ahead:
        found = [tensors(batches[0]) for batches in ahead]
    assert len(found) == 7
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_damage_is_raised_at_its_step_whoever_reads(tmp_path: Path) -> None:
    source = training_data(tmp_path, "data.readers=4")
    path = tmp_path / "shards" / "train" / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-3000:] = bytes(3000)
    path.write_bytes(content)
    with source.ahead(range(3), range(4), torch.device("cpu")) as ahead, pytest.raises(ShardError, match="does not match its checksum"):
        list(ahead)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_on_a_gpu_is_the_batch(tmp_path: Path) -> None:
    where = torch.device("cuda", 0)
    source = training_data(tmp_path)
    with source.ahead(range(4), range(4), where) as ahead:
        for step, (batch,) in enumerate(ahead):
            (expected,) = source.micro_batches(step, range(4))
            assert batch.media.thumbnails.is_pinned()
            media, text, _ = batch.on(where)
            assert media.thumbnails.device == where
            assert torch.equal(media.thumbnails.cpu(), expected.media.thumbnails)
            assert torch.equal(text.tokens_BQL.cpu(), expected.text.tokens_BQL)
