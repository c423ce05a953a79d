"""`prepare` from annotation to shards, with made-up decoding: what is written, by default and in parts; once with real decoding."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from mirasol_cli.config.paths import default_shards, source_shards
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.datasets.registry import DATASETS
from mirasol_cli.errors import ShardError
from mirasol_cli.prepare.command import prepare, recipe_of
from mirasol_cli.shards import index as shard_format
from mirasol_cli.shards.reader import ShardFolder
from mirasol_cli.shards.shard_file import ShardFile
from tests.media.fake_decoding import FakePool, tree, write_recipe
from tests.paths import SHARED
from tests.prepare.small_world import World
from tests.shards.samples import made_up_sample

pytestmark = pytest.mark.usefixtures("made_up_decoding")


def test_the_summary_and_the_files(world: World) -> None:
    summary = world.prepare(max_failed=20)
    train, test = summary["splits"]["train"], summary["splits"]["test"]
    assert {key: train[key] for key in ("expected", "kept", "failed", "missing", "questions")} == {
        "expected": 10, "kept": 7, "failed": 1, "missing": 2, "questions": 20,
    }  # fmt: skip
    assert (test["expected"], test["kept"], test["failed"], test["missing"], test["questions"]) == (3, 3, 0, 0, 6)
    assert sum(train["audio"].values()) == 7
    assert set(train["audio"]) == {"none", "silent", "audible"}
    assert summary["out"] == str(world.out)
    assert train["share"] == 0.7
    json.dumps(summary)

    split = ShardFolder(world.out).split("train")
    assert split.kept.tolist() == [0, 1, 3, 4, 7, 8, 9]
    assert [ShardFile(split.path / shard.name, split.geometry).rows for shard in split.index.shards] == [3, 2, 2]
    sample, expected = split.media(7), made_up_sample("clip007.mp4 clip007.mp4")
    assert all(torch.equal(sample[name], torch.from_numpy(value)) for name, value in expected.items() if name != "span")
    assert sample["span"].tolist() == [0.0, 12.0]
    assert [text["answer"] for text in split.texts("qa") if text["clip"] == 7] == ["clip 7", "7"]
    assert split.index.tasks["qa"].dataset == "manifest"
    failures = [json.loads(line) for line in (world.out / "train" / "failures.jsonl").read_text().splitlines()]
    assert failures == [
        {
            "video": "clip002.mp4",
            "stage": "probe",
            "reason": "no video stream in 'clip002.mp4'",
            "hint": "fetch it again",
            "clip": 2,
            "key": "clip002.mp4",
        }
    ]
    lists = json.loads((world.out / "train" / "problems.json").read_text())
    assert (lists["missing"], lists["failed"]) == (["clip005.mp4", "clip006.mp4"], ["clip002.mp4"])
    assert len(lists["silent"]) == train["audio"]["silent"]
    assert len(lists["without_audio"]) == train["audio"]["none"]


def test_clips_that_lack_frames_are_counted_and_listed(world: World) -> None:
    (world.root / "clip001.mp4").write_text("9 lacks 2")
    (world.root / "clip003.mp4").write_text("9 lacks 8")
    (world.root / "clip010.mp4").write_text("9 lacks 1")
    summary = world.prepare(max_failed=30)
    assert [summary["splits"][name]["incomplete"] for name in ("train", "test")] == [1, 1]
    assert any("train: 1 kept with frames missing" in line for line in world.said)
    listed = [json.loads(line) for line in (world.out / "train" / "incomplete.jsonl").read_text().splitlines()]
    assert listed == [{"video": "clip001.mp4", "missing": 0.25, "clip": 1, "key": "clip001.mp4"}]
    failures = [json.loads(line) for line in (world.out / "train" / "failures.jsonl").read_text().splitlines()]
    assert [(failure["clip"], failure["stage"]) for failure in failures] == [(2, "probe"), (3, "decode")]
    assert "no frame of it can be read" in failures[1]["reason"]
    assert failures[1]["hint"]

    again = world.prepare(max_failed=30, retry_failed=True, allow_audio_only=True)["splits"]["train"]
    assert (again["kept"], again["failed"], again["incomplete"], again["without_video"]) == (7, 1, 1, 1)
    assert json.loads((world.out / "train" / "problems.json").read_text())["without_video"] == ["clip003.mp4"]
    assert len((world.out / "train" / "incomplete.jsonl").read_text().splitlines()) == 1  # clip003 is not incomplete, it has no video


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
    assert json.loads((world.out / "train" / "problems.json").read_text())["short"] == ["clip000.mp4@4.000-20.000"]


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


def test_every_data_set_has_a_recipe() -> None:
    assert recipe_of("nextqa", None).startswith("nextqa-")
    assert recipe_of("nextqa", "oe") == "nextqa-oe"
    for name in DATASETS:
        load_recipe(recipe_of(name, None))
    assert recipe_of("my.jsonl", None) == "memorise"


def test_training_finds_what_prepare_wrote(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRASOL_DATA", str(tmp_path / "data"))
    summary = world.prepare(out=None, max_failed=20)
    assert summary["out"] == str(default_shards("annotations", load_recipe(str(world.recipe)).clip))
    own_name = world.prepare(out=None, max_failed=20, overrides=["data.dataset=birds"])
    recipe = load_recipe(str(world.recipe), ["data.dataset=birds"])
    assert (
        own_name["out"] == str(default_shards("birds", recipe.clip)) == str(source_shards(recipe.data.training_sources()[0], recipe.clip))
    )
    named = world.prepare(out=None, max_failed=20, overrides=[f"data.shards={tmp_path / 'named'}"])
    assert named["out"] == str(tmp_path / "named")


@pytest.mark.real
def test_the_real_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(shard_format, "LARGEST_SHARD", 7)
    clips = Path(str(SHARED)) / "clips"
    words: list[str] = []
    summary = prepare(str(clips / "annotations.jsonl"), root=clips, out=tmp_path, workers=2, say=words.append)
    train = summary["splits"]["train"]
    assert (train["expected"], train["kept"], train["failed"], train["missing"], train["questions"]) == (19, 19, 0, 0, 38)
    assert train["audio"] == {"none": 3, "silent": 3, "audible": 13}
    split = ShardFolder(tmp_path).split("train")
    assert len([split.media(clip) for clip in split.kept]) == 19
