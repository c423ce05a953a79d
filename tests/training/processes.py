"""Training processes in tests: forked (fast: torch is imported already) or started afresh, as a launcher would (for signals)."""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from mirasol_cli.errors import MirasolError
from mirasol_cli.training.loop import train
from tests import synthetic

ROOT = Path(__file__).resolve().parents[2]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def forked(size: int, log: Path, work: Callable[[int], None]) -> list[int]:
    """Run `work(rank)` in `size` forked processes; their exit codes. What they print is in `log`.<rank>."""
    port, children = free_port(), []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open(f"{log}.{rank}", "w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                os.environ.update(environment(rank, size, port))
                work(rank)
                code = 0
            except MirasolError as error:
                os.write(2, f"{error.kind}: {error.message} ({error.hint})\n".encode())
                code = error.exit_code
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def run(size: int, folder: Path, shards: Path, *words: str, resume: bool = False) -> None:
    """Finetune to the end on `size` processes; all must succeed."""

    def work(rank: int) -> None:
        train(synthetic.recipe(folder, shards, *words), stage="finetune", device="cpu", resume=resume)

    log = folder.with_name(folder.name + ".log")
    codes = forked(size, log, work)
    assert codes == [0] * size, "\n".join(Path(f"{log}.{rank}").read_text() for rank in range(size))


def start(size: int, run: Path, shards: Path, *words: str, stage: str = "finetune") -> list[subprocess.Popen]:
    """`size` fresh processes of one run; stdout and stderr are pipes."""
    port = free_port()
    command = [sys.executable, "-m", "tests.training.worker", str(run), str(shards), stage, *words]
    return [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment(rank, size, port)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen], timeout: float = 120) -> tuple[list[int], list[str]]:
    """Exit codes and stderr of all; a process that hangs is killed and fails the test."""
    errors = []
    try:
        for process in processes:
            errors.append(process.communicate(timeout=timeout)[1])
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [process.returncode for process in processes], errors
