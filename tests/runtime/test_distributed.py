"""Two gloo processes against one: the same losses, the same data, checkpoints that each reads of the other."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mirasol_cli.batches.sources import open_sources
from mirasol_cli.checkpoints import folder as checkpoints_folder
from mirasol_cli.checkpoints import load
from mirasol_cli.checkpoints.export import export
from mirasol_cli.shards.reader import ShardFolder
from mirasol_cli.training.data import TrainingData
from tests import synthetic
from tests.training.processes import forked, run


def rows(folder: Path) -> list[dict[str, float]]:
    """Losses and gradient norms of every step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key.startswith("loss") or key == "gradient_norm"} for line in lines]


def assert_close_runs(one: Path, other: Path, steps: int) -> None:
    first, second = rows(one), rows(other)
    assert len(first) == len(second) == steps
    for step, (a, b) in enumerate(zip(first, second, strict=True)):
        assert a.keys() == b.keys()
        for key in a:
            assert b[key] == pytest.approx(a[key], rel=1e-5), f"{key} in step {step + 1}"


def assert_close_weights(one: Path, other: Path, steps: int) -> None:
    for stem in ("model", "optimizer", "ema"):
        a, b = (load.read_tensors(folder / "checkpoints" / checkpoints_folder.step_name(steps), stem) for folder in (one, other))
        assert a is not None
        assert b is not None
        assert a.keys() == b.keys()
        for name in a:
            # What moves all scores of a softmax alike has a gradient of rounding only, which Adam turns into steps of full size:
            # a key's bias, and the bias of the scores by which a Token Turing Machine reads and writes.
            if name.endswith("scores.down.bias"):
                continue
            if name.endswith("key_value.bias") and a[name].dim():
                a[name], b[name] = (tensor.chunk(2)[1] for tensor in (a[name], b[name]))
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def shards(folder: Path) -> Path:
    """16 clips of which half have sound. With seed 0, some batches of 4 give one of two processes sound and the other none."""
    synthetic.write_split(folder / "shards" / "train", 16, silent_clips=range(8, 16))
    return folder / "shards"


def compare(tmp_path: Path, steps: int, *overrides: str, kinds: tuple[str, ...] = ("ddp", "fsdp")) -> None:
    data, words = shards(tmp_path), [f"train.steps={steps}", "train.ema_decay=0.9", *overrides]
    run(1, tmp_path / "one", data, *words)
    for kind in kinds:
        run(2, tmp_path / kind, data, *words, f"train.parallel={kind}")
        assert_close_runs(tmp_path / "one", tmp_path / kind, steps)
        assert_close_weights(tmp_path / "one", tmp_path / kind, steps)


def test_some_batch_leaves_one_of_two_processes_without_sound(tmp_path: Path) -> None:
    data, recipe = shards(tmp_path), synthetic.recipe(tmp_path / "run", tmp_path / "shards")
    sources = open_sources(recipe)
    order = TrainingData(recipe, sources, synthetic.vocabulary())
    split = ShardFolder(data).split("train")
    heard = [[int(split.media(unit.clip)["audio_state"]) == 2 for unit in order.step_units(step)] for step in range(5)]
    assert any(any(batch[:2]) != any(batch[2:]) for batch in heard)


def test_two_processes_give_the_losses_of_one(tmp_path: Path) -> None:
    compare(tmp_path, 5)


def test_lora_and_frozen_parts_in_two_processes(tmp_path: Path) -> None:
    words = ("model.lora={parts: [text], rank: 2}", "freeze=[encoder, video_tokens]", "train.checkpoint_every=2")
    compare(tmp_path, 3, *words)
    frozen = [
        load.read_tensors(tmp_path / run / "checkpoints" / checkpoints_folder.step_name(3), "frozen") for run in ("one", "ddp", "fsdp")
    ]
    assert frozen[0]
    for other in frozen[1:]:
        assert other is not None
        assert other.keys() == frozen[0].keys()
        assert all(torch.equal(other[name], tensor) for name, tensor in frozen[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["train.micro_batch_size=1", "loss.latent=0"], ["model.combiner.kind=ttm", "loss.audio=1"]])
def test_two_processes_give_the_losses_of_one_long(tmp_path: Path, overrides: list[str]) -> None:
    """The latent loss takes its statistics over the clips in memory, so it is left out where one process has more of them at once."""
    compare(tmp_path, 20, *overrides)


@pytest.mark.parametrize(("before", "after"), [((2, "fsdp"), (1, "ddp")), ((1, "ddp"), (2, "fsdp"))])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, before: tuple[int, str], after: tuple[int, str]) -> None:
    """The order of the data and all state are kept: the losses are those of the uninterrupted run."""
    data, words = shards(tmp_path), ["train.steps=4", "train.ema_decay=0.9", "train.checkpoint_every=2"]
    run(1, tmp_path / "whole", data, *words)
    run(before[0], tmp_path / "cut", data, *words, f"train.parallel={before[1]}")
    newest = tmp_path / "cut" / "checkpoints" / checkpoints_folder.step_name(4)
    assert len(list(newest.glob("optimizer-*.safetensors"))) == (2 if before[0] == 2 else 0)
    export(newest, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors*")} == {"model.safetensors"}
    assert checkpoints_folder.verify(tmp_path / "out")["schema"] == checkpoints_folder.CHECKPOINT_SCHEMA
    newest.rename(tmp_path / "set-aside")
    run(after[0], tmp_path / "cut", data, *words, f"train.parallel={after[1]}", resume=True)
    assert_close_runs(tmp_path / "whole", tmp_path / "cut", 4)
    assert_close_weights(tmp_path / "whole", tmp_path / "cut", 4)


@pytest.mark.slow
def test_frozen_parts_of_a_sharded_run_are_stored_once_and_any_number_of_processes_reads_them(tmp_path: Path) -> None:
    data, words = shards(tmp_path), ["train.steps=4", "train.checkpoint_every=2", 'freeze=["text.*"]']
    run(1, tmp_path / "whole", data, *words)
    run(2, tmp_path / "cut", data, *words, "train.parallel=fsdp")
    older, newest = (tmp_path / "cut" / "checkpoints" / checkpoints_folder.step_name(step) for step in (2, 4))
    files = [f"frozen-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert checkpoints_folder.frozen_files(newest) == [*files, "frozen.safetensors.index.json"]
    assert all((older / name).samefile(newest / name) for name in files)
    assert checkpoints_folder.verify(newest)["schema"] == checkpoints_folder.SLICED_SCHEMA
    shutil.rmtree(newest)
    run(1, tmp_path / "cut", data, *words, resume=True)  # the files of two processes are shared by one's checkpoint
    assert (older / files[0]).samefile(newest / files[0])
    one, other = (load.read_model(folder / "checkpoints" / newest.name) for folder in (tmp_path / "whole", tmp_path / "cut"))
    assert one.keys() == other.keys()
    for name in one:
        if name.startswith("text."):
            assert torch.equal(one[name], other[name]), name


def test_a_batch_that_does_not_divide_is_refused_on_all_processes(tmp_path: Path) -> None:
    codes, logs = forked(2, tmp_path / "run", shards(tmp_path), "train.global_batch_size=3")
    assert codes == [2, 2]
    assert "train.global_batch_size: 3 cannot be divided" in logs[1]
    assert not (tmp_path / "run").exists()


def test_a_failure_on_the_first_process_ends_all(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "something").write_text("")
    codes, logs = forked(2, tmp_path / "run", shards(tmp_path))
    assert codes == [2, 2]
    assert "is not empty" in logs[0]
    assert "first process" in logs[1]
