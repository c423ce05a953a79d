"""The loop from outside: it learns, logs, validates, keeps the best, and its checkpoints load."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from mirasol_cli.checkpoints import folder, load, runs
from mirasol_cli.errors import CheckpointError, UsageError
from mirasol_cli.runtime.distributed import prepare_blocks
from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary
from mirasol_cli.training import loop
from mirasol_cli.training.loop import train
from tests import synthetic
from tests.training.processes import figures_of_val, forked, one_step_of_text


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    synthetic.write_split(tmp_path / "shards" / "train", 12, silent_clips=(1,))
    return tmp_path / "shards"


def lines(run: Path, kind: str = "train") -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def test_it_learns(tmp_path: Path, shards: Path) -> None:
    recipe = synthetic.recipe(tmp_path / "run", shards, "train.steps=60", "train.lr=1e-2", "train.warmup_steps=5", "train.log_every=20")
    result = train(recipe, stage="finetune", device="cpu")
    first, *_, last = lines(tmp_path / "run")
    assert last["loss_text"] < 0.5 * first["loss_text"]
    assert result["step"] == 60
    assert result["metrics"]["loss"] == last["loss"]


def test_the_latents_are_looked_at_now_and_then(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DIAGNOSED_EVERY", 2)
    train(synthetic.recipe(tmp_path / "run", shards, "train.steps=6"), stage="finetune", device="cpu")
    assert ["rank" in row for row in lines(tmp_path / "run")] == [True, False, True, False, True, True]


def test_what_a_log_line_holds(tmp_path: Path, shards: Path) -> None:
    train(
        synthetic.recipe(tmp_path / "run", shards, "train.steps=4", "train.log_every=2", "loss.audio=0.5"), stage="pretrain", device="cpu"
    )
    rows = lines(tmp_path / "run")
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["loss"] == pytest.approx(10 * row["loss_text"] + row["loss_latent"] + row["loss_video"] + 0.5 * row["loss_audio"])
        assert row["rank"] > 1
        assert row["r2"] < 1
        assert row["clips_per_s"] > 0
        assert row["questions_per_s"] == pytest.approx(2 * row["clips_per_s"])
        assert 0 <= row["data_wait"] <= 1
        assert row["peak_bytes"] > 10**6
        assert row["gradient_norm"] > 0
        assert "mfu" not in row  # nothing is claimed for a CPU


def test_clipped_steps_and_each_loss_share_of_the_gradient_are_logged(tmp_path: Path, shards: Path) -> None:
    words = ["train.steps=4", "train.log_every=2"]
    train(synthetic.recipe(tmp_path / "all", shards, *words, "train.max_grad_norm=1e-6", "train.balance_every=2"), stage="finetune")
    train(synthetic.recipe(tmp_path / "none", shards, *words, "train.max_grad_norm=0"), stage="finetune")
    for row in lines(tmp_path / "all"):
        assert row["clipped_steps"] == 1
        assert sum(row[f"share_{name}"] for name in ("text", "latent", "video")) == pytest.approx(1)
    for row in lines(tmp_path / "none"):
        assert row["clipped_steps"] == 0
        assert not any(key.startswith("share_") for key in row)


def test_run_json_says_what_ran(tmp_path: Path, shards: Path) -> None:
    train(synthetic.recipe(tmp_path / "run", shards, "train.steps=2"), stage="pretrain", device="cpu")
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (state["status"], state["exit_code"], state["stage"], state["step"], state["world_size"]) == ("finished", 0, "pretrain", 2, 1)
    assert state["versions"]["torch"]
    assert state["started"] <= state["ended"]


def test_a_checkpoint_loads_as_a_model(tmp_path: Path, shards: Path) -> None:
    recipe = synthetic.recipe(tmp_path / "run", shards, "train.ema_decay=0.5")
    train(recipe, stage="finetune", device="cpu")
    path = runs.resolve_checkpoint("latest", tmp_path / "run")
    loaded = load.load_model(path)
    assert (loaded.step, loaded.averaged, loaded.recipe, loaded.geometry) == (6, True, recipe, synthetic.GEOMETRY)
    assert not loaded.model.training
    assert loaded.vocabulary.size == loaded.model.vocab_size
    ema, raw = load.read_tensors(path, "ema"), load.read_tensors(path, "model")
    assert ema is not None
    assert raw is not None
    weights = dict(loaded.model.named_parameters())
    assert all(torch.equal(weights[name], ema[name]) for name in ema)
    assert any(not torch.equal(raw[name], ema[name]) for name in ema)


@pytest.mark.parametrize("name", ["config.json", "recipe.yaml", "tokenizer.model", "model.safetensors"])
def test_a_damaged_checkpoint_does_not_load(tmp_path: Path, shards: Path, name: str) -> None:
    train(synthetic.recipe(tmp_path / "run", shards, "train.steps=1"), stage="finetune", device="cpu")
    path = runs.resolve_checkpoint("latest", tmp_path / "run") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load.load_model(path.parent)


# ------------------------------------------------------------------------------------------------------------ validation


def test_the_best_by_exact_match_is_kept_through_rotation(tmp_path: Path, shards: Path) -> None:
    scores = iter([0.2, 0.9, 0.4, 0.3, 0.1])
    seen = []

    def validate(model, vocabulary, world):  # type: ignore[no-untyped-def]
        seen.append((model.training, torch.is_grad_enabled()))
        return {"exact_match": next(scores), "loss": 1.0}

    words = ["train.steps=5", "train.eval_every=1", "train.checkpoint_every=1", "train.keep_checkpoints=2"]
    result = train(synthetic.recipe(tmp_path / "run", shards, *words), stage="finetune", device="cpu", validate=validate)
    left = [path.name for path in folder.checkpoints_in(tmp_path / "run" / "checkpoints")]
    assert left == [folder.step_name(step) for step in (2, 4, 5)]
    assert runs.resolve_checkpoint("best", tmp_path / "run").name == folder.step_name(2)
    assert seen == [(False, False)] * 5
    assert [row["exact_match"] for row in lines(tmp_path / "run", "validation")] == [0.2, 0.9, 0.4, 0.3, 0.1]
    assert result["metrics"]["validation"]["exact_match"] == 0.1


def test_without_exact_match_the_least_loss_is_best(tmp_path: Path, shards: Path) -> None:
    values = iter([3.0, 1.0, 2.0])
    words = ["train.steps=3", "train.eval_every=1"]
    train(synthetic.recipe(tmp_path / "run", shards, *words), stage="finetune", device="cpu", validate=lambda *_: {"loss": next(values)})
    assert runs.resolve_checkpoint("best", tmp_path / "run").name == folder.step_name(2)


def test_validation_sees_averaged_weights_and_leaves_training_alone(tmp_path: Path, shards: Path) -> None:
    words, seen = ["train.steps=4", "train.ema_decay=0.9", "train.checkpoint_every=2"], []

    def validate(model, vocabulary, world):  # type: ignore[no-untyped-def]
        torch.rand(7)  # randomness used here must not reach the next step
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"exact_match": 0.0}

    train(synthetic.recipe(tmp_path / "plain", shards, *words), stage="finetune", device="cpu")
    train(synthetic.recipe(tmp_path / "checked", shards, *words, "train.eval_every=2"), stage="finetune", device="cpu", validate=validate)
    for step in (2, 4):
        one, other = (load.read_tensors(tmp_path / name / "checkpoints" / folder.step_name(step), "model") for name in ("plain", "checked"))
        ema = load.read_tensors(tmp_path / "checked" / "checkpoints" / folder.step_name(step), "ema")
        assert one is not None
        assert other is not None
        assert ema is not None
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(torch.equal(seen[step // 2 - 1][name], ema[name]) for name in ema)


def test_a_sharded_model_is_whole_on_every_process_for_a_validation(tmp_path: Path, shards: Path) -> None:
    """Methods other than forward must find whole parameters, and training go on afterwards."""

    words = ["train.steps=3", "train.eval_every=1", "train.parallel=fsdp", "train.ema_decay=0.9"]
    codes, logs = forked(2, tmp_path / "run", shards, *words, validate=one_step_of_text)
    assert codes == [0, 0], "\n".join(logs)
    found = lines(tmp_path / "run", "validation")
    assert [row["exact_match"] for row in found] == [1.0, 1.0, 1.0]
    assert len({row["checksum"] for row in found}) == 3


def test_two_processes_that_share_a_model_validate_as_one(tmp_path: Path, shards: Path) -> None:
    synthetic.write_split(shards / "val", 4)  # a batch for one of the two processes, and none for the other
    words, found = ["train.steps=3", "train.eval_every=1", "train.parallel=fsdp", "train.ema_decay=0.9"], []
    for size in (1, 2):
        validate = partial(figures_of_val, tmp_path / "run", shards)
        codes, logs = forked(size, tmp_path / str(size), shards, *words, validate=validate)
        assert codes == [0] * size, "\n".join(logs)
        found.append(lines(tmp_path / str(size), "validation"))
    assert [row["n"] for row in found[1]] == [8, 8, 8]
    for one, other in zip(*found, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["exact_match"] == one["exact_match"]


# ---------------------------------------------------------------------------------------------------------- where from


def test_init_checkpoint_takes_over_what_fits_and_its_vocabulary(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(synthetic.recipe(tmp_path / "pre", shards, "train.steps=2", "loss.audio=1", "loss.latent=0"), stage="pretrain", device="cpu")
    words = [f"init.checkpoint={tmp_path}/pre", "train.steps=1", "train.lr=1e-12", "loss.latent=0.1", "train.weight_decay=0"]
    train(synthetic.recipe(tmp_path / "fine", shards, *words), stage="finetune", device="cpu")
    paths = [runs.resolve_checkpoint("latest", tmp_path / name) for name in ("pre", "fine")]
    before, after = (load.read_tensors(path, "model") for path in paths)
    assert before is not None
    assert after is not None
    for name in before.keys() & after.keys():
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-9)
    assert paths[0].joinpath("tokenizer.model").read_bytes() == paths[1].joinpath("tokenizer.model").read_bytes()
    said = capsys.readouterr().err
    assert "new here: objectives.latent." in said
    assert "not used: objectives.audio." in said


def test_init_checkpoint_gives_no_embeddings_to_another_vocabulary(
    tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of equal size, so that the shapes agree: every row would belong to another piece."""
    train(synthetic.recipe(tmp_path / "pre", shards, "train.steps=1"), stage="pretrain", device="cpu")
    before = runs.resolve_checkpoint("latest", tmp_path / "pre")
    own = Vocabulary.from_file(before / "tokenizer.model")
    words = ["aardvark", "quux", "zyzzyva", "what do they say?", "jumble of the box", "vexing lynx", "dwarf"]
    other = Vocabulary(train_vocabulary(words * 3, own.size))
    assert other.size == own.size
    (tmp_path / "other.model").write_bytes(other.model_bytes)
    still = [f"init.checkpoint={tmp_path}/pre", "train.steps=1", "train.lr=1e-12", "train.weight_decay=0", "train.seed=5"]
    for name, said_so in (("same", False), ("other", True)):
        tokenizer = before / "tokenizer.model" if name == "same" else tmp_path / "other.model"
        train(synthetic.recipe(tmp_path / name, shards, *still, f"init.tokenizer={tokenizer}"), stage="finetune", device="cpu")
        after = load.read_tensors(runs.resolve_checkpoint("latest", tmp_path / name), "model")
        weights = load.read_tensors(before, "model")
        assert after is not None
        assert weights is not None
        moved = [key for key in weights if (weights[key] - after[key]).abs().max() > 1e-9]
        assert moved == (["text.embed_tokens.weight"] if said_so else [])
        assert ("its embeddings are not used: its vocabulary differs from this run's" in capsys.readouterr().err) == said_so


def test_init_checkpoint_of_another_model_is_refused(tmp_path: Path, shards: Path) -> None:
    path = folder.write_checkpoint(
        tmp_path / "other" / "checkpoints",
        1,
        folder.Contents({"tokenizer.model": synthetic.vocabulary().model_bytes}, {"model": {"x": torch.ones(1)}}),
    )
    recipe = synthetic.recipe(tmp_path / "run", shards, f"init.checkpoint={path}")
    with pytest.raises(CheckpointError, match="no tensor of"):
        train(recipe, stage="finetune", device="cpu")
    assert not (tmp_path / "run").exists()


def test_frozen_parts_do_not_move(tmp_path: Path, shards: Path) -> None:
    train(synthetic.recipe(tmp_path / "run", shards, "freeze=[encoder]", "train.checkpoint_every=1"), stage="finetune", device="cpu")
    first, last = (load.read_model(tmp_path / "run" / "checkpoints" / folder.step_name(step)) for step in (1, 6))
    still = {name for name in first if torch.equal(first[name], last[name])}
    frozen = {name for name in first if name.startswith("encoder.")}
    assert frozen
    assert frozen <= still
    assert not any(name.startswith("combiner.") for name in still)


def test_activation_checkpointing_changes_nothing(tmp_path: Path, shards: Path) -> None:
    for name, word in (("plain", "false"), ("recomputed", "true")):
        words = [f"train.activation_checkpointing={word}", "train.steps=2", "model.encoder.dropout=0.2"]
        train(synthetic.recipe(tmp_path / name, shards, *words), stage="finetune", device="cpu")
    one, other = (load.read_tensors(tmp_path / name / "checkpoints" / folder.step_name(2), "model") for name in ("plain", "recomputed"))
    assert one is not None
    assert other is not None
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_reaches_every_block(tmp_path: Path) -> None:
    from mirasol_cli.model.mirasol import Mirasol

    model = Mirasol(synthetic.recipe(tmp_path / "run", tmp_path).model, synthetic.GEOMETRY, 300)
    names = [type(block).__name__ for block in model.blocks()]
    assert {"Block", "ChunkBlock", "DecoderLayer", "CrossAttention"} <= set(names)
    before = [block.forward for block in model.blocks()]
    prepare_blocks(model, activation_checkpointing=True, compile=False)
    assert all(block.forward != old for block, old in zip(model.blocks(), before, strict=True))


def test_bf16_on_the_cpu_is_finite_and_keeps_float32_weights(tmp_path: Path, shards: Path) -> None:
    train(synthetic.recipe(tmp_path / "run", shards, "train.precision=bf16", "train.steps=2"), stage="finetune", device="cpu")
    tensors = load.read_tensors(tmp_path / "run" / "checkpoints" / folder.step_name(2), "model")
    assert tensors is not None
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("device", ["warp", "cuda"])
def test_a_device_that_is_not_there(tmp_path: Path, shards: Path, device: str) -> None:
    from mirasol_cli.errors import MirasolError

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MirasolError) as caught:
        train(synthetic.recipe(tmp_path / "run", shards), stage="finetune", device=device)
    assert caught.value.exit_code == {"warp": 2, "cuda": 5}[device]


def test_limit_is_the_number_of_clips(tmp_path: Path, shards: Path) -> None:
    train(synthetic.recipe(tmp_path / "run", shards, "train.steps=1"), stage="finetune", device="cpu", limit=3)
    assert load.load_model(runs.resolve_checkpoint("latest", tmp_path / "run")).recipe.data.limit == 3


def test_usage_errors_write_nothing(tmp_path: Path, shards: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError):
        train(synthetic.recipe(tmp_path / "run", shards), stage="finetune", device="cpu")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
