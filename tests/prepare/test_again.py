"""`prepare` where something was prepared before: what is not done twice, and what is added."""

import json
from pathlib import Path

import pytest

from mirasol_cli.errors import ShardError, UsageError
from mirasol_cli.prepare.command import prepare
from mirasol_cli.shards.reader import ShardFolder
from tests.media.fake_decoding import FakePool, tree
from tests.prepare.small_world import World
from tests.shards.samples import forget_columns

pytestmark = pytest.mark.usefixtures("made_up_decoding")


def test_a_mended_text_decodes_nothing(world: World) -> None:
    world.prepare(max_failed=20)
    shards = {name: content for name, content in tree(world.out).items() if name.endswith(".safetensors")}
    world.manifest.write_text(world.manifest.read_text().replace('"answer": "7"', '"answer": "seven"'))
    world.prepare(max_failed=20)
    assert FakePool.submitted == []
    assert {name: content for name, content in tree(world.out).items() if name.endswith(".safetensors")} == shards
    answers = [text["answer"] for text in ShardFolder(world.out).split("train").texts("qa")]
    assert "seven" in answers
    assert "7" not in answers


def test_new_clips_are_appended_and_only_they_are_decoded(world: World) -> None:
    world.prepare(max_failed=20)
    kept = {
        name: content
        for name, content in tree(world.out).items()
        if name in ("train/shard-00000.safetensors", "train/shard-00001.safetensors")
    }
    lines = world.manifest.read_text().splitlines(keepends=True)
    for name in ("anew.mp4", "zebra.mp4"):
        (world.root / name).write_text("9")
        lines.insert(0, json.dumps({"video": name, "caption": name}) + "\n")
    world.manifest.write_text("".join(lines))
    summary = world.prepare(max_failed=20)
    assert world.decoded == ["anew.mp4", "zebra.mp4"]  # the shard they join holds two older clips and a failed one is not tried again
    assert summary["splits"]["train"]["expected"] == 12
    split = ShardFolder(world.out).split("train")
    assert [clip["video"] for clip in split.clips][8:] == ["clip008.mp4", "clip009.mp4", "zebra.mp4", "anew.mp4"]
    assert kept.items() <= tree(world.out).items()
    assert [text["clip"] for text in split.texts("qa")][:3] == [10, 11, 0]
    for clip in split.kept:
        split.media(clip)


def test_another_task_on_the_same_videos_decodes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mirasol_cli.datasets import manifest

    world.prepare(max_failed=20)
    read = manifest.read_manifest
    monkeypatch.setattr(manifest, "read_manifest", lambda path, root: [replace(split, task="caption") for split in read(path)])
    world.prepare(max_failed=20)
    assert FakePool.submitted == []
    split = ShardFolder(world.out).split("train")
    assert split.tasks == ["caption", "qa"]
    assert list(split.texts("caption")) == list(split.texts("qa"))


def test_a_second_manifest_never_writes_over_the_first(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRASOL_DATA", str(tmp_path / "data"))
    first = Path(world.prepare(out=None, max_failed=20)["out"])
    kept = tree(first)
    other = world.manifest.with_name("other.jsonl")
    other.write_text(json.dumps({"video": "clip001.mp4", "caption": "another caption"}) + "\n")
    settings = {"root": world.root, "recipe": str(world.recipe), "workers": 1, "say": world.said.append}
    assert Path(prepare(str(other), **settings)["out"]) != first
    with pytest.raises(ShardError, match=r"holds the texts of the manifest 'annotations.jsonl', not of the manifest 'other.jsonl'"):
        prepare(str(other), out=first, **settings)

    namesake = tmp_path / "elsewhere" / "annotations.jsonl"
    namesake.parent.mkdir()
    namesake.write_text(other.read_text())
    with pytest.raises(ShardError, match=r"another manifest 'annotations.jsonl', which is in another folder") as caught:
        prepare(str(namesake), **settings)
    assert f"--out {first}" in (caught.value.hint or "")
    assert tree(first) == kept

    namesake.write_text(world.manifest.read_text())
    world.manifest.unlink()
    prepare(str(namesake), out=first, max_failed=20, **settings)  # it was moved, and --out says so
    assert tree(first) == kept


def test_a_data_set_never_writes_over_a_manifest(world: World) -> None:
    world.prepare(max_failed=20)
    with pytest.raises(ShardError, match=r"holds the texts of the manifest 'annotations.jsonl', not of demo"):
        prepare("demo", out=world.out, recipe=str(world.recipe), dry_run=True, say=world.said.append)


def test_limit_then_all(world: World) -> None:
    summary = world.prepare(limit=3, max_failed=50)
    assert [c["expected"] for c in summary["splits"].values()] == [3, 3]
    assert summary["splits"]["train"]["questions"] == 6
    assert len(world.decoded) == 6
    world.prepare(max_failed=20)
    assert len(world.decoded) == 5  # of ten training clips three are known, two missing
    assert tree(world.out) == world.undisturbed()


def test_files_that_arrive_later_are_picked_up(world: World) -> None:
    world.prepare(max_failed=20)
    (world.root / "clip005.mp4").write_text("10")
    summary = world.prepare(max_failed=20)
    assert world.decoded == ["clip005.mp4"]
    assert summary["splits"]["train"]["missing"] == 1
    assert tree(world.out) == world.undisturbed()


def test_retry_failed(world: World) -> None:
    world.prepare(max_failed=20)
    (world.root / "clip002.mp4").write_text("7")
    world.prepare(max_failed=20)
    assert FakePool.submitted == []
    summary = world.prepare(retry_failed=True)
    assert world.decoded == ["clip002.mp4"]
    assert summary["splits"]["train"]["failed"] == 0
    assert tree(world.out) == world.undisturbed()


def test_only_one_split(world: World) -> None:
    summary = world.prepare(splits=["test"])
    assert list(summary["splits"]) == ["test"]
    assert ShardFolder(world.out).splits == ["test"]
    with pytest.raises(UsageError, match="unknown split 'dev'"):
        world.prepare(splits=["dev"])


def test_an_index_without_columns_gets_them_and_nothing_is_decoded(world: World) -> None:
    world.prepare(max_failed=20)
    good = tree(world.out)
    for folder in world.out.glob("*/index.json"):
        forget_columns(folder.parent)
    assert tree(world.out) != good
    FakePool.submitted = []
    world.prepare(max_failed=20)
    assert FakePool.submitted == []
    assert tree(world.out).keys() == good.keys()
    unlike = {name for name, content in tree(world.out).items() if content != good[name]}
    assert unlike == {"train/failures.jsonl", "train/index.json"}  # a test's index without columns does not tell why clips failed
