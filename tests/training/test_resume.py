"""A run of 2N steps against the same run interrupted at N and resumed: equal to the last bit."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mirasol_cli.batches.sources import open_sources
from mirasol_cli.checkpoints import folder as checkpoints_folder
from mirasol_cli.checkpoints import load
from mirasol_cli.errors import CheckpointError, RecipeError, UsageError
from mirasol_cli.shards.columns import write_texts
from mirasol_cli.shards.index import SplitIndex
from mirasol_cli.training.checks import changed_data
from mirasol_cli.training.data import TrainingData
from mirasol_cli.training.loop import train
from mirasol_cli.training.optimizer import rate_at
from mirasol_cli.training.resume import CHANGEABLE, changed_keys, check_resumable
from tests import synthetic

VARIANTS = {
    "mid-epoch": (12, []),  # 12 clips / 4 = an epoch of 3 steps; the interruption after 2
    "epoch border": (8, []),  # an epoch of 2 steps
    "averages": (12, ["train.ema_decay=0.9"]),
    "accumulation": (12, ["train.micro_batch_size=1"]),
    "dropout": (12, ["model.encoder.dropout=0.2", "model.text.dropout=0.2", "model.encoder.drop_path=0.2"]),
    "augmentation": (
        12,
        ["train.augment.flip=0.5", "train.augment.colour=0.5", "train.augment.mask_bins=4", "train.augment.mask_columns=4"],
    ),
    "length windows": (12, ["data.length_window=2"]),
    "token turing machine": (12, ["model.combiner.kind=ttm", "loss.audio=1"]),
}


def assert_equal_runs(one: Path, other: Path, step: int) -> None:
    """Every tensor of the two runs' checkpoints at tolerance zero, every file byte for byte (the recipe names its own folder)."""
    a, b = one / "checkpoints" / checkpoints_folder.step_name(step), other / "checkpoints" / checkpoints_folder.step_name(step)
    names = {p.name for p in a.iterdir()}
    assert names == {p.name for p in b.iterdir()}
    for stem in ("model", "optimizer", "ema"):
        first, second = load.read_tensors(a, stem), load.read_tensors(b, stem)
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert first.keys() == second.keys()
            for name in first:
                torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")
    for name in names - {"recipe.yaml", "manifest.json"}:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def run_and_compare(tmp_path: Path, clips: int, overrides: list[str], *, steps: int, at: int) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", clips, silent_clips=(1,))
    overrides = [*overrides, f"train.steps={steps}", f"train.checkpoint_every={at}"]
    whole = synthetic.recipe(tmp_path / "whole", tmp_path / "shards", *overrides)
    train(whole, stage="finetune", device="cpu")
    cut = synthetic.recipe(tmp_path / "cut", tmp_path / "shards", *overrides)
    interrupt_after(cut, at)
    train(cut, stage="finetune", device="cpu", resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut", steps)
    assert [row["step"] for row in metrics(tmp_path / "cut")] == [row["step"] for row in metrics(tmp_path / "whole")]


def interrupt_after(recipe, step: int) -> None:  # type: ignore[no-untyped-def]
    """Run `recipe` and lose the process after `step`; the checkpoint of that step is there, as are later metrics."""

    class Lost(BaseException):
        pass

    def lose(*_: object) -> dict[str, float]:
        raise Lost

    broken = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, eval_every=step + 1))
    with pytest.raises(Lost):
        train(broken, stage="finetune", device="cpu", validate=lose)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, variant: str) -> None:
    clips, overrides = VARIANTS[variant]
    run_and_compare(tmp_path, clips, overrides, steps=4, at=2)


def test_resume_of_a_mixture(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "more" / "train", 5, first=100)
    sources = f'[{{dataset: a, shards: "{tmp_path}/shards", ratio: 2}}, {{dataset: b, shards: "{tmp_path}/more", ratio: 1}}]'
    run_and_compare(tmp_path, 12, [f"data.sources={sources}"], steps=4, at=2)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupted_and_resumed_long(tmp_path: Path, variant: str) -> None:
    clips, overrides = VARIANTS[variant]
    run_and_compare(tmp_path, clips, overrides, steps=40, at=13)


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    synthetic.write_split(tmp_path / "shards" / "train", 4)
    train(synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.steps=2"), stage="finetune", device="cpu")
    return tmp_path


def test_a_used_folder_is_refused_with_both_ways_out(finished: Path) -> None:
    before = {p: p.read_bytes() for p in (finished / "run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="not empty") as caught:
        train(synthetic.recipe(finished / "run", finished / "shards"), stage="finetune", device="cpu")
    assert "--resume" in (caught.value.hint or "")
    assert "run.dir=" in (caught.value.hint or "")
    assert before == {p: p.read_bytes() for p in (finished / "run").rglob("*") if p.is_file()}


def test_a_changed_recipe_is_refused_with_a_diff(finished: Path) -> None:
    changed = synthetic.recipe(
        finished / "run", finished / "shards", "train.steps=2", "train.lr=5e-4", "model.text.mlp_dim=64", "eval.beams=2"
    )
    with pytest.raises(RecipeError) as caught:
        train(changed, stage="finetune", device="cpu", resume=True)
    assert caught.value.problems[1:] == [
        "model.text.mlp_dim: the run has 32, the recipe now has 64",
        "train.lr: the run has 0.001, the recipe now has 0.0005",
    ]
    assert "eval.*" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_what_may_change_on_resume(finished: Path) -> None:
    before = synthetic.recipe(finished / "run", finished / "shards")
    values = [
        "eval.beams=2",
        "run.tensorboard=true",
        "train.checkpoint_every=7",
        "train.keep_checkpoints=3",
        "train.log_every=2",
        "train.max_skipped_steps=1",
    ]
    values += [
        "train.micro_batch_size=2",
        "train.parallel=fsdp",
        "train.eval_every=2",
        "train.val_clips=3",
        "data.shards=elsewhere",
    ]
    now = synthetic.recipe(finished / "run", finished / "shards", *values)
    assert len(changed_keys(before, now)) == len(values)
    check_resumable(before, now)
    assert all(key.split(".")[0] in ("eval", "run", "data", "train") for key in CHANGEABLE)
    with pytest.raises(RecipeError, match=r"data\.questions_per_clip"):
        check_resumable(before, synthetic.recipe(finished / "run", finished / "shards", "data.questions_per_clip=1"))


def test_resuming_a_finished_run_changes_nothing_and_says_so(finished: Path) -> None:
    recipe = synthetic.recipe(finished / "run", finished / "shards", "train.steps=2")
    before = (finished / "run" / "metrics.jsonl").read_bytes()
    assert train(recipe, stage="finetune", device="cpu", resume=True)["step"] == 2
    assert (finished / "run" / "metrics.jsonl").read_bytes() == before
    assert json.loads((finished / "run" / "run.json").read_text())["status"] == "finished"


def test_another_stage_is_refused(finished: Path) -> None:
    with pytest.raises(CheckpointError, match="finetune run"):
        train(synthetic.recipe(finished / "run", finished / "shards", "train.steps=2"), stage="pretrain", device="cpu", resume=True)


def test_other_data_are_refused(finished: Path) -> None:
    synthetic.write_split(finished / "other" / "train", 4, questions=3)
    recipe = synthetic.recipe(finished / "run", finished / "other", "train.steps=2")
    with pytest.raises(CheckpointError, match="the data differ"):
        train(recipe, stage="finetune", device="cpu", resume=True)


def mended(split: Path) -> None:
    """Another answer to the same question, honestly prepared: the index says so."""
    rows = [json.loads(line) for line in (split / "qa.jsonl").read_text().splitlines()]
    next(row for row in rows if row["answer"] == "black")["answer"] = "white"
    index = SplitIndex.read(split / "index.json")
    sha256, columns = write_texts(split / "qa.jsonl", rows)
    index.tasks["qa"] = dataclasses.replace(index.tasks["qa"], sha256=sha256, columns=columns.write(split / "qa.columns"))
    index.write(split / "index.json")


def test_a_mended_answer_is_other_data(finished: Path) -> None:
    mended(finished / "shards" / "train")
    recipe = synthetic.recipe(finished / "run", finished / "shards", "train.steps=2")
    with pytest.raises(CheckpointError, match="synthetic/train: other questions, answers or contexts") as caught:
        train(recipe, stage="finetune", device="cpu", resume=True)
    assert caught.value.exit_code == 4
    assert "--accept-data" in (caught.value.hint or "")


def test_other_clips_of_the_same_number_are_other_data(finished: Path) -> None:
    synthetic.write_split(finished / "other" / "train", 4, first=50)
    recipe = synthetic.recipe(finished / "run", finished / "other", "train.steps=2")
    with pytest.raises(CheckpointError, match="other names of the clips; other questions, answers or contexts; other video or audio"):
        train(recipe, stage="finetune", device="cpu", resume=True)


def test_other_media_of_the_same_clips_are_other_data(finished: Path) -> None:
    synthetic.write_split(finished / "other" / "train", 4, silent_clips=(2,))
    changes = changed_data(*(_fingerprint(finished, folder) for folder in ("shards", "other")))
    assert len(changes) == 1
    assert "other video or audio" in changes[0]
    assert "names" not in changes[0]


def _fingerprint(folder: Path, shards: str) -> list[dict]:
    recipe = synthetic.recipe(folder / "run", folder / shards)
    return TrainingData(recipe, open_sources(recipe), synthetic.vocabulary()).fingerprint


def test_other_data_may_be_accepted_and_run_json_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mended(finished / "shards" / "train")
    recipe = synthetic.recipe(finished / "run", finished / "shards", "train.steps=3")
    assert train(recipe, stage="finetune", device="cpu", resume=True, accept_data=True)["step"] == 3
    assert "(--accept-data)" in capsys.readouterr().err
    for _ in range(2):  # the new checkpoint knows the new data
        (accepted,) = json.loads((finished / "run" / "run.json").read_text())["accepted_data"]
        assert accepted["after_step"] == 2
        assert accepted["changes"] == ["synthetic/train: other questions, answers or contexts"]
        train(recipe, stage="finetune", device="cpu", resume=True)


def test_a_finished_run_goes_on_to_more_steps_and_says_by_which_schedule(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = synthetic.recipe(finished / "run", finished / "shards", "train.steps=4")
    assert train(recipe, stage="finetune", device="cpu", resume=True)["step"] == 4
    said = capsys.readouterr().err
    assert "train.steps is 4 now, 2 before: from step 3 on, the learning rate is that of a run of 4 steps (0.0005 there" in said
    assert [row["lr"] for row in metrics(finished / "run")] == pytest.approx([1e-3, 5e-4, 5e-4, 1e-3 * rate_at(3, recipe.train)])
    with pytest.raises(RecipeError, match=r"train\.steps: the run has 4, the recipe now has 3"):
        fewer = synthetic.recipe(finished / "run", finished / "shards", "train.steps=3")
        train(fewer, stage="finetune", device="cpu", resume=True)


def test_moved_data_are_accepted(finished: Path) -> None:
    (finished / "shards").rename(finished / "moved")
    recipe = synthetic.recipe(finished / "run", finished / "moved", "train.steps=2")
    assert train(recipe, stage="finetune", device="cpu", resume=True)["step"] == 2


def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 4)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.steps=1")
    assert train(recipe, stage="finetune", device="cpu", resume=True)["step"] == 1
    assert "starting from step 0" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_stops_the_resume(finished: Path) -> None:
    (finished / "run" / "checkpoints" / checkpoints_folder.step_name(2) / "optimizer.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"optimizer\.safetensors") as caught:
            train(synthetic.recipe(finished / "run", finished / "shards", "train.steps=2"), stage="finetune", device="cpu", resume=True)
        assert caught.value.exit_code == 4
