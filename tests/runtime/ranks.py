"""Call a function on several forked processes of one gloo group."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from tests.training.processes import HANGS_AFTER_S, environment, free_port


def on_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results of `work(world, *arguments)` by rank; `work` is a function of a module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.processes"])
    port = free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    children = [
        context.Process(target=_call, args=(environment(rank, size, port), pipe[1], work, arguments)) for rank, pipe in enumerate(pipes)
    ]
    for child in children:
        child.start()
    try:
        found = [pipe[0].recv() if pipe[0].poll(HANGS_AFTER_S) else "no answer" for pipe in pipes]
    finally:
        for child in children:
            child.kill()
            child.join()
    errors = [result for result in found if isinstance(result, str)]
    assert not errors, "\n".join(errors)
    return [result for (result,) in found]


def _call(variables: dict[str, str], answer: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    from mirasol_cli.runtime.distributed import joined_world

    os.environ.update(variables, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    try:
        with joined_world(torch.device("cpu"), HANGS_AFTER_S) as world:
            result = work(world, *arguments)
            world.barrier()
        answer.send((result,))
    except BaseException:
        answer.send(traceback.format_exc())
    finally:
        os._exit(0)
