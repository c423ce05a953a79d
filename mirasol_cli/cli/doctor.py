"""`mirasol doctor`: what this machine has, one line each. Nothing is changed and nothing is sent anywhere."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from mirasol_cli import __version__
from mirasol_cli.cli.options import Json
from mirasol_cli.errors import EnvironmentProblem
from mirasol_cli.runtime import console
from mirasol_cli.runtime.launch import usable_cores

LEAST_DISK_GIB = 10
LEAST_MEMORY_GIB = 4


@dataclass(frozen=True)
class Check:
    """One line of the report. `state`: ok; warn (it works, but not at its best); fail (commands will not work)."""

    name: str
    state: str
    detail: str
    hint: str | None = None

    def line(self) -> str:
        return f"{self.state:4}  {self.name:14} {self.detail}" + (f"\n      {'':14} {self.hint}" if self.hint else "")


def examine() -> Iterator[Check]:
    """All checks, in order, each as soon as it is done (importing torch takes seconds)."""
    for name, check in CHECKS.items():
        try:
            yield check(name)
        except Exception as error:  # a doctor that dies tells nothing: OSError and RuntimeError come out of imports too
            yield Check(name, "fail", f"{type(error).__name__}: {error}".splitlines()[0], "reinstall mirasol: pip install -e .")


def summary(checks: list[Check]) -> dict:
    """The JSON form; `ok` is False when a command will not work here."""
    return {"ok": all(check.state != "fail" for check in checks), "version": __version__, "checks": [asdict(check) for check in checks]}


def _python(name: str) -> Check:
    return Check(name, "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch(name: str) -> Check:
    import torch

    return Check(name, "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")


def _device(name: str) -> Check:
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        free, total = torch.cuda.mem_get_info()
        return Check(name, "ok", f"{len(gpus)} x {gpus[0]}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free on the first")
    if torch.backends.mps.is_available():
        return Check(name, "ok", "Apple GPU (mps)")
    return Check(name, "warn", "no GPU found; using the CPU", "fine for the demo and for `ask`, too slow for the benchmarks")


def _decord(name: str) -> Check:
    try:
        importlib.import_module("torch")  # decord imported before torch is known to freeze data loaders
        import decord
    except Exception as error:
        return Check(name, "warn", f"does not import ({type(error).__name__}); PyAV reads all files", "pip install decord (or decord2)")
    packages = [p for p in ("decord", "decord2") if _version(p)]
    if len(packages) == 2:
        return Check(name, "warn", "decord and decord2 overwrite each other", "pip uninstall one of them and reinstall the other")
    return Check(name, "ok", f"{packages[0] if packages else 'decord'} {decord.__version__}")


def _pyav(name: str) -> Check:
    import av

    return Check(name, "ok", f"{av.__version__}; FFmpeg {'.'.join(map(str, av.library_versions['libavformat']))}")


def _torchaudio(name: str) -> Check:
    try:
        import torchaudio
    except Exception as error:  # a build for other CUDA libraries raises OSError or RuntimeError, not ImportError
        return Check(name, "ok", f"does not import ({type(error).__name__}); mirasol uses its own equivalent transform")
    return Check(name, "ok", str(torchaudio.__version__))


def _sentencepiece(name: str) -> Check:
    import sentencepiece

    return Check(name, "ok", str(sentencepiece.__version__))


def _safetensors(name: str) -> Check:
    import safetensors

    return Check(name, "ok", str(safetensors.__version__))


def _processors(name: str) -> Check:
    return Check(name, "ok", f"{usable_cores()} usable of {os.cpu_count()}")


def _memory(name: str) -> Check:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30 if hasattr(os, "sysconf") else 0.0
    if not total:
        return Check(name, "warn", "unknown on this system")
    if total < LEAST_MEMORY_GIB:
        return Check(name, "warn", f"{total:.1f} GiB", "lower train.global_batch_size and --workers")
    return Check(name, "ok", f"{total:.1f} GiB")


def _disk(name: str) -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < LEAST_DISK_GIB:
        return Check(name, "warn", f"{free:.1f} GiB free here", "a clip takes 0.5 to 30 MB; MIRASOL_DATA can name another disk")
    return Check(name, "ok", f"{free:.1f} GiB free in the current folder")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS: dict[str, Callable[[str], Check]] = {
    "python": _python,
    "torch": _torch,
    "device": _device,
    "decord": _decord,
    "pyav": _pyav,
    "torchaudio": _torchaudio,
    "sentencepiece": _sentencepiece,
    "safetensors": _safetensors,
    "processors": _processors,
    "memory": _memory,
    "disk": _disk,
}


def doctor(json: Json = False) -> None:
    """Check the environment.

    Prints one line per check. Exits with code 5 if any command would not work.

    \b
    Examples:
      mirasol doctor
      mirasol doctor --json
    """
    checks = []
    for check in examine():
        checks.append(check)
        if not json:
            console.print_result(check.line())
    if json:
        console.print_json(summary(checks))
    if not summary(checks)["ok"]:
        raise typer.Exit(EnvironmentProblem.exit_code)
