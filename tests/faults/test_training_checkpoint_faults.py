"""A checkpoint's writer is killed, its disk fills up, its bytes are damaged: the documented outcome, never a silent wrong one."""

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mirasol_cli.checkpoints import folder as checkpoints_folder
from mirasol_cli.checkpoints import load, tensor_files
from mirasol_cli.errors import CheckpointError, EnvironmentProblem

HANGS_AFTER_S = 60.0
FILES = ["state.json", "model.safetensors", "optimizer.safetensors", "manifest.json"]


def contents(step: int) -> checkpoints_folder.Contents:
    return checkpoints_folder.Contents(
        files={"state.json": json.dumps({"step": step, "score": None}).encode()},
        tensors={"model": {"a": torch.full((4,), float(step))}, "optimizer": {"b": torch.full((4,), float(step))}},
    )


def in_a_process(target: Callable[..., None], *args: object) -> int | None:
    """The exit code of `target(*args)` in a process of its own, from a server without threads: forking this one may hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.test_training_checkpoint_faults"])
    child = context.Process(target=target, args=args)
    child.start()
    child.join(HANGS_AFTER_S)
    return child.exitcode


def save_until(point: int, folder: Path) -> None:
    """Save step 2; SIGKILL comes before the `point`-th system call or piece of a file."""
    calls = 0

    def deadly(real: Callable) -> Callable:
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))
    tensor_files.PIECE_BYTES, pieces = 8, tensor_files._pieces
    tensor_files._pieces = lambda *args: map(deadly(lambda piece: piece), pieces(*args))
    try:
        checkpoints_folder.write_checkpoint(folder, 2, contents(2))
        checkpoints_folder.rotate(folder, keep=1)
    finally:
        os._exit(0)


def test_kill_at_every_write_point_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    steps_found = []
    for point in range(1, 60):
        folder = tmp_path / str(point)
        checkpoints_folder.write_checkpoint(folder, 1, contents(1))
        killed = in_a_process(save_until, point, folder) == -signal.SIGKILL
        found = checkpoints_folder.newest_valid(folder)
        assert found is not None, f"nothing to resume from after a kill at point {point}"
        tensors, state = load.read_tensors(found, "model"), json.loads((found / "state.json").read_text())
        assert tensors is not None
        assert tensors["a"].tolist() == [float(state["step"])] * 4
        steps_found.append(state["step"])
        checkpoints_folder.remove_unfinished(folder)
        assert all(path.suffix not in (".partial", ".trash") for path in folder.iterdir())
        checkpoints_folder.write_checkpoint(folder, 2, contents(2))  # the next writer is not disturbed by what is left
        if not killed:
            break
    assert not killed, "the last round should have run to its end"
    assert point > 20
    assert set(steps_found) == {1, 2}
    assert steps_found == sorted(steps_found)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
def test_damage_is_named_and_the_way_out_given(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints_folder.write_checkpoint(tmp_path, 1, contents(1))
    target = checkpoints_folder.write_checkpoint(tmp_path, 2, contents(2)) / name
    data = bytearray(target.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
    elif damage == "truncate":
        target.write_bytes(data[:-1] if name != "manifest.json" else data[: len(data) // 2])
    elif damage == "empty":
        target.write_bytes(b"")
    else:
        target.unlink()
    if name == "manifest.json" and damage == "flip":  # any one-bit change must be caught, wherever it falls
        damaged_everywhere(target, bytes(data))
        return
    for _ in range(2):  # a second try fails too
        with pytest.raises(CheckpointError) as caught:
            checkpoints_folder.newest_valid(tmp_path)
        assert name in caught.value.message
        assert caught.value.exit_code == 4
        assert "step-00000001" in (caught.value.hint or "")


def damaged_everywhere(manifest: Path, flipped_once: bytes) -> None:
    """Flip a bit of each byte of the manifest in turn: it is refused, or it says the same as before."""
    original = bytearray(flipped_once)
    original[len(original) // 2] ^= 1
    before = json.loads(original)
    refused = 0
    for position in range(len(original)):
        data = bytearray(original)
        data[position] ^= 1
        manifest.write_bytes(data)
        try:
            after = checkpoints_folder.verify(manifest.parent)
        except CheckpointError:
            refused += 1
        else:
            assert after["files"] == before["files"]
    assert refused > 0.8 * len(original)


def test_damage_without_an_older_checkpoint_says_so(tmp_path: Path) -> None:
    path = checkpoints_folder.write_checkpoint(tmp_path, 1, contents(1))
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        checkpoints_folder.newest_valid(tmp_path)
    assert "no older checkpoint" in (caught.value.hint or "")


@pytest.mark.parametrize("where", ["write", "fsync", "tensors"])
def test_disk_full_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    checkpoints_folder.write_checkpoint(tmp_path, 1, contents(1))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "write":
        monkeypatch.setattr(checkpoints_folder, "_write_file", full)
    elif where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(tensor_files, "_pieces", full)
    with pytest.raises(EnvironmentProblem, match="no space left") as caught:
        checkpoints_folder.write_checkpoint(tmp_path, 2, contents(2))
    monkeypatch.undo()
    assert caught.value.exit_code == 5
    found = checkpoints_folder.newest_valid(tmp_path)
    assert found is not None
    assert found.name == "step-00000001"
    assert not list(tmp_path.glob("*.partial"))


def save_with_a_full_disk(folder: Path) -> None:
    """Exits with 0 if the writer says so, with 1 if not."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        checkpoints_folder.write_checkpoint(
            folder, 1, checkpoints_folder.Contents(files={}, tensors={"model": {"a": torch.zeros(100_000)}})
        )
    except EnvironmentProblem:
        os._exit(0)
    os._exit(1)


def test_a_file_that_may_not_grow_any_further_is_told_as_such(tmp_path: Path) -> None:
    assert in_a_process(save_with_a_full_disk, tmp_path) == 0
    assert checkpoints_folder.newest_valid(tmp_path) is None
