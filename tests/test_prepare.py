"""`prepare` from annotation to shards, with made-up decoding: what is written, what is not done twice, what is refused."""

import errno
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mirasol_cli import files, prepare_engines, prepare_plan
from mirasol_cli.datasets import folder
from mirasol_cli.datasets.catalogue import DATASETS
from mirasol_cli.errors import DataError, EnvironmentProblem, ShardError, TooManyFailures, UsageError
from mirasol_cli.prepare import prepare, recipe_of
from mirasol_cli.prepare_report import ProgressLine, kind_of_reason, say_table
from mirasol_cli.recipe import default_shards, load_recipe
from mirasol_cli.shards import format as shard_format
from mirasol_cli.shards.reader import ShardFolder
from tests.fake_decoding import FakePool, tree, write_recipe, write_world
from tests.paths import SHARED
from tests.shards.samples import made_up_sample


class World:
    """A manifest with its videos, and `prepare` on it."""

    def __init__(self, folder: Path, **world: Any):
        self.folder, self.root, self.out = folder, folder / "videos", folder / "out"
        self.manifest = write_world(folder, **world)
        self.recipe = write_recipe(folder)
        self.said: list[str] = []

    def prepare(self, **options: Any) -> dict[str, Any]:
        FakePool.submitted = []
        self.said.clear()
        settings: dict[str, Any] = {
            "root": self.root,
            "out": self.out,
            "recipe": str(self.recipe),
            "workers": 2,
            "say": self.said.append,
        } | options
        return prepare(str(self.manifest), **settings)

    def undisturbed(self, **options: Any) -> dict[str, bytes]:
        """The files of one run into a fresh folder."""
        other = self.folder / "undisturbed"
        shutil.rmtree(other, ignore_errors=True)
        self.prepare(out=other, max_failed=100, **options)
        return tree(other)

    @property
    def decoded(self) -> list[str]:
        return sorted(name for name, requests in FakePool.submitted if requests is not None)


@pytest.fixture(autouse=True)
def made_up_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_engines, "open_pool", lambda options, geometry: FakePool(geometry))
    monkeypatch.setattr(shard_format, "LARGEST_SHARD", 4)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, clips=10, bad=(2,), missing=(5, 6), test_clips=3)


# ------------------------------------------------------------------------------------------------ what is written


def test_the_summary_and_the_files(world: World) -> None:
    summary = world.prepare(max_failed=20)
    train, test = summary["splits"]["train"], summary["splits"]["test"]
    assert {key: train[key] for key in ("expected", "kept", "failed", "missing", "questions")} == {
        "expected": 10, "kept": 7, "failed": 1, "missing": 2, "questions": 20,
    }  # fmt: skip
    assert (test["expected"], test["kept"], test["failed"], test["missing"], test["questions"]) == (3, 3, 0, 0, 6)
    assert sum(train["audio"].values()) == 7
    assert set(train["audio"]) == {"none", "silent", "sound"}
    assert summary["out"] == str(world.out)
    assert train["share"] == 0.7
    json.dumps(summary)

    split = ShardFolder(world.out).split("train")
    assert split.kept == [0, 1, 3, 4, 7, 8, 9]
    assert [record.kept for record in split.index.shards] == [[0, 1, 3], [4, 7], [8, 9]]
    sample, expected = split.media(7), made_up_sample("clip007.mp4 clip007.mp4")
    assert all(torch.equal(sample[name], torch.from_numpy(value)) for name, value in expected.items() if name != "span")
    assert sample["span"].tolist() == [0.0, 12.0]
    assert [text["answer"] for text in split.texts("qa") if text["clip"] == 7] == ["clip 7", "7"]
    assert split.index.tasks["qa"].dataset == "manifest"
    failures = [json.loads(line) for line in (world.out / "train" / "failures.jsonl").read_text().splitlines()]
    assert failures == [
        {"video": "clip002.mp4", "stage": "probe", "reason": "no video stream in 'clip002.mp4'", "hint": "fetch it again", "clip": 2}
    ]
    lists = json.loads((world.out / "train" / "lists.json").read_text())
    assert (lists["missing"], lists["failed"]) == (["clip005.mp4", "clip006.mp4"], ["clip002.mp4"])
    assert len(lists["silent"]) == train["audio"]["silent"]
    assert len(lists["without_sound"]) == train["audio"]["none"]


def test_nothing_depends_on_the_place_or_the_order(world: World, tmp_path: Path) -> None:
    world.prepare(max_failed=20, workers=1)
    moved = World(tmp_path / "elsewhere", clips=10, bad=(2,), missing=(5, 6), test_clips=3)
    moved.prepare(max_failed=20, workers=7)
    assert tree(world.out) == tree(moved.out)
    content = b"".join(tree(world.out).values())
    assert str(tmp_path).encode() not in content


def test_the_second_run_does_nothing(world: World) -> None:
    first = world.prepare(max_failed=20)
    before = {path: path.stat().st_mtime_ns for path in world.out.rglob("*")}
    second = world.prepare(max_failed=20)
    assert second == first
    assert FakePool.submitted == []
    assert {path: path.stat().st_mtime_ns for path in world.out.rglob("*")} == before
    assert any("nothing to do" in line for line in world.said)
    assert any("--retry-failed" in line for line in world.said)


def test_one_job_per_source_and_views_in_order(tmp_path: Path) -> None:
    world = World(tmp_path, clips=1, test_clips=1)
    rows = [{"video": "clip000.mp4", "start": k, "end": k + 1.0, "caption": f"second {k}"} for k in range(3)]
    rows.append({"video": "clip000.mp4", "start": 4, "end": 20, "caption": "past the end"})
    rows.append({"video": "clip000.mp4", "start": 30, "end": 31, "caption": "outside"})
    rows.append({"video": "clip001.mp4", "caption": "all of it", "split": "test"})
    world.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_recipe(tmp_path, views=2)
    shard_format.LARGEST_SHARD = 8  # put back by the fixture
    summary = world.prepare(max_failed=50)
    assert summary["splits"]["train"]["failed"] == 1
    assert summary["splits"]["train"]["short"] == 1
    assert [(name, len(requests or ())) for name, requests in FakePool.submitted] == [("clip000.mp4", 10), ("clip001.mp4", 1)]
    train = ShardFolder(world.out).split("train")
    key = "clip000.mp4@1.000-2.000"
    for view in range(2):
        assert torch.equal(train.media(1, view)["mel"], torch.from_numpy(made_up_sample(f"clip000.mp4 {key}", train.geometry, view)["mel"]))
    assert json.loads((world.out / "train" / "lists.json").read_text())["short"] == ["clip000.mp4@4.000-20.000"]


def test_a_file_that_may_be_clip_or_source_is_told_by_its_length(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirasol_cli.datasets import manifest
    from mirasol_cli.datasets.example import Candidate

    monkeypatch.setattr(manifest, "candidates", lambda clip: [Candidate(clip.video, whole=None)])
    (world.root / "source.mp4").write_text("300")
    (world.root / "cut.mp4").write_text("10")
    rows = [{"video": video, "start": 30, "end": 40, "caption": video} for video in ("source.mp4", "cut.mp4")]
    world.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.prepare()
    train = ShardFolder(world.out).split("train")
    assert [train.media(clip)["span"].tolist() for clip in (0, 1)] == [[30.0, 40.0], [0.0, 10.0]]


def test_videos_inside_tar_shards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirasol_cli.datasets import manifest
    from mirasol_cli.datasets.example import Candidate

    with tarfile.open(world.root / "00000.tar", "w") as archive:
        for name in ("clip000.mp4", "clip002.mp4"):
            archive.add(world.root / name, name)
            (world.root / name).unlink()
    monkeypatch.setattr(manifest, "candidates", lambda clip: [Candidate(f"00000.tar/{clip.video}"), Candidate(clip.video)])
    world.prepare(max_failed=20)
    train = ShardFolder(world.out).split("train")
    assert train.has(0)
    assert not train.has(2)
    failure = json.loads((world.out / "train" / "failures.jsonl").read_text())
    assert failure["reason"] == "no video stream in 'clip002.mp4'"


# ------------------------------------------------------------------------------------------------ what is not done twice


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
    monkeypatch.setattr(manifest, "read_manifest", lambda path: [replace(split, task="caption") for split in read(path)])
    world.prepare(max_failed=20)
    assert FakePool.submitted == []
    split = ShardFolder(world.out).split("train")
    assert split.tasks == ["caption", "qa"]
    assert split.texts("caption") == split.texts("qa")


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
    with pytest.raises(UsageError, match="no split 'dev'"):
        world.prepare(splits=["dev"])


# ------------------------------------------------------------------------------------------------ parts


def test_parts_and_merge_equal_one_run(world: World) -> None:
    for part in ("1/2", "0/2"):
        world.prepare(part=part, max_failed=50)
        with pytest.raises(ShardError, match=r"no finished split|no split"):
            ShardFolder(world.out).split("train")
        if part == "1/2":
            with pytest.raises(ShardError, match=r"3 shards are not finished: .*shard-00000"):
                world.prepare(merge=True)
        again = world.prepare(part=part, max_failed=50)
        assert FakePool.submitted == []
        assert again["splits"]["train"]["expected"] > 0
    world.prepare(merge=True, max_failed=20)
    assert FakePool.submitted == []
    assert tree(world.out) == world.undisturbed()


def test_merge_checks_every_byte(world: World) -> None:
    for part in ("0/2", "1/2"):
        world.prepare(part=part, max_failed=50)
    path = world.out / "train" / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match="shard-00001"):
        world.prepare(merge=True, max_failed=50)


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("name", ["index.json", "clips.jsonl", "qa.jsonl", "failures.jsonl", "lists.json", "shard-00000.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_verify_finds_damage_and_repairs_it(world: World, name: str, damage: str) -> None:
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


# ------------------------------------------------------------------------------------------------ failures, disk, words


def test_too_many_failures(world: World) -> None:
    with pytest.raises(TooManyFailures, match=r"1 of 13 clips failed") as caught:
        world.prepare()
    assert caught.value.exit_code == 3
    assert caught.value.summary["splits"]["train"]["kept"] == 7  # type: ignore[attr-defined]
    assert len(ShardFolder(world.out).split("train").kept) == 7  # all is written
    world.prepare(max_failed=8)
    with pytest.raises(TooManyFailures, match="3 of 13"):
        world.prepare(max_failed=8, strict=True)


def test_missing_files_are_no_failures(tmp_path: Path) -> None:
    world = World(tmp_path, clips=10, missing=tuple(range(9)))
    assert world.prepare()["splits"]["train"]["missing"] == 9


def test_no_video_at_all(tmp_path: Path) -> None:
    world = World(tmp_path, clips=2, missing=(0, 1))
    with pytest.raises(DataError, match=r"none of the 2 videos .*'clip000.mp4'"):
        world.prepare()
    assert not world.out.exists()


def test_a_linked_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    world = World(tmp_path, clips=2)
    world.root.rename(tmp_path / "elsewhere")
    world.root.mkdir()
    (world.root / "videos").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="none of the 2 videos") as caught:
        world.prepare()
    assert re.match(r"links that lead out of '.*videos' are not followed \(1: 'videos'\): .* --root", caught.value.hint or "")
    world.prepare(root=tmp_path / "elsewhere")


def test_what_was_not_looked_into_is_said_and_listed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "away").symlink_to("/")
    (world.root / "locked").mkdir()
    scandir = os.scandir

    def forbidden(path: Any) -> Any:  # a permission means nothing to root
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folder.os, "scandir", forbidden)
    world.prepare(max_failed=20)
    assert any("not followed (1: 'away')" in line for line in world.said)
    assert any("may not be read (1: 'locked/')" in line for line in world.said)
    lists = json.loads((world.out / "train" / "lists.json").read_text())
    assert (lists["links_outside"], lists["unreadable_folders"]) == (["away"], ["locked/"])


def test_disk_too_small(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(prepare_plan.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(EnvironmentProblem, match=r"need [\d,]{6,} bytes, and .* 1,000 free"):
        world.prepare()
    assert not world.out.exists()
    assert FakePool.submitted == []


def test_disk_full_in_the_middle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = world.undisturbed()
    real, calls = files.os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(EnvironmentProblem, match="no space left") as caught:
        world.prepare(max_failed=20)
    assert caught.value.exit_code == 5
    assert "shards are finished and stay" in (caught.value.hint or "")
    assert str(world.out) in caught.value.message
    monkeypatch.setattr(files.os, "fsync", real)
    finished = len(list(world.out.rglob("shard-*.json")))
    assert 1 <= finished < 4
    assert not list(world.out.rglob(".*.partial"))
    world.prepare(max_failed=20)
    assert len(world.decoded) < 11
    assert tree(world.out) == whole


def test_dry_run_writes_nothing(world: World) -> None:
    summary = world.prepare(dry_run=True)
    assert not world.out.exists()
    assert summary["dry_run"]["clips"] == 11
    assert summary["dry_run"]["bytes"] > 11 * 4000
    assert (summary["splits"]["train"]["expected"], summary["splits"]["train"]["missing"]) == (10, 2)
    assert summary["dry_run"]["seconds"] >= 0


def test_the_demo_is_counted_without_rendering(tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"root": tmp_path / "demo", "overrides": ["data.clips=30"], "say": said.append}
    summary = prepare("demo", out=tmp_path / "out", dry_run=True, **options)
    assert not list(tmp_path.iterdir())
    assert [counts["expected"] for counts in summary["splits"].values()] == [30, 8, 16]
    assert summary["splits"]["train"]["questions"] > 60
    assert summary["dry_run"]["clips"] == 54
    assert summary["dry_run"]["bytes"] > 54 * load_recipe("demo").clip.bytes_per_clip * 0.9
    assert summary["dry_run"]["seconds"] is None
    assert any("no video file to estimate the time from" in line for line in said)
    assert prepare("demo", out=tmp_path / "out", dry_run=True, limit=5, **options)["splits"]["train"]["expected"] == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part": "2/2"}, "--part 2/2"),
        ({"part": "x"}, "--part x"),
        ({"part": "0/2", "merge": True}, "--merge"),
        ({"engine": "spark"}, "local or ray"),
        ({"limit": 0}, "--limit 0"),
        ({"max_failed": 101}, "--max-failed"),
    ],
)
def test_options_without_meaning(world: World, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        world.prepare(**options)


def test_what_is_not_there(world: World) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'activitynet'"):
        prepare("activtynet", say=world.said.append)
    with pytest.raises(DataError, match=r"no manifest 'nowhere.jsonl'"):
        prepare("nowhere.jsonl", say=world.said.append)
    with pytest.raises(DataError, match=r"'.*nowhere' does not exist"):
        prepare("activitynet", root=world.folder / "nowhere", say=world.said.append)
    with pytest.raises(ShardError, match="no finished split"):
        world.prepare(verify=True)


def test_ray_that_is_not_installed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentProblem, match="needs the package 'ray'") as caught:
        world.prepare(engine="ray")
    assert "mirasol[ray]" in (caught.value.hint or "")


# ------------------------------------------------------------------------------------------------ real decoding


@pytest.mark.real
def test_the_real_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(shard_format, "LARGEST_SHARD", 7)
    clips = Path(str(SHARED)) / "clips"
    words: list[str] = []
    summary = prepare(str(clips / "annotations.jsonl"), root=clips, out=tmp_path, workers=2, say=words.append)
    train = summary["splits"]["train"]
    assert (train["expected"], train["kept"], train["failed"], train["missing"], train["questions"]) == (19, 19, 0, 0, 38)
    assert train["audio"] == {"none": 3, "silent": 3, "sound": 13}
    split = ShardFolder(tmp_path).split("train")
    assert len([split.media(clip) for clip in split.kept]) == 19


# ------------------------------------------------------------------------------------------------ defaults and words


def test_every_data_set_has_a_recipe() -> None:
    assert recipe_of("nextqa", None).startswith("nextqa-")
    assert recipe_of("nextqa", "oe") == "nextqa-oe"
    for name in DATASETS:
        load_recipe(recipe_of(name, None))
    assert recipe_of("my.jsonl", None) == "memorise"


def test_training_finds_what_prepare_wrote(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRASOL_DATA", str(tmp_path / "data"))
    summary = world.prepare(out=None, max_failed=20)
    assert summary["out"] == str(default_shards("manifest", load_recipe(str(world.recipe)).clip))
    named = world.prepare(out=None, max_failed=20, overrides=[f"data.shards={tmp_path / 'named'}"])
    assert named["out"] == str(tmp_path / "named")


def test_progress_in_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    said: list[str] = []
    monkeypatch.setattr("mirasol_cli.prepare_report.time.monotonic", lambda: now[0])
    progress = ProgressLine(1000, said.append, bar=False)
    for _ in range(20):
        now[0] += 1
        progress(10, 360.0)
    assert len(said) == 4
    assert said[-1] == "200 of 1000 clips, 2.00 h of video, 10.0 clips/s, 0:01:20 left"


COUNTS = {
    "expected": 4, "kept": 3, "failed": 1, "missing": 0, "questions": 8, "audio": {"none": 1, "silent": 0, "sound": 2}, "share": 0.75,
    "seconds": 3600.0, "bytes": 2_000_000, "reasons": {f"reason {k}": 1 for k in range(11)}, "notes": ["one", "two"], "duplicates": 0,
}  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_at_the_end(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said: list[str] = []
    say_table({"train": COUNTS, "[red]": COUNTS}, said.append, terminal=terminal)
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(said))
    assert ("╭" in text) == terminal
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 100 - 20 * terminal for line in said)
    for words in ("[red]", "75.0%", "1.00", "no sound", "train: 1 failed: reason 7", "3 more kinds of failures, all in train/failures"):
        assert words in text
    assert "reason 8" not in text
    assert "more notes" not in text


def test_reasons_are_counted_by_kind() -> None:
    assert kind_of_reason("truncated: decoded 3.1 of 10.0 s in 'a.mp4'") == kind_of_reason("truncated: decoded 4 of 9.5 s in 'b c.mp4'")
    assert kind_of_reason("empty file") == "empty file"


def test_a_folder_that_cannot_be_written(world: World) -> None:
    world.out.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentProblem, match="cannot write") as caught:
        world.prepare()
    assert caught.value.exit_code == 5
