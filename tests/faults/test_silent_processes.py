"""One of two training processes hangs or dies: the other says so in one sentence and ends, instead of waiting for ever."""

import json
import re
import signal
import time
from pathlib import Path

import pytest

from mirasol_cli.runtime.distributed import World
from tests import synthetic
from tests.faults.test_training_faults import newest_step, status, wait_for_step
from tests.training.processes import finish, forked, start

WAIT_S = 3
ENDLESS = ("train.steps=100000", f"run.process_group_timeout_s={WAIT_S}")


def ended(processes: list, waiting: int) -> tuple[int, str]:  # type: ignore[type-arg]
    """Exit code and stderr of the process that waits; the other one is killed."""
    try:
        _, error = processes[waiting].communicate(timeout=60)
    finally:
        processes[1 - waiting].kill()
        finish(processes)
    return processes[waiting].returncode, error


@pytest.mark.parametrize("silent", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_does_not_wait_for_ever_for_one_that_hangs(tmp_path: Path, silent: int) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    processes, waiting = start(2, tmp_path / "run", tmp_path / "shards", *ENDLESS), 1 - silent
    wait_for_step(tmp_path / "run", 2, processes)
    processes[silent].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    code, error = ended(processes, waiting)
    assert code == 5, error
    assert time.monotonic() - stopped < 10 * WAIT_S
    assert re.search(rf"process {waiting} of 2 waited more than {WAIT_S} s for another process", error), error
    if silent == 1:
        assert status(tmp_path / "run") == ("failed", 5)
        assert "waited more than" in json.loads((tmp_path / "run" / "run.json").read_text())["error"]
    assert "run.process_group_timeout_s" in error


@pytest.mark.parametrize("dead", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_ends_the_other_at_once(tmp_path: Path, dead: int) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    processes, waiting = start(2, tmp_path / "run", tmp_path / "shards", "train.steps=100000"), 1 - dead
    wait_for_step(tmp_path / "run", 2, processes)
    processes[dead].kill()
    killed = time.monotonic()
    code, error = ended(processes, waiting)
    assert code == 5, error
    assert time.monotonic() - killed < 30  # not after the 600 seconds of the default
    assert re.search(rf"process {waiting} of 2 lost the connection to another process, which has exited", error), error
    assert "--resume" in error


def long_on_one_process(model: object, vocabulary: object, world: World) -> dict[str, float]:
    world.waiting.together(lambda: time.sleep(WAIT_S + 6) if world.rank == 0 else None)
    return {"exact_match": 1.0}


@pytest.mark.slow
def test_a_validation_may_take_longer_than_a_step(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    words = ["train.steps=2", "train.eval_every=1", f"run.process_group_timeout_s={WAIT_S}"]
    codes, logs = forked(2, tmp_path / "run", tmp_path / "shards", *words, validate=long_on_one_process)
    assert codes == [0, 0], logs
    assert newest_step(tmp_path / "run") == 2


@pytest.mark.slow
def test_processes_that_never_come_are_missed(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    (first, *rest) = start(2, tmp_path / "run", tmp_path / "shards", *ENDLESS)
    for process in rest:
        process.kill()
        process.communicate()
    codes, errors = finish([first])
    assert codes == [5], errors
    assert "process 0 of 2 could not reach the others at 127.0.0.1:" in errors[0]
    assert not (tmp_path / "run").exists()
