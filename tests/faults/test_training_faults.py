"""Signals, numbers that are not finite, a full disk and killed processes during training."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mirasol_cli.checkpoints import folder, load
from mirasol_cli.config.reader import dump_recipe
from mirasol_cli.errors import Diverged, EnvironmentProblem, UsageError
from mirasol_cli.runtime.signals import SignalFlags
from mirasol_cli.training.loop import train
from tests import synthetic
from tests.training.processes import finish, forked, start
from tests.training.test_resume import assert_equal_runs

MANY = "train.steps=100000"


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen]) -> None:
    """Until metrics.jsonl tells of `step`."""
    for _ in range(1200):
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        if lines and json.loads(lines[-1])["step"] >= step:
            return
        assert all(process.poll() is None for process in processes), [p.communicate() for p in processes if p.poll() is not None]
        time.sleep(0.05)
    raise AssertionError("the run did not get there in time")


def newest_step(run: Path) -> int:
    found = folder.newest_valid(run / "checkpoints")
    assert found is not None
    return int(found.name.removeprefix("step-"))


def status(run: Path) -> tuple[str, int]:
    state = json.loads((run / "run.json").read_text())
    return state["status"], state["exit_code"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_once_and_the_resumed_run_is_equal(tmp_path: Path, number: int, code: int) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    words = ["train.steps=400", "train.checkpoint_every=1000"]
    processes = start(1, tmp_path / "cut", tmp_path / "shards", *words)
    wait_for_step(tmp_path / "cut", 3, processes)
    processes[0].send_signal(number)
    codes, errors = finish(processes)
    assert codes == [code], errors
    stopped = newest_step(tmp_path / "cut")
    assert 3 <= stopped < 400
    assert len(folder.checkpoints_in(tmp_path / "cut" / "checkpoints")) == 1
    assert status(tmp_path / "cut") == ("interrupted", code)
    # Go on for one step only and compare with a run that was never stopped.
    recipe = [synthetic.recipe(tmp_path / name, tmp_path / "shards", *words) for name in ("cut", "whole")]
    stop_after(recipe[0], stopped + 1, resume=True)
    stop_after(recipe[1], stopped + 1, resume=False)
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole", stopped + 1)


def stop_after(recipe, step: int, *, resume: bool) -> None:  # type: ignore[no-untyped-def]
    """Train until a checkpoint of `step` is there; validation, which comes before the save, asks for the end."""
    from mirasol_cli.errors import Interrupted
    from mirasol_cli.training import loop

    real = loop.train_step

    def step_and_signal(run, batches, signals):  # type: ignore[no-untyped-def]
        if run.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, batches, signals)

    loop.train_step = step_and_signal
    try:
        with pytest.raises(Interrupted):
            train(recipe, stage="finetune", device="cpu", resume=resume)
    finally:
        loop.train_step = real


def test_sigterm_to_one_of_two_processes_stops_both_after_one_save(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    processes = start(2, tmp_path / "run", tmp_path / "shards", MANY)
    wait_for_step(tmp_path / "run", 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = finish(processes)
    assert codes == [143, 143], errors
    assert len(folder.checkpoints_in(tmp_path / "run" / "checkpoints")) == 1
    assert newest_step(tmp_path / "run") >= 2
    assert status(tmp_path / "run") == ("interrupted", 143)


def test_sigusr1_saves_and_goes_on_and_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    processes = start(1, tmp_path / "run", tmp_path / "shards", MANY)
    wait_for_step(tmp_path / "run", 2, processes)
    processes[0].send_signal(signal.SIGUSR1)
    for _ in range(600):
        if folder.checkpoints_in(tmp_path / "run" / "checkpoints"):
            break
        time.sleep(0.05)
    saved = newest_step(tmp_path / "run")
    wait_for_step(tmp_path / "run", saved + 2, processes)
    processes[0].send_signal(signal.SIGTERM)
    assert finish(processes)[0] == [143]
    assert newest_step(tmp_path / "run") > saved


def test_sighup_saves_unless_it_was_ignored_at_the_start(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    processes = start(1, tmp_path / "run", tmp_path / "shards", MANY)
    wait_for_step(tmp_path / "run", 2, processes)
    processes[0].send_signal(signal.SIGHUP)
    assert finish(processes)[0] == [129]
    assert status(tmp_path / "run") == ("interrupted", 129)
    assert newest_step(tmp_path / "run") >= 2
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with SignalFlags() as flags:
            os.kill(os.getpid(), signal.SIGHUP)
            assert flags.stop == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_is_being_written_is_refused_and_one_whose_process_was_killed_goes_on(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    words = [MANY, "train.checkpoint_every=1", "train.keep_checkpoints=1"]
    processes = start(1, tmp_path / "run", tmp_path / "shards", *words)
    wait_for_step(tmp_path / "run", 3, processes)
    for resume in (True, False):
        with pytest.raises(UsageError, match=f"is in use by process {processes[0].pid} on"):
            train(synthetic.recipe(tmp_path / "run", tmp_path / "shards", *words), stage="finetune", device="cpu", resume=resume)
    assert processes[0].poll() is None
    processes[0].kill()
    finish(processes)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", *words)
    stop_after(recipe, newest_step(tmp_path / "run") + 1, resume=True)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_run_that_was_taken_over_saves_nothing_more(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)

    def taken_over(*_: object) -> dict[str, float]:
        writer = {"host": "elsewhere", "pid": 7, "started": "2026-01-01 00:00:00", "token": "x"}
        (tmp_path / "run" / ".lock").write_text(json.dumps(writer))
        return {"loss": 1.0}

    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.eval_every=1")
    with pytest.raises(EnvironmentProblem, match="taken over by process 7"):
        train(recipe, stage="finetune", device="cpu", validate=taken_over)
    assert folder.checkpoints_in(tmp_path / "run" / "checkpoints") == []


def test_a_log_that_nobody_reads_any_more_does_not_end_the_run(tmp_path: Path) -> None:
    """By the command itself, both streams in one pipe that is closed after the first line."""
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.steps=30")))
    command = [sys.executable, "-m", "mirasol_cli", "finetune", str(tmp_path / "recipe.yaml"), "--threads", "1", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert status(tmp_path / "run") == ("finished", 0)
    assert newest_step(tmp_path / "run") == 30


def test_the_launcher_writes_the_exit_code_of_all_processes(tmp_path: Path) -> None:
    from mirasol_cli.checkpoints.runs import correct_exit_code

    state = {"host": platform.node(), "pid": 11, "status": "failed", "exit_code": 5, "ended": "then", "error": "no answer"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(state))
    correct_exit_code(tmp_path, 12, 137)  # another run's
    assert json.loads(path.read_text()) == state
    correct_exit_code(tmp_path, 11, 137)
    assert json.loads(path.read_text()) == {**state, "exit_code": 137}
    path.write_text(json.dumps({**state, "status": "running", "exit_code": None, "ended": None, "error": None}))
    correct_exit_code(tmp_path, 11, 137)
    assert status(tmp_path) == ("failed", 137)
    assert "signal 9" in json.loads(path.read_text())["error"]
    correct_exit_code(tmp_path / "nowhere", 11, 137)


def test_the_second_ctrl_c_raises_but_a_forwarded_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from mirasol_cli.runtime import signals

    with signals.SignalFlags() as flags:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # as a launcher forwards the same key press
        assert flags.stop == 130
        monkeypatch.setattr(signals, "FORWARDED_WITHIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_kill_9_during_training_costs_only_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    processes = start(1, tmp_path / "run", tmp_path / "shards", MANY, "train.checkpoint_every=2")
    wait_for_step(tmp_path / "run", 7, processes)
    processes[0].kill()
    finish(processes)
    assert newest_step(tmp_path / "run") >= 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"  # nobody could write better


# ------------------------------------------------------------------------------------------------------------ not finite


def weights_of_step(run: Path, step: int) -> dict[str, torch.Tensor]:
    tensors = load.read_tensors(run / "checkpoints" / folder.step_name(step), "model")
    assert tensors is not None
    return tensors


def test_a_nan_in_one_sample_stops_before_the_weights_change(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8, not_finite=(5,))
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.checkpoint_every=1")
    with pytest.raises(Diverged, match="not finite") as caught:
        train(recipe, stage="finetune", device="cpu")
    assert caught.value.exit_code == 6
    assert status(tmp_path / "run") == ("diverged", 6)
    (report,) = (tmp_path / "run").glob("bad-step-*.json")
    named = [row["clip"] for row in json.loads(report.read_text())["clips"] if row["loss_not_finite"]]
    assert "clip5.mp4" in named
    for path in folder.checkpoints_in(tmp_path / "run" / "checkpoints"):
        tensors = load.read_tensors(path, "model")
        assert tensors is not None
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_micro_batches_narrow_the_report_down_to_the_clip(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8, not_finite=(5,))
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.micro_batch_size=1")
    with pytest.raises(Diverged):
        train(recipe, stage="finetune", device="cpu")
    (report,) = (tmp_path / "run").glob("bad-step-*.json")
    assert [row["clip"] for row in json.loads(report.read_text())["clips"] if row["loss_not_finite"]] == ["clip5.mp4"]


def test_bad_steps_may_be_skipped_and_are_counted(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8, not_finite=(5,))
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.max_skipped_steps=2", "train.checkpoint_every=1")
    train(recipe, stage="finetune", device="cpu")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [row["step"] for row in rows if row["skipped_steps"]]
    assert len(skipped) == 3  # once per epoch of two steps
    assert all(row["loss"] is None for row in rows if row["skipped_steps"])
    for step in skipped:
        if step > 1:
            before, after = weights_of_step(tmp_path / "run", step - 1), weights_of_step(tmp_path / "run", step)
            assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_nan_on_one_of_two_processes_stops_both_at_the_same_step(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8, not_finite=(5,))

    codes, (first, second) = forked(2, tmp_path / "run", tmp_path / "shards")
    assert codes == [6, 6], first + second
    assert first.split("not finite in step ")[1][0] == second.split("not finite in step ")[1][0]
    assert status(tmp_path / "run") == ("diverged", 6)


# ------------------------------------------------------------------------------------------------------- disk and memory


def test_disk_full_during_a_save_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.checkpoint_every=2")
    real, saves = folder._write_file, []

    def full_at_the_second_save(path: Path, content: bytes) -> None:
        saves.append(path.parent.name)
        if len(set(saves)) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(folder, "_write_file", full_at_the_second_save)
    with pytest.raises(EnvironmentProblem, match="no space left") as caught:
        train(recipe, stage="finetune", device="cpu")
    assert caught.value.exit_code == 5
    assert newest_step(tmp_path / "run") == 2
    assert status(tmp_path / "run") == ("failed", 5)
    monkeypatch.undo()
    assert train(recipe, stage="finetune", device="cpu", resume=True)["step"] == 6


def test_out_of_memory_says_what_was_in_memory_and_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirasol_cli.model.mirasol import Mirasol

    synthetic.write_split(tmp_path / "shards" / "train", 8)

    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    monkeypatch.setattr(Mirasol, "forward", too_much)
    with pytest.raises(EnvironmentProblem) as caught:
        train(synthetic.recipe(tmp_path / "run", tmp_path / "shards"), stage="finetune", device="cpu")
    assert "out of memory in step 1" in caught.value.message
    assert "4 clips x 3 chunks" in caught.value.message
    for key in ("train.micro_batch_size", "train.activation_checkpointing", "data.questions_per_clip"):
        assert key in (caught.value.hint or "")


def test_another_runtime_error_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirasol_cli.model.mirasol import Mirasol

    synthetic.write_split(tmp_path / "shards" / "train", 8)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Mirasol, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        train(synthetic.recipe(tmp_path / "run", tmp_path / "shards"), stage="finetune", device="cpu")
    assert status(tmp_path / "run") == ("failed", 1)


def test_a_damaged_shard_stops_the_run_and_is_named(tmp_path: Path) -> None:
    from mirasol_cli.errors import ShardError

    synthetic.write_split(tmp_path / "shards" / "train", 8)
    shard = tmp_path / "shards" / "train" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardError, match=r"shard-00000\.safetensors") as caught:
        train(synthetic.recipe(tmp_path / "run", tmp_path / "shards"), stage="finetune", device="cpu")
    assert caught.value.exit_code == 4
