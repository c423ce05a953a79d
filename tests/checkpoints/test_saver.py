"""Saving beside training: what a save holds, who writes what of it, and what becomes of it when something goes wrong."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mirasol_cli.checkpoints import folder, load, tensor_files
from mirasol_cli.checkpoints.saver import BackgroundSaver, own_share
from mirasol_cli.checkpoints.tensor_files import StoredTensors, write_tensor_file
from mirasol_cli.errors import CheckpointError, EnvironmentProblem
from mirasol_cli.files import sha256_of
from mirasol_cli.runtime.distributed import World
from mirasol_cli.runtime.peers import AbortedByPeer
from tests.runtime.ranks import on_ranks

CPU = torch.device("cpu")


def saver(path: Path, world: World | None = None, keep: int = 5) -> BackgroundSaver:
    return BackgroundSaver(path, world or World(0, 1, CPU), keep=keep, check=lambda: None, patience_s=5)


class Held:
    """Holds every writer before its first piece until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.begun, self.go = threading.Event(), threading.Event()
        pieces = tensor_files._pieces

        def held(*arguments):  # type: ignore[no-untyped-def]
            self.begun.set()
            assert self.go.wait(20)
            return pieces(*arguments)

        monkeypatch.setattr(tensor_files, "_pieces", held)


def test_every_type_and_shape_is_written_as_the_library_reads_it(tmp_path: Path) -> None:
    types = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ]
    tensors = {str(dtype): torch.arange(7).to(dtype) for dtype in types}
    tensors |= {"nothing": torch.empty(0, 3), "number": torch.tensor(2.5), "turned": torch.arange(6.0).view(2, 3).T, "naïve": torch.ones(3)}
    entry = write_tensor_file(tmp_path / "x.safetensors", tensors)
    assert entry == {"bytes": (tmp_path / "x.safetensors").stat().st_size, "sha256": sha256_of(tmp_path / "x.safetensors")}
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # by which Hugging Face's readers know whose tensors these are


def test_training_goes_on_during_a_save_and_what_is_saved_is_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, weights = Held(monkeypatch), torch.zeros(4)
    with saver(tmp_path) as saving:
        saving.start(1, {"state.json": b"{}"}, {"model": {"a": weights}})
        assert held.begun.wait(20)
        weights += 1  # the next step
        assert not folder.checkpoints_in(tmp_path)
        held.go.set()
        saving.start(2, {"state.json": b"{}"}, {"model": {"a": weights}})  # waits for the first
        assert [path.name for path in folder.checkpoints_in(tmp_path)] == ["step-00000001"]
        weights += 1
    for step in (1, 2):
        tensors = load.read_tensors(tmp_path / folder.step_name(step), "model")
        assert tensors is not None
        assert tensors["a"].tolist() == [step - 1.0] * 4
        folder.verify(tmp_path / folder.step_name(step))
    assert saving.seconds is not None
    assert saving.step == 2


def test_an_error_of_the_disk_is_raised_where_training_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saving = saver(tmp_path)
    saving.start(1, {}, {"model": {"a": torch.ones(2)}})
    saving.wait()
    with monkeypatch.context() as patched:
        patched.setattr(tensor_files, "_pieces", full)
        saving.start(2, {}, {"model": {"a": torch.ones(2)}})
        while not saving.failed:
            time.sleep(0.01)
    with pytest.raises(EnvironmentProblem, match="no space left"):
        saving.start(3, {}, {"model": {"a": torch.ones(2)}})
    saving.start(4, {}, {"model": {"a": torch.ones(2)}})  # said once
    saving.wait()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step-00000001", "step-00000004"]


@pytest.mark.parametrize(("error", "done"), [(RuntimeError, True), (KeyboardInterrupt, False)])
def test_a_run_that_fails_waits_for_its_save_but_a_second_ctrl_c_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], done: bool
) -> None:
    held = Held(monkeypatch)
    with pytest.raises(error), saver(tmp_path) as saving:
        saving.start(1, {}, {"model": {"a": torch.ones(2)}})
        if done:
            threading.Timer(0.2, held.go.set).start()
        raise error
    assert bool(folder.checkpoints_in(tmp_path)) == done
    held.go.set()
    saving.wait()


def test_processes_that_hold_the_same_share_the_work() -> None:
    tensors = {f"t{number}": torch.zeros(number + 1, 10) for number in range(9)} | {"step": torch.tensor(1.0)}
    shares = [own_share(tensors, World(rank, 3, CPU)) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    held = [sum(part.nbytes for part in share.values() if isinstance(part, Tensor)) for share in shares]
    assert max(held) < 1.4 * sum(held) / 3


# ------------------------------------------------------------------------------------------------------- several processes

WHOLE = {"a": torch.arange(15.0).view(5, 3), "b": torch.arange(2.0), "c": torch.tensor(7.0), "d": torch.arange(8).view(4, 2)}


def sharded(world: World, names: str) -> dict[str, Tensor]:
    """WHOLE with the rows of `names` divided over the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    if world.size == 1:
        return WHOLE
    mesh = init_device_mesh("cpu", (world.size,))
    return {name: distribute_tensor(tensor, mesh, [Shard(0)]) if name in names else tensor for name, tensor in WHOLE.items()}


def save(world: World, path: Path, names: str) -> None:
    with saver(path, world) as saving:
        saving.start(3, {"state.json": b"{}"}, {"model": sharded(world, names), "optimizer": {"x": torch.ones(2)}})


def save_and_read(world: World, two: Path, one: Path) -> list[dict[str, list]]:
    """Save of two processes; what each then reads of it, and of the save of one."""
    save(world, two, "abd")
    return [read(world, path / folder.step_name(3)) for path in (two, one)]


def read(world: World, path: Path) -> dict[str, list]:
    """What this process reads of tensors whose rows are divided, other ones than in the save."""
    own = {name: torch.zeros_like(tensor) for name, tensor in sharded(world, "ab").items()}
    stored = StoredTensors(path, "model")
    for name, tensor in own.items():
        load.copy_stored(tensor, stored, name)
    return {name: (tensor.full_tensor() if name in "ab" else tensor).tolist() for name, tensor in own.items()}  # type: ignore[attr-defined]


def assert_whole(path: Path) -> None:
    folder.verify(path)
    tensors = load.read_tensors(path, "model")
    assert tensors is not None
    assert tensors.keys() == WHOLE.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in WHOLE.items())


def test_two_processes_write_and_any_number_reads(tmp_path: Path) -> None:
    save(World(0, 1, CPU), tmp_path / "one", "")
    assert_whole(tmp_path / "one" / folder.step_name(3))
    expected = {name: tensor.tolist() for name, tensor in WHOLE.items()}
    assert on_ranks(2, save_and_read, tmp_path / "two", tmp_path / "one") == [[expected] * 2] * 2
    path = tmp_path / "two" / folder.step_name(3)
    assert sorted(file.name for file in path.glob("model*")) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    assert (path / "optimizer.safetensors").is_file()  # one process had it all
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["slices"]["a"] == {"shape": [5, 3], "first_rows": {f"model-0000{n}-of-00002.safetensors": 3 * (n - 1) for n in (1, 2)}}
    assert index["weight_map"].keys() == {"c"}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in WHOLE.values())
    assert json.loads((path / "manifest.json").read_text())["schema"] == 2
    assert_whole(path)


def test_of_a_tensor_only_the_rows_that_are_asked_for_are_read(tmp_path: Path) -> None:
    on_ranks(2, save, tmp_path, "abd")
    path = tmp_path / folder.step_name(3)
    (path / "model-00002-of-00002.safetensors").unlink()
    stored = StoredTensors(path, "model")
    assert stored.rows("a", 1, 2).tolist() == WHOLE["a"][1:3].tolist()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        stored.rows("a", 2, 2)


@pytest.mark.parametrize(
    "text", ["[]", '{"weight_map": []}', '{"weight_map": {}, "slices": {"a": {"shape": [2]}}}', '{"weight_map": {"a": "../b"}}']
)
def test_a_damaged_index_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json|'b' cannot be read|/b' cannot be read"):
        StoredTensors(tmp_path, "model")


def save_with_a_full_disk(world: World, path: Path) -> str:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if world.rank == 1:
        tensor_files._pieces = full
    saving = saver(path, world)
    saving.start(1, {}, {"model": sharded(world, "a")})
    try:
        saving.wait()
    except EnvironmentProblem as error:
        return f"{error.exit_code} {error.message}"
    except AbortedByPeer as error:
        return f"{error.exit_code} {error.message}"
    return "no error"


def test_a_full_disk_of_one_process_fails_the_save_of_all(tmp_path: Path) -> None:
    first, second = on_ranks(2, save_with_a_full_disk, tmp_path)
    assert first == "5 process 1 failed; see its message"
    assert second.startswith("5 no space left while writing")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_machines_do_not_share_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SEEN_WITHIN_S", 0.2)
    with pytest.raises(EnvironmentProblem, match="written by process 3, is not visible to the first process") as caught:
        folder._await(tmp_path / "model-00004-of-00008.safetensors", {"bytes": 8, "rank": 3})
    assert "run.dir" in (caught.value.hint or "")
