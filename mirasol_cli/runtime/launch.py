"""Several processes of one command on this machine, as torchrun starts them, but with exit codes passed on.

torchrun answers 1 whatever a process ended with; scripts that wait for 6 (diverged) or 143 (stopped after a good save)
need the real code. For several machines use torchrun: `torchrun --nproc-per-node 8 -m mirasol_cli finetune RECIPE`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from mirasol_cli.errors import UsageError
from mirasol_cli.runtime.signals import caught_signals

GRACE_S = 30.0
"""How long the other processes may take to end by themselves once one has failed."""
POLL_S = 0.05


def torchrun_kill_delay_s() -> float | None:
    """Under torchrun, the seconds from SIGTERM to SIGKILL; None elsewhere. Some versions of torch know no other than the 30 of old."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from torch.distributed.launcher.api import LaunchConfig

    settable = hasattr(LaunchConfig, "shutdown_timeout")
    return float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")) if settable else 30.0


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(arguments: Sequence[str], processes: int, *, correct: Callable[[int, int], None] | None = None, grace_s: float = GRACE_S) -> int:
    """Run `python -m mirasol_cli ARGUMENTS` in `processes` copies that form one distributed run.

    SIGTERM, SIGINT, SIGHUP and SIGUSR1 are passed on. When one copy fails, the others get `grace_s` seconds, then SIGTERM, then SIGKILL.

    Args:
        correct: called with the process id of the first copy and the exit code, where that is not 0.

    Returns:
        0, or the exit code of the copy that failed first (128 + n for one killed by signal n).

    Raises:
        UsageError: this process is itself a copy of a distributed run.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("--nproc cannot be used under torchrun or srun, which already start the processes", "remove --nproc")
    command = [sys.executable, "-m", "mirasol_cli", *arguments]
    shared = {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // processes)),
    }  # fmt: skip
    copies: list[subprocess.Popen[bytes]] = []
    with _forwarding(copies):
        try:
            for rank in range(processes):
                copies.append(subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
            code = _wait(copies, grace_s)
        finally:
            _end(copies)
    if correct is not None and code:
        correct(copies[0].pid, code)
    return code


def _wait(copies: list[subprocess.Popen[bytes]], grace_s: float) -> int:
    """Wait for all copies; once one has failed, only for `grace_s`. Returns the code of the first that failed."""
    failed_at, code = 0.0, 0
    while None in [copy.poll() for copy in copies]:
        if code == 0:
            code, failed_at = _first_failure(copies), time.monotonic()
        elif time.monotonic() - failed_at > grace_s:
            break
        time.sleep(POLL_S)
    return code or _first_failure(copies)


def _first_failure(copies: list[subprocess.Popen[bytes]]) -> int:
    """The exit code of a copy that has failed by now, else 0."""
    return next((_exit_code(copy) for copy in copies if copy.returncode), 0)


def _exit_code(copy: subprocess.Popen[bytes]) -> int:
    return copy.returncode if copy.returncode >= 0 else 128 - copy.returncode


def _end(copies: list[subprocess.Popen[bytes]], patience_s: float = 5.0) -> None:
    """End what still runs: SIGTERM, then SIGKILL."""
    for copy in copies:
        if copy.poll() is None:
            copy.terminate()
    deadline = time.monotonic() + patience_s
    for copy in copies:
        try:
            copy.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            copy.kill()
            copy.wait()


class _forwarding:
    """While entered, the signals that a run reacts to go to the copies instead of ending this process."""

    def __init__(self, copies: list[subprocess.Popen[bytes]]):
        self.copies = copies
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in caught_signals():
            self.previous[number] = signal.signal(number, self._pass_on)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: object) -> None:
        for copy in self.copies:
            if copy.poll() is None:
                copy.send_signal(number)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
