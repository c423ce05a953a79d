"""One writer per folder: who is refused, who waits, and who takes over."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from mirasol_cli.errors import EnvironmentProblem, UsageError
from mirasol_cli.runtime import folder_lock as fl
from mirasol_cli.runtime.folder_lock import LOCK, Writer, folder_lock

HOLD = "import sys, time; from pathlib import Path; from mirasol_cli.runtime.folder_lock import folder_lock\n"
HOLD += "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fl, "BEAT_S", 0.05)
    monkeypatch.setattr(fl, "STALE_S", 0.6)


def left_behind(folder: Path, host: str = "elsewhere", pid: int = 7) -> Path:
    (folder / LOCK).write_text(json.dumps(asdict(Writer(host, pid, "2026-01-01 00:00:00", "x"))))
    return folder / LOCK


def test_a_second_writer_is_refused_while_the_first_lives_and_nothing_stays(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "new")], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match=rf"is in use by process {child.pid} on {platform.node()} since"),
            folder_lock(tmp_path / "new"),
        ):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        with folder_lock(tmp_path / "new"):  # at once: its process is gone
            assert (tmp_path / "new" / LOCK).is_file()
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_writer_elsewhere_whose_heart_beats_is_left_alone(tmp_path: Path) -> None:
    path, stop = left_behind(tmp_path), threading.Event()
    beating = threading.Thread(target=lambda: [os.utime(path) for _ in iter(lambda: stop.wait(0.1), True)])
    beating.start()
    try:
        with pytest.raises(UsageError, match="process 7 on elsewhere since 2026-01-01"), folder_lock(tmp_path):
            pass
    finally:
        stop.set()
        beating.join()
    assert Writer.read(path) is not None


@pytest.mark.parametrize(("host", "pid"), [("elsewhere", 7), (platform.node(), os.getpid())])
def test_a_writer_whose_heart_has_stopped_is_followed(tmp_path: Path, host: str, pid: int) -> None:
    left_behind(tmp_path, host, pid)
    said: list[str] = []
    began = time.monotonic()
    with folder_lock(tmp_path, said.append):
        assert time.monotonic() - began > 0.3  # it was waited for
        assert Writer.read(tmp_path / LOCK) != Writer(host, pid, "2026-01-01 00:00:00", "x")
    assert len(said) == 1


def test_a_lock_that_was_never_finished_is_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"host": ')
    with folder_lock(tmp_path):
        assert Writer.read(tmp_path / LOCK) is not None
    assert list(tmp_path.iterdir()) == []


def test_the_heart_beats_while_it_is_held(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        first, deadline = (tmp_path / LOCK).stat().st_mtime_ns, time.monotonic() + 20
        while (tmp_path / LOCK).stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / LOCK).stat().st_mtime_ns > first


def test_the_lock_of_one_who_was_quicker_is_left_alone(tmp_path: Path) -> None:
    stale = Writer.read(left_behind(tmp_path))
    (tmp_path / LOCK).write_text(json.dumps(asdict(Writer("elsewhere", 8, "2026-01-01 00:00:09", "y"))))
    fl._remove(tmp_path / LOCK, stale)
    assert Writer.read(tmp_path / LOCK) != stale
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_of_many_that_follow_one_at_a_time_writes(tmp_path: Path) -> None:
    left_behind(tmp_path, platform.node(), 2**22 + 5)  # no such process
    inside, most, refused = [], [], []

    def write() -> None:
        try:
            with folder_lock(tmp_path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.1)
                inside.pop()
        except UsageError:
            refused.append(1)

    threads = [threading.Thread(target=write) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "runs" / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "result").touch()
    assert [path.name for path in (tmp_path / "runs" / "new").iterdir()] == ["result"]


def test_a_writer_that_was_followed_learns_of_it(tmp_path: Path) -> None:
    with folder_lock(tmp_path) as lock:
        lock.check()
        left_behind(tmp_path)  # another process took over while this one was suspended
        with pytest.raises(EnvironmentProblem, match="taken over by process 7 on elsewhere"):
            lock.check()
    assert Writer.read(tmp_path / LOCK) is not None  # which is not this process's to remove
