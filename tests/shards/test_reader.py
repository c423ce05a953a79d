"""Shards give back what was put in, and say which file is broken."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mirasol_cli.errors import ShardError
from mirasol_cli.sample import bytes_per_clip
from mirasol_cli.shards import index as shard_format
from mirasol_cli.shards.index import SplitIndex, clips_per_shard, row_checksum, views_of
from mirasol_cli.shards.reader import ShardFolder, verify_split
from mirasol_cli.shards.shard_file import ShardFile
from mirasol_cli.shards.writer import ShardDraft, ShardSlot
from tests.shards.samples import SMALL, made_up_sample, write_split


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_format, "LARGEST_SHARD", 4)


@pytest.fixture
def folder(tmp_path: Path, small_shards: None) -> Path:
    write_split(tmp_path / "shards" / "train", 10, failed=(2, 9), missing=(5,))
    return tmp_path / "shards"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 0x10
    path.write_bytes(content)


def test_every_clip_comes_back_bit_for_bit(folder: Path) -> None:
    split = ShardFolder(folder).split("train")
    assert split.kept.tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert [clip["status"] for clip in split.clips] == ["kept"] * 2 + ["failed"] + ["kept"] * 2 + ["missing"] + ["kept"] * 3 + ["failed"]
    rows = [ShardFile(split.path / shard.name, SMALL).rows for shard in split.index.shards]
    assert rows == [3, 3, 1]  # shard k holds the expected clips [4k, 4k + 4)
    for clip in reversed(split.kept):
        sample, expected = split.media(clip), made_up_sample(f"clip{clip}.mp4")
        assert sample.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(sample[name], torch.from_numpy(value)), name
    assert len(split.texts("qa")) == 20


def test_views_are_rows_of_their_own(tmp_path: Path) -> None:
    geometry = replace(SMALL, views=3)
    write_split(tmp_path / "train", 3, geometry=geometry, failed=(0,))
    write_split(tmp_path / "test", 2, geometry=geometry)
    train, test = ShardFolder(tmp_path).split("train"), ShardFolder(tmp_path).split("test")
    assert (train.views, test.views) == (3, 1) == (views_of("train", geometry), views_of("test", geometry))
    for view in range(3):
        assert np.array_equal(train.media(2, view)["tubes.0"], made_up_sample("clip2.mp4", geometry, view)["tubes.0"])
    with pytest.raises(IndexError):
        test.media(0, 1)


def test_a_clip_without_media_is_refused(folder: Path) -> None:
    split = ShardFolder(folder).split("train")
    assert [split.has(clip) for clip in (1, 2, 5, 9, 10, -1)] == [True, False, False, False, False, False]
    for clip in (2, 5, 10):
        with pytest.raises(KeyError, match="no media"):
            split.media(clip)


def test_writing_into_a_sample_changes_nothing(folder: Path) -> None:
    split = ShardFolder(folder).split("train")
    split.media(0)["tubes.0"].zero_()
    assert torch.equal(split.media(0)["tubes.0"], torch.from_numpy(made_up_sample("clip0.mp4")["tubes.0"]))


def test_few_shards_stay_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirasol_cli.shards.reader.OPEN_SHARDS", 1)
    split = ShardFolder(folder).split("train")
    for clip in (0, 8, 4, 0):
        assert torch.equal(split.media(clip)["span"], torch.tensor([0.0, 10.0], dtype=torch.float64))
    assert len(split._open) == 1


FILES = ["index.json", "clips.jsonl", "clips.columns", "qa.jsonl", "qa.columns", "shard-00000.safetensors", "shard-00002.safetensors"]


def read_all(folder: Path) -> None:
    split = ShardFolder(folder).split("train")
    list(split.clips), list(split.texts("qa"))
    for clip in split.kept:
        split.media(clip)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete", "foreign"])
def test_damage_is_found_and_named(folder: Path, name: str, damage: str) -> None:
    path = folder / "train" / name
    content = path.read_bytes()
    if damage == "flip":
        flip(path, len(content) // 2)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "delete":
        path.unlink()
    else:
        path.write_bytes((b"<html>not what you think</html>" * (1 + len(content) // 30))[: len(content)])
    for _ in range(2):  # the second try fails too
        with pytest.raises(ShardError) as caught:
            read_all(folder)
        assert ("split 'train'" if damage == "delete" and name == "index.json" else name) in caught.value.message
        assert "mirasol prepare" in (caught.value.hint or "")
        assert caught.value.exit_code == 4
    assert any(name in problem for problem in verify_split(folder / "train"))


def test_any_flipped_byte_of_a_shard_is_found_by_verify(folder: Path) -> None:
    assert verify_split(folder / "train") == []
    path = folder / "train" / "shard-00001.safetensors"
    content = path.read_bytes()
    for at in range(0, len(content), len(content) // 25):
        flip(path, at)
        assert len(verify_split(folder / "train")) == 1
        path.write_bytes(content)


def test_any_flipped_byte_of_media_is_found_when_read(folder: Path) -> None:
    path = folder / "train" / "shard-00002.safetensors"  # one clip, so every byte of data belongs to it
    content = path.read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    for at in range(data, len(content), (len(content) - data) // 40):
        flip(path, at)
        with pytest.raises(ShardError, match="shard-00002"):
            ShardFolder(folder).split("train").media(8)
        path.write_bytes(content)


def test_any_flipped_byte_of_the_index_is_found(folder: Path) -> None:
    path = folder / "train" / "index.json"
    content = path.read_bytes()
    found = 0
    for at in range(0, len(content), 7):
        flip(path, at)
        try:
            index = SplitIndex.read(path)
        except ShardError:
            found += 1
        else:
            path.write_bytes(content)
            assert index == SplitIndex.read(path)  # only white space changed
        path.write_bytes(content)
    assert found > len(content) / 7 * 0.9


def test_a_shard_of_another_folder_is_refused(small_shards: None, tmp_path: Path) -> None:
    mine, other = (tmp_path / name / "train" for name in ("mine", "other"))
    write_split(mine, 10, failed=(3, 9), missing=(5,))
    write_split(other, 10, failed=(1, 9), missing=(5,))
    shutil.copy(other / "shard-00000.safetensors", mine / "shard-00000.safetensors")
    assert os.path.getsize(other / "shard-00000.safetensors") == SplitIndex.read(mine / "index.json").shards[0].bytes  # no difference there
    with pytest.raises(ShardError, match="shard-00000"):
        ShardFolder(mine.parent).split("train").media(2)


def test_a_folder_or_split_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no shards in"):
        ShardFolder(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="no split 'test'; it has train"):
        ShardFolder(folder).split("test")
    with pytest.raises(ShardError, match="no texts for task 'mc'; it has qa"):
        ShardFolder(folder).split("train").texts("mc")


def test_shard_size_depends_on_the_geometry_only() -> None:
    assert clips_per_shard(SMALL) == 1024
    standard = replace(SMALL, frames=128, chunks=16, size=224)
    assert clips_per_shard(standard) == 256_000_000 // bytes_per_clip(standard)
    assert clips_per_shard(replace(standard, views=8)) == 256_000_000 // bytes_per_clip(standard) // 8
    assert clips_per_shard(replace(standard, frames=4096, chunks=1024, size=1024, views=64)) == 1


def test_bytes_do_not_depend_on_the_order_of_work(tmp_path: Path) -> None:
    from mirasol_cli.datasets.example import ClipSpan

    clips = tuple(ClipSpan(video=f"v{number}", start_s=1.0, end_s=2.5) for number in range(5))
    contents: list[bytes] = []
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        slot = ShardSlot(folder=tmp_path / str(len(contents)), number=0, clips=clips, geometry=SMALL, views=1)
        slot.folder.mkdir()
        draft = ShardDraft(slot)
        for position in order:
            if position == 2:
                draft.fail(position, "decode", "moov atom not found")
            else:
                draft.add(position, [made_up_sample(clips[position].key)])
        draft.write()
        contents.append(slot.path.read_bytes() + slot.record_path.read_bytes())
    assert contents[0] == contents[1]


def test_intact_rows_are_taken_over_and_damaged_ones_are_not(tmp_path: Path) -> None:
    from mirasol_cli.datasets.example import ClipSpan

    clips = tuple(ClipSpan(video=f"v{number}") for number in range(4))
    slot = ShardSlot(folder=tmp_path, number=0, clips=clips[:3], geometry=SMALL, views=1)
    draft = ShardDraft(slot)
    for position in range(3):
        draft.add(position, [made_up_sample(clips[position].key)])
    draft.write()
    content = bytearray(slot.path.read_bytes())
    mel = made_up_sample("v1")["mel"].tobytes()
    content[content.index(mel)] ^= 1
    slot.path.write_bytes(content)
    again = ShardDraft(replace(slot, clips=clips))
    again.reuse_rows()
    assert again.open_positions == [1, 3]
    other = ShardDraft(replace(slot, geometry=replace(SMALL, size=48)))
    other.reuse_rows()
    assert other.open_positions == [0, 1, 2]


def test_a_sample_of_another_shape_is_refused(tmp_path: Path) -> None:
    from mirasol_cli.datasets.example import ClipSpan

    draft = ShardDraft(ShardSlot(folder=tmp_path, number=0, clips=(ClipSpan(video="v"),), geometry=SMALL, views=1))
    wrong = {**made_up_sample("v"), "mel": np.zeros((2, 16, 16), "float32")}
    with pytest.raises(ValueError, match="'mel' is float32"):
        draft.add(0, [wrong])
    assert row_checksum(made_up_sample("v"), ("mel", "span")) != row_checksum(made_up_sample("v"), ("span", "mel"))
