"""LoRA and freezing through the loop: what stays, what a checkpoint holds, resuming, export."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mirasol_cli.checkpoints import load
from mirasol_cli.checkpoints.export import export
from mirasol_cli.checkpoints.folder import frozen_files, verify
from mirasol_cli.checkpoints.load import load_model, read_model
from mirasol_cli.checkpoints.runs import resolve_checkpoint
from mirasol_cli.errors import CheckpointError, UsageError
from mirasol_cli.training.loop import train
from tests import synthetic
from tests.training import processes

LORA = ("model.lora={parts: [encoder, text], rank: 2}", "train.lr=1e-2", "train.checkpoint_every=1", "train.keep_checkpoints=2")


def trained(folder: Path, *words: str, resume: bool = False) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    if not (folder.parent / "shards").exists():
        synthetic.write_split(folder.parent / "shards" / "train", 8)
    train(synthetic.recipe(folder, folder.parent / "shards", *words), stage="finetune", device="cpu", resume=resume)
    return sorted((folder / "checkpoints").glob("step-*"))


def start(tmp_path: Path) -> dict[str, Tensor]:
    """The weights that a run of the same seed begins with."""
    found = trained(tmp_path / "still", "train.steps=1", "train.lr=1e-12", "train.weight_decay=0", LORA[0])
    return read_model(found[-1])


def test_frozen_parts_are_equal_to_the_bit_and_stored_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = start(tmp_path)
    older, newer = trained(tmp_path / "run", *LORA, "train.steps=3")
    own, frozen = load.read_tensors(newer, "model"), load.read_tensors(newer, "frozen")
    assert own is not None
    assert frozen is not None
    assert not own.keys() & frozen.keys()
    assert {name.split(".")[0] for name in frozen} == {"encoder", "text"}
    assert all(torch.equal(frozen[name], before[name]) for name in frozen)
    assert (newer / "frozen.safetensors").samefile(older / "frozen.safetensors")
    verify(newer)
    assert all(torch.any(own[name] != before[name]) for name in own if name.endswith(("lora_a", "lora_b")))
    assert "LoRA of rank 2: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_in_bf16_keep_the_frozen_bits_and_resume_on_one(tmp_path: Path, kind: str) -> None:
    """Weights stay float32 where bf16 computes; each process holds a part of them under FSDP."""
    before, words = start(tmp_path), (*LORA, "train.steps=3", "train.ema_decay=0.5", "train.precision=bf16", f"train.parallel={kind}")
    processes.run(2, tmp_path / "run", tmp_path / "shards", *words)
    older, newer = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert frozen_files(newer)
    assert all((newer / name).samefile(older / name) for name in frozen_files(newer))
    frozen = load.read_tensors(newer, "frozen")
    assert frozen
    assert {name.split(".")[0] for name in frozen} == {"encoder", "text"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.items())
    trained_names = {name for name in before if name not in frozen}
    for stem, names in (("model", trained_names), ("ema", trained_names), ("optimizer", {f"exp_avg/{name}" for name in trained_names})):
        held = load.read_tensors(newer, stem)
        assert held is not None
        assert {name for name in held if not name.startswith(("exp_avg_sq/", "step/"))} == names
    own = load.read_tensors(newer, "model")
    assert own is not None
    assert all(tensor.dtype == torch.float32 for tensor in own.values())
    assert all(torch.any(own[name] != before[name]) for name in own if name.endswith("lora_b"))
    shutil.rmtree(newer)
    last = trained(tmp_path / "run", *words[:-1], "train.parallel=ddp", resume=True)[-1]
    assert last.name == newer.name
    for name, tensor in read_model(last).items():
        torch.testing.assert_close(tensor, {**own, **frozen}[name], rtol=0.1, atol=0.03)  # bf16 sums of two halves, and of the whole
        assert name not in frozen or torch.equal(tensor, frozen[name])


def test_a_checkpoint_outlives_the_others_and_a_copy_of_it_is_whole(tmp_path: Path) -> None:
    older, newer = trained(tmp_path / "run", *LORA, "train.steps=2")
    shutil.rmtree(older)
    whole = read_model(newer)
    shutil.copytree(newer, tmp_path / "copy")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_model(tmp_path / "copy").model.state_dict().items())
    with open(tmp_path / "copy" / "frozen.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match=r"frozen\.safetensors' is damaged"):
        load_model(tmp_path / "copy")


def test_resume_shares_the_frozen_tensors_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = read_model(trained(tmp_path / "whole", *LORA, "train.steps=3")[-1])
    trained(tmp_path / "run", *LORA, "train.steps=3")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000003")
    older, newer = trained(tmp_path / "run", *LORA, "train.steps=3", resume=True)
    assert (newer / "frozen.safetensors").samefile(older / "frozen.safetensors")
    found = read_model(newer)
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_where_links_cannot_be_made_frozen_tensors_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    older, newer = trained(tmp_path / "run", "freeze=[text]", "train.steps=2", "train.checkpoint_every=1")
    assert (newer / "frozen.safetensors").read_bytes() == (older / "frozen.safetensors").read_bytes()
    verify(newer)


def test_another_run_starts_from_it(tmp_path: Path) -> None:
    newest = trained(tmp_path / "run", *LORA, "train.steps=2")[-1]
    words = (f"init.checkpoint={newest}", "train.steps=1", "train.lr=1e-12", "train.weight_decay=0", LORA[0])
    again = read_model(trained(tmp_path / "again", *words)[-1])
    assert all(torch.allclose(again[name], tensor, atol=1e-9) for name, tensor in read_model(newest).items())


@pytest.mark.parametrize("lora", ["{parts: []}", "{parts: [text], rank: 3}", "{parts: [encoder, text], rank: 2, alpha: 3}"])
def test_a_run_that_is_adapted_otherwise_starts_from_the_sum(tmp_path: Path, lora: str, capsys: pytest.CaptureFixture[str]) -> None:
    newest = trained(tmp_path / "run", *LORA, "train.steps=2", "train.ema_decay=0.5")[-1]
    export(newest, tmp_path / "merged", merge=True)
    still = ("train.steps=1", "train.lr=1e-12", "train.weight_decay=0", f"model.lora={lora}")
    again = read_model(trained(tmp_path / "again", f"init.checkpoint={newest}", *still)[-1])
    for name, tensor in read_model(tmp_path / "merged").items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-7, msg=name)
    assert "LoRA's products of 19 maps are merged into their weights" in capsys.readouterr().err


def test_export_merges_it(tmp_path: Path) -> None:
    trained(tmp_path / "run", *LORA, "train.steps=3")
    source = load_model(resolve_checkpoint(tmp_path / "run"))
    export(tmp_path / "run", tmp_path / "merged", merge=True)
    export(tmp_path / "run", tmp_path / "plain")
    merged, plain = load_model(tmp_path / "merged"), load_model(tmp_path / "plain")
    assert merged.recipe.model.lora.parts == ()
    assert not any(".lora_" in name for name in merged.model.state_dict())
    assert any(".lora_" in name for name in plain.model.state_dict())
    assert not list((tmp_path / "merged").glob("frozen*"))
    ids = torch.randint(0, source.vocabulary.size, (1, 2, 9))
    with torch.no_grad():
        expected = source.model.text(ids)
        assert (merged.model.text(ids) - expected).abs().max() <= 1e-5
        assert torch.equal(plain.model.text(ids), expected)
    with pytest.raises(UsageError, match="without LoRA"):
        export(tmp_path / "merged", tmp_path / "again", merge=True)
