"""Training processes in tests: forked (fast: torch is imported already) or started afresh, as a launcher would (for signals)."""

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch

from mirasol_cli.errors import MirasolError
from mirasol_cli.evaluation.validation import validator
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.runtime.distributed import World
from mirasol_cli.text.tokenizer import Vocabulary
from mirasol_cli.training.loop import Validate, train
from tests import synthetic

ROOT = Path(__file__).resolve().parents[2]
HANGS_AFTER_S = 120.0


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def forked(
    size: int, folder: Path, shards: Path, *words: str, resume: bool = False, validate: Validate | None = None
) -> tuple[list[int], list[str]]:
    """Finetune on `size` processes; their exit codes and what they printed.

    They come from a server that has imported torch but never run it: a fork of a process that has trained may hang.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.processes"])
    port, logs = free_port(), [folder.with_name(f"{folder.name}.log.{rank}") for rank in range(size)]
    children = [
        context.Process(target=_finetune, args=(environment(rank, size, port), log, folder, shards, words, resume, validate))
        for rank, log in enumerate(logs)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(HANGS_AFTER_S)
    for child in children:
        if child.exitcode is None:
            child.kill()
            child.join()
    return [child.exitcode or 0 for child in children], [log.read_text() for log in logs]


def _finetune(
    variables: dict[str, str], log: Path, folder: Path, shards: Path, words: tuple[str, ...], resume: bool, validate: Validate | None
) -> None:
    os.environ.update(variables, OMP_NUM_THREADS="1")
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 1
    try:
        recipe = synthetic.recipe(folder, shards, *words)
        train(recipe, stage="finetune", device="cpu", threads=1, resume=resume, validate=validate)
        code = 0
    except MirasolError as error:
        os.write(2, f"{error.kind}: {error.message} ({error.hint})\n".encode())
        code = error.exit_code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def run(size: int, folder: Path, shards: Path, *words: str, resume: bool = False) -> None:
    """Finetune to the end on `size` processes; all must succeed."""
    codes, logs = forked(size, folder, shards, *words, resume=resume)
    assert codes == [0] * size, "\n".join(logs)


def one_step_of_text(model: Mirasol, vocabulary: Vocabulary, world: World) -> dict[str, float]:
    """A validation that calls a method other than forward, and not as often on one process as on another."""
    tokens = torch.ones(1, 1, 3, dtype=torch.int64)
    for _ in range(1 + world.rank):
        logits = model.text.step(tokens, model.text.start_cache(1, 1, 4))
    checksums = world.waiting.exchange(repr(float(logits.sum())).encode())
    return {"exact_match": float(len(set(checksums)) == 1 and logits.shape[-1] == vocabulary.size), "checksum": float(logits.sum())}


def figures_of_val(folder: Path, shards: Path, model: Mirasol, vocabulary: Vocabulary, world: World) -> Mapping[str, float]:
    """The validation of the commands, on the split `val` of `shards`."""
    validate = validator(synthetic.recipe(folder, shards, "train.eval_every=1", "eval.batch_size=4"), print)
    assert validate is not None
    return validate(model, vocabulary, world)


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
