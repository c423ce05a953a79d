"""Shards that were damaged, lost, left half written or made for another geometry: found, and made again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirasol_cli.errors import ShardError
from mirasol_cli.media import READER_VERSION
from mirasol_cli.shards.index import read_checksummed, write_checksummed
from mirasol_cli.shards.reader import ShardFolder
from tests.media.fake_decoding import FakePool, tree
from tests.prepare.small_world import World

pytestmark = pytest.mark.usefixtures("made_up_decoding")


@pytest.mark.parametrize(
    "name",
    [
        *("index.json", "clips.jsonl", "clips.columns", "qa.jsonl", "qa.columns", "failures.jsonl", "incomplete.jsonl", "problems.json"),
        "shard-00000.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_verify_finds_damage_and_repairs_it(world: World, name: str, damage: str) -> None:
    (world.root / "clip001.mp4").write_text("9 lacks 3")
    world.prepare(max_failed=20)
    good = tree(world.out)
    assert world.prepare(verify=True)["verified"]
    path = world.out / "train" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    actions: dict[str, Callable[[], Any]] = {
        "flip": lambda: path.write_bytes(content),
        "cut": lambda: path.write_bytes(content[: len(content) // 2]),
        "empty": lambda: path.write_bytes(b""),
        "delete": path.unlink,
    }
    actions[damage]()
    if (name, damage) != ("index.json", "delete"):  # then the split counts as not prepared
        for _ in range(2):
            with pytest.raises(ShardError, match=name.replace(".", r"\.")) as caught:
                world.prepare(verify=True)
            assert "--retry-failed" in (caught.value.hint or "")
    FakePool.submitted = []
    world.prepare(verify=True, retry_failed=True, max_failed=20)
    decoded = world.decoded
    assert tree(world.out) == good
    allowed = {"clip002.mp4"}  # failed, so tried again
    if name == "shard-00000.safetensors":
        allowed |= {"clip000.mp4", "clip001.mp4", "clip003.mp4"}
    assert set(decoded) <= allowed


def test_a_lost_index_is_noticed_and_made_again_from_the_shards(world: World) -> None:
    world.prepare(max_failed=20)
    good = tree(world.out)
    (world.out / "train" / "index.json").unlink()
    with pytest.raises(ShardError, match=r"'.*train' holds shards and no index.json"):
        world.prepare(verify=True)
    with pytest.raises(ShardError, match=r"no split 'train'; it has test"):
        ShardFolder(world.out).split("train")
    world.prepare(max_failed=20)
    assert world.decoded == ["clip002.mp4"]  # it failed, which no file tells any more
    assert tree(world.out) == good


def test_a_lost_shard_is_made_again_without_being_asked(world: World) -> None:
    world.prepare(max_failed=20)
    good = tree(world.out)
    (world.out / "train" / "shard-00001.safetensors").unlink()
    world.prepare(max_failed=20)
    assert world.decoded == ["clip004.mp4", "clip007.mp4"]
    assert tree(world.out) == good


def test_what_a_killed_write_left_is_removed(world: World) -> None:
    stale = world.out / "train" / ".shard-00077.safetensors.partial"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    world.prepare(max_failed=20)
    assert not stale.exists()


def test_another_geometry_stops_before_work(world: World) -> None:
    world.prepare(max_failed=20)
    good = tree(world.out)
    with pytest.raises(ShardError, match=r"clip\.size: 48 here, 32 there") as caught:
        world.prepare(overrides=["clip.size=48"])
    assert caught.value.exit_code == 4
    assert FakePool.submitted == []
    assert tree(world.out) == good


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Other values in an index or a record, sealed again, as another version would have written them."""
    plain = read_checksummed(path)
    for key, value in change.items():
        plain[key] = value
    write_checksummed(path, {key: value for key, value in plain.items() if value is not None})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1, "reader": None}, r"index.json' has schema 1; this version reads schema 2"),
        ({"reader": READER_VERSION - 1}, rf"index.json' was made by version {READER_VERSION - 1} of the video reader"),
    ],
)
def test_shards_of_an_earlier_version_are_refused_and_made_anew(world: World, change: dict[str, Any], words: str) -> None:
    world.prepare(max_failed=20)
    good = tree(world.out)
    for path in world.out.glob("*/index.json"):
        rewrite(path, change)
    old = tree(world.out)
    for act in (lambda: ShardFolder(world.out).split("train"), lambda: world.prepare(max_failed=20)):
        with pytest.raises(ShardError, match=words) as caught:
            act()
        assert f"mirasol prepare annotations.jsonl --out {world.out} --verify --retry-failed`" in (caught.value.hint or "")
    assert tree(world.out) == old
    world.prepare(verify=True, retry_failed=True, max_failed=20)
    assert tree(world.out) == good


def test_shards_of_an_earlier_reader_are_decoded_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirasol_cli.shards.writer.READER_VERSION", READER_VERSION - 1)
    world.prepare(part="0/1", max_failed=20)  # parts without an index
    monkeypatch.undo()
    with pytest.raises(ShardError, match=rf"shard-00000.json' was made by version {READER_VERSION - 1} of the video reader"):
        world.prepare(merge=True, max_failed=20)


def test_shards_of_a_later_version_ask_for_an_update(world: World) -> None:
    world.prepare(max_failed=20)
    rewrite(world.out / "train" / "index.json", {"schema": 3})
    with pytest.raises(ShardError, match="has schema 3") as caught:
        ShardFolder(world.out).split("train")
    assert "update" in (caught.value.hint or "")
