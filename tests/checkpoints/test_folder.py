"""Checkpoints: what is written is read back; names, rotation, choice of the best."""

import json
import os
from pathlib import Path

import pytest
import torch

from mirasol_cli.checkpoints import folder as checkpoints_folder
from mirasol_cli.checkpoints import load, runs
from mirasol_cli.errors import CheckpointError


def contents(value: float = 0.0, score: float | None = None) -> checkpoints_folder.Contents:
    state = {"step": 1, "validation": None if score is None else {"exact_match": score}}
    return checkpoints_folder.Contents(
        files={"state.json": json.dumps(state).encode(), "config.json": b"{}"},
        tensors={"model": {"a": torch.full((3, 2), value), "b": torch.arange(4)}, "optimizer": {"exp_avg/a": torch.ones(3, 2)}},
    )


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoints_folder.write_checkpoint(tmp_path, 7, contents(2.5))
    assert path.name == "step-00000007"
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    assert set(checkpoints_folder.verify(path)["files"]) == {"state.json", "config.json", "model.safetensors", "optimizer.safetensors"}
    tensors = load.read_tensors(path, "model")
    assert tensors is not None
    assert torch.equal(tensors["a"], torch.full((3, 2), 2.5))
    assert torch.equal(tensors["b"], torch.arange(4))
    assert load.read_tensors(path, "ema") is None


def test_whoever_may_read_the_folder_may_read_all_of_it(tmp_path: Path) -> None:
    before = os.umask(0o027)  # as where a group shares its runs
    try:
        path = checkpoints_folder.write_checkpoint(tmp_path, 1, contents())
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_large_sets_are_spread_as_hugging_face_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints_folder, "LARGEST_FILE_BYTES", 100)
    tensors = {f"t{i}": torch.randn(5, 4) for i in range(5)}  # 80 bytes each
    path = checkpoints_folder.write_checkpoint(tmp_path, 1, checkpoints_folder.Contents(files={}, tensors={"model": tensors}))
    names = sorted(p.name for p in path.glob("model-*"))
    assert names == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 400
    assert index["weight_map"]["t3"] == "model-00004-of-00005.safetensors"
    read = load.read_tensors(path, "model")
    assert read is not None
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_rotation_keeps_newest_and_best_and_ignores_incomplete(tmp_path: Path) -> None:
    for step, score in [(1, 0.1), (2, 0.9), (3, 0.3), (4, 0.2), (5, None)]:
        checkpoints_folder.write_checkpoint(tmp_path, step, contents(step, score))
    for step in (6, 7, 8):  # as a foreign copy might leave them: named as finished, but without a manifest
        (tmp_path / checkpoints_folder.step_name(step)).mkdir()
    checkpoints_folder.rotate(tmp_path, keep=2)
    left = [p.name for p in checkpoints_folder.checkpoints_in(tmp_path)]
    assert left == [checkpoints_folder.step_name(s) for s in (2, 4, 5, 6, 7, 8)]
    assert runs.resolve_checkpoint(tmp_path / checkpoints_folder.step_name(5)).name == checkpoints_folder.step_name(5)


def test_find_best_latest_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        runs.resolve_checkpoint("latest", tmp_path)
    checkpoints_folder.write_checkpoint(folder, 1, contents(0, 0.8))
    checkpoints_folder.write_checkpoint(folder, 2, contents(0, 0.5))
    assert runs.resolve_checkpoint("best", tmp_path).name == checkpoints_folder.step_name(1)
    assert runs.resolve_checkpoint("latest", tmp_path).name == checkpoints_folder.step_name(2)
    assert runs.resolve_checkpoint(tmp_path, tmp_path / "elsewhere").name == checkpoints_folder.step_name(1)
    with pytest.raises(CheckpointError, match="no run or checkpoint folder"):
        runs.resolve_checkpoint(tmp_path / "nowhere")


def test_what_a_checkpoint_may_be_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs.resolve_checkpoint("demo") == runs.DEMO_CHECKPOINT
    path = checkpoints_folder.write_checkpoint(tmp_path / "demo" / "checkpoints", 1, contents())
    assert runs.resolve_checkpoint("demo").resolve() == path  # a folder of that name comes first
    assert runs.resolve_checkpoint(str(path)) == path
    for word in ("best", "latest"):
        assert runs.resolve_checkpoint(word, tmp_path / "demo") == path
        with pytest.raises(CheckpointError, match="needs a run folder"):
            runs.resolve_checkpoint(word)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="'new' has no complete checkpoint yet"):
        runs.resolve_checkpoint("new")
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match="'other' is neither a run folder nor"):
        runs.resolve_checkpoint("other")
    with pytest.raises(CheckpointError, match="the run 'absent' does not exist"):
        runs.resolve_checkpoint("latest", Path("absent"))


def test_of_equals_the_latest_is_best_and_the_loss_decides_where_exact_match_stands_still(tmp_path: Path) -> None:
    def validated(step: int, **figures: float) -> None:
        state = json.dumps({"validation": figures}).encode()
        checkpoints_folder.write_checkpoint(
            tmp_path / "checkpoints", step, checkpoints_folder.Contents({"state.json": state}, {"model": {"a": torch.ones(1)}})
        )

    def best() -> str:
        return runs.resolve_checkpoint("best", tmp_path).name

    validated(1, exact_match=0.0, loss=3.0)
    validated(2, exact_match=0.0, loss=2.0)
    validated(3, exact_match=0.0, loss=2.5)
    assert best() == checkpoints_folder.step_name(2)
    validated(4, exact_match=0.0, loss=2.0)
    assert best() == checkpoints_folder.step_name(4)
    validated(5, exact_match=0.1, loss=9.0)
    assert best() == checkpoints_folder.step_name(5)
    validated(6, exact_match=0.1, loss=float("nan"))
    assert best() == checkpoints_folder.step_name(5)


def test_only_what_is_read_is_verified(tmp_path: Path) -> None:
    tensors = {stem: {"a": torch.ones(3)} for stem in ("model", "ema", "optimizer")}
    path = checkpoints_folder.write_checkpoint(tmp_path, 1, checkpoints_folder.Contents({"state.json": b"{}"}, tensors))
    for stem, needed in (("optimizer", False), ("ema", True), ("model", True)):
        file = path / f"{stem}.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CheckpointError, match=stem):
            checkpoints_folder.verify(path)
        if needed:
            with pytest.raises(CheckpointError, match=stem):
                checkpoints_folder.verify(path, ("model", "ema"))
        else:
            checkpoints_folder.verify(path, ("model", "ema"))
        file.write_bytes(whole)
    (path / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="optimizer"):  # sizes are compared of all
        checkpoints_folder.verify(path, ("model",))


def test_best_without_validation_is_the_newest(tmp_path: Path) -> None:
    checkpoints_folder.write_checkpoint(tmp_path / "checkpoints", 1, contents())
    checkpoints_folder.write_checkpoint(tmp_path / "checkpoints", 2, contents())
    assert runs.resolve_checkpoint("best", tmp_path).name == checkpoints_folder.step_name(2)


def test_a_step_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    checkpoints_folder.write_checkpoint(tmp_path, 1, contents(1.0))
    path = checkpoints_folder.write_checkpoint(tmp_path, 1, contents(2.0))
    tensors = load.read_tensors(path, "model")
    assert tensors is not None
    assert tensors["a"][0, 0] == 2
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [path.name]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"schema": 1, "files": {"../x": {"bytes": 1, "sha256": ""}}}',
        '{"schema": 9, "files": {"a": {"bytes": 1, "sha256": ""}}}',
    ],
)
def test_hostile_manifests_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoints_folder.verify(tmp_path)


def test_weights_that_do_not_fit_are_listed() -> None:
    model = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match=r"bias is missing; extra is unknown to the model; weight has shape \[3, 5\]"):
        load.load_weights(model, {"weight": torch.zeros(3, 5), "extra": torch.zeros(1)}, "somewhere")


def test_a_model_is_loaded_without_memory_for_numbers_that_are_replaced() -> None:
    loaded = load.load_model(runs.DEMO_CHECKPOINT)
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    stored = load.read_tensors(runs.DEMO_CHECKPOINT, "model")
    assert stored is not None
    for name, tensor in load.model_tensors(loaded.model).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    made = type(loaded.model)(loaded.model.config, loaded.geometry, loaded.vocabulary.size)
    tables = dict(made.named_buffers())
    assert all(torch.equal(table, tables[name]) for name, table in loaded.model.named_buffers())
