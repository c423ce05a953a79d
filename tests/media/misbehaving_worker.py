"""A decoding process that misbehaves as the file's name tells it to; the protocol around it is the real one."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from mirasol_cli.errors import MediaError
from mirasol_cli.media.decode_worker import run


def misbehave(kind: str) -> None:
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "abort":
        os.abort()
    elif kind == "fault":
        ctypes.string_at(0)
    elif kind == "exit":
        os._exit(3)
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        time.sleep(1000)
    elif kind == "spin":
        while True:
            pass
    elif kind == "memory":
        np.ones(1 << 40, np.uint8)
    elif kind == "creep":
        held = []
        while True:
            held.append(np.ones(1 << 24, np.uint8))
    elif kind == "error":
        raise RuntimeError("something odd")
    elif kind == "media":
        raise MediaError("no video stream", "a hint")


def load():
    def work(job, progress):
        kind, *how = Path(job.path).stem.split("-")
        if job.requests is None:
            yield "info", job.path
            return
        if kind == "decord":  # misbehaves in decord, and is fine without it
            if job.options.get("use_decord", True):
                progress("decord")
                misbehave(how[0])
            progress("pyav")
        for number, request in enumerate(job.requests):
            if how and kind == "second" and number == 1:
                misbehave(how[0])
            time.sleep(float(how[0]) if kind == "slow" else 0)
            yield "clip", {"pid": os.getpid(), "key": request.key, "payload": np.zeros(1 << 22, np.uint8), "options": job.options}
            sys.stderr.write("noise")
        misbehave(kind)

    if "MIRASOL_TEST_BROKEN" in os.environ:
        raise ImportError("no decoder here")
    return work


if __name__ == "__main__":
    run(sys.argv[1:], load)
