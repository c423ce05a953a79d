"""A run is killed, or told to stop, while it saves: the last whole checkpoint loads."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mirasol_cli.checkpoints import folder, tensor_files
from mirasol_cli.checkpoints.load import load_weights, model_tensors, stored_model
from mirasol_cli.checkpoints.saver import BackgroundSaver
from mirasol_cli.errors import EnvironmentProblem, Interrupted, MirasolError
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.runtime import distributed
from mirasol_cli.runtime.distributed import World
from mirasol_cli.training import loop
from mirasol_cli.training.loop import train
from tests import small_model, synthetic
from tests.faults.test_training_checkpoint_faults import in_a_process
from tests.faults.test_training_faults import newest_step
from tests.training.processes import environment, free_port

POINTS = 20


def state(step: int) -> tuple[Mirasol, dict[str, dict[str, torch.Tensor]]]:
    """A small model all of whose weights are the step, and its tensors."""
    model = small_model.model("ttm")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    tensors = model_tensors(model)
    return model, {"model": tensors, "optimizer": {f"exp_avg/{name}": tensor for name, tensor in tensors.items()}}


def save_both(path: Path, world: World, before_second: Callable[[], None] = lambda: None) -> None:
    """Save step 1, then step 2."""
    with BackgroundSaver(path, world, keep=1, check=lambda: None, patience_s=5) as saving:
        for step in (1, 2):
            if step == 2:
                saving.wait()
                before_second()
            saving.start(step, {"state.json": b"{}"}, state(step)[1])


def writes(count: Callable[[], None]) -> None:
    """Have `count` called before whatever changes a file system from now on, in this process."""
    pieces = tensor_files._pieces

    def counted(real: Callable) -> Callable:
        def call(*arguments, **named):  # type: ignore[no-untyped-def]
            count()
            return real(*arguments, **named)

        return call

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    tensor_files._pieces = lambda *arguments: map(counted(lambda piece: piece), pieces(*arguments))


def save_until(path: Path, share: float | None, total: int, rank: int = 0, size: int = 1, port: int = 0, victim: int = 0) -> None:
    """Save twice; at `share` of the writes of the second save the process `victim` is killed. Without a share, tell how many there are."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if share is not None and rank == victim and calls == 1 + int(share * total):
            os.kill(os.getpid(), signal.SIGKILL)

    def save(world: World) -> None:
        save_both(path, world, lambda: writes(count))
        if share is None and rank == victim:
            path.with_suffix(".count").write_text(str(calls))

    if size == 1:
        save(World(0, 1, torch.device("cpu")))
    else:
        os.environ.update(environment(rank, size, port))
        try:
            with distributed.joined_world(torch.device("cpu"), 60) as world:
                save(world)
        except EnvironmentProblem as error:  # the other one is gone
            os._exit(5 if "lost the connection" in error.message else 1)
    os._exit(0)


def assert_the_newest_loads(path: Path) -> int:
    """The step of the newest checkpoint, after loading it."""
    newest = folder.newest_valid(path)
    assert newest is not None
    step = int(newest.name.removeprefix("step-"))
    model, _ = state(0)
    load_weights(model, stored_model(newest), str(newest))
    assert all(bool((parameter == step).all()) for parameter in model.parameters())
    return step


def test_kill_9_at_twenty_points_of_a_save_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    assert in_a_process(save_until, tmp_path / "whole", None, 0) == 0
    total, steps = int((tmp_path / "whole.count").read_text()), []
    assert total > 5 * POINTS
    for point in range(POINTS):
        path = tmp_path / str(point)
        assert in_a_process(save_until, path, point / (POINTS - 1) * 0.999, total) == -signal.SIGKILL
        steps.append(assert_the_newest_loads(path))
        folder.remove_unfinished(path)
        assert [entry.name for entry in path.iterdir() if entry.is_dir() and entry.suffix] == []
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_kill_9_of_one_of_two_writers_leaves_a_checkpoint_that_loads(tmp_path: Path, victim: int) -> None:
    def both(path: Path, share: float | None, total: int) -> list[int | None]:
        import multiprocessing

        context, port = multiprocessing.get_context("forkserver"), free_port()
        children = [context.Process(target=save_until, args=(path, share, total, rank, 2, port, victim)) for rank in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
        return [child.exitcode for child in children]

    assert both(tmp_path / "whole", None, 0) == [0, 0]
    total = int((tmp_path / "whole.count").read_text())
    for point in range(POINTS // 2):
        path = tmp_path / str(point)
        codes = both(path, point / (POINTS // 2 - 1) * 0.999, total)
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] in (0, 5)
        assert_the_newest_loads(path)


# --------------------------------------------------------------------------------------------------------------- to be stopped


def stopped_during_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """SIGTERM comes in step 3, while step 2 is being saved; what the run says. Every save lasts half a second."""
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    pieces, step = tensor_files._pieces, loop.train_step

    def slow(*arguments):  # type: ignore[no-untyped-def]
        time.sleep(0.25)  # for each of two files
        return pieces(*arguments)

    def step_and_signal(run, batches, signals):  # type: ignore[no-untyped-def]
        if run.step == 2:
            assert run.saver._thread.is_alive()
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, batches, signals)

    monkeypatch.setattr(tensor_files, "_pieces", slow)
    monkeypatch.setattr(loop, "train_step", step_and_signal)
    with pytest.raises(Interrupted) as caught:
        train(synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.checkpoint_every=2", *words), stage="finetune", device="cpu")
    assert caught.value.exit_code == 143
    return f"{caught.value.message}; {caught.value.hint}"


def test_a_sigterm_during_a_save_waits_for_it_and_saves_the_step_just_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = stopped_during_a_save(tmp_path, monkeypatch)
    assert "stopped by SIGTERM after step 3; a checkpoint was saved" in said
    assert [path.name for path in folder.checkpoints_in(tmp_path / "run" / "checkpoints")] == [folder.step_name(step) for step in (2, 3)]
    assert newest_step(tmp_path / "run") == 3


def test_where_no_second_save_fits_into_the_warning_the_first_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = stopped_during_a_save(tmp_path, monkeypatch, "run.stop_within_s=0.5")
    assert "the newest checkpoint is of step 2" in said
    assert "run.stop_within_s" in said
    assert newest_step(tmp_path / "run") == 2


def test_a_save_that_takes_longer_than_the_warning_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "0")
    train(synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.checkpoint_every=1"), stage="finetune", device="cpu")
    assert capsys.readouterr().err.count("available after SIGTERM: raise TORCH_ELASTIC_SHUTDOWN_TIMEOUT") == 1


def test_a_save_that_fails_stops_training_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "_pieces", full)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.checkpoint_every=2", "train.steps=100000")
    with pytest.raises(MirasolError, match="no space left") as caught:
        train(recipe, stage="finetune", device="cpu")
    assert caught.value.exit_code == 5
    assert folder.checkpoints_in(tmp_path / "run" / "checkpoints") == []
