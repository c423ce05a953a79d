"""The table of what a stored clip holds, and that a field added to it goes all the way."""

from pathlib import Path

import numpy as np
import pytest

from mirasol_cli import sample as table
from mirasol_cli.batches.collate import media_batch
from mirasol_cli.batches.masking import with_chunks_in_order, without_audio, without_video
from mirasol_cli.datasets.example import ClipSpan
from mirasol_cli.errors import ShardError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import clip as media_clip
from mirasol_cli.media.decode import decode_clips
from mirasol_cli.media.sampling import ClipRequest
from mirasol_cli.sample import AUDIO, FIELDS, VIDEO, AudioState, Field, bytes_per_clip, field_shapes, fields_under
from mirasol_cli.shards.index import SplitIndex
from mirasol_cli.shards.reader import ShardFolder
from mirasol_cli.shards.writer import ShardDraft
from tests.media.made_clips import regular, write_clip
from tests.shards.samples import SMALL, made_up_sample, write_finished_split


def test_the_table_gives_names_dtypes_and_shapes() -> None:
    assert field_shapes(SMALL) == {
        "tubes.0": ("uint8", (2, 4, 768)),
        "tubes.1": ("uint8", (2, 4, 768)),
        "thumbnails": ("uint8", (2, 4, 32, 32, 3)),
        "mel": ("float16", (2, 16, 16)),
        "mel_valid": ("uint8", (2, 16)),
        "frame_valid": ("uint8", (2, 4)),
        "frame_times": ("float64", (2, 4)),
        "span": ("float64", (2,)),
        "audio_state": ("uint8", ()),
    }
    assert field_shapes(SMALL, chunks=7)["mel"] == ("float16", (7, 16, 16))


def test_the_bytes_of_a_clip_are_those_of_its_fields_per_chunk() -> None:
    sample = made_up_sample("a")
    assert bytes_per_clip(SMALL) == sum(value.nbytes for name, value in sample.items() if name not in ("span", "audio_state"))
    assert bytes_per_clip(ClipGeometry()) == 7_422_080  # decides which clips share a shard: another number needs another schema


def test_every_mask_is_a_field_and_audio_and_video_share_none() -> None:
    names = [field.name for field in FIELDS]
    assert len(set(names)) == len(names)
    assert all(field.mask in ("", *names) for field in FIELDS)
    assert [field.name for field in fields_under(AUDIO)] == ["mel", "mel_valid", "audio_state"]
    assert [field.name for field in fields_under(VIDEO)] == ["tubes", "thumbnails", "frame_valid"]


def test_the_states_of_audio_are_stored_as_these_numbers() -> None:
    assert [(state.value, state.word) for state in AudioState] == [(0, "none"), (1, "silent"), (2, "audible")]


def test_masked_chunks_are_empty_and_times_stay() -> None:
    sample = made_up_sample("a")
    changed = without_audio(without_video(sample, [1]), [1])
    for name in ("span", "frame_times", "audio_state"):
        assert np.array_equal(changed[name], sample[name])
    for name in sample.keys() - {"span", "audio_state"}:
        assert np.array_equal(changed[name][0], sample[name][0])
    assert not any(changed[name][1].any() for name in ("tubes.0", "tubes.1", "thumbnails", "frame_valid", "mel", "mel_valid"))
    silent = without_audio(sample)
    assert not any(silent[name].any() for name in ("mel", "mel_valid", "audio_state"))


def test_a_new_field_is_one_line_and_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = media_clip._values

    def with_loudness(decoded, geometry):
        values = filled(decoded, geometry)
        return values | {"loudness": values["mel"].astype(np.float64).mean(axis=1) + 1}

    monkeypatch.setattr(table, "FIELDS", (*FIELDS, Field("loudness", "float32", "T S", mask="mel_valid")))
    monkeypatch.setattr(media_clip, "_values", with_loudness)
    path = write_clip(tmp_path / "clip.mp4", regular(50, 25))
    (decoded,) = decode_clips(path, [ClipRequest()], SMALL)
    sample = media_clip.clip_sample(decoded, SMALL)
    assert (sample["loudness"].dtype, sample["loudness"].shape) == (np.float32, (2, 16))

    def fill(draft: ShardDraft, position: int, number: int) -> None:
        for wrong in (sample | {"loudness": sample["loudness"][:1]}, {name: sample[name] for name in sample if name != "loudness"}):
            with pytest.raises(ValueError, match="loudness"):
                draft.add(position, [wrong])
        draft.add(position, [sample])

    write_finished_split(tmp_path / "out" / "test", [ClipSpan(video="clip.mp4")], fill, [], geometry=SMALL)
    stored = {name: value.numpy() for name, value in ShardFolder(tmp_path / "out").split("test").media(0).items()}
    assert np.array_equal(stored["loudness"], sample["loudness"])
    assert SplitIndex.read(tmp_path / "out" / "test" / "index.json").shards[0].bytes

    assert not without_audio(stored)["loudness"].any()
    assert without_video(stored)["loudness"].all()
    assert np.array_equal(with_chunks_in_order(stored, [1, 0])["loudness"], stored["loudness"][::-1])
    assert media_batch([stored], SMALL).mel_BTZS.shape == (1, 2, 16, 16)
    del stored["loudness"]
    with pytest.raises(ShardError, match="loudness"):
        media_batch([stored], SMALL)
