"""Which device a run computes on, and in which precision."""

from __future__ import annotations

import torch

from mirasol_cli.errors import EnvironmentProblem, UsageError


def resolve_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one. Raises EnvironmentProblem for a device this machine lacks."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentProblem("--device cuda: torch finds no CUDA GPU", "use --device cpu, or install a CUDA build of torch")
    if name == "mps" and not torch.backends.mps.is_available():
        raise EnvironmentProblem("--device mps: torch finds no Apple GPU", "use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}", "use auto, cpu, cuda or mps") from None


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """What `train.precision` ("auto", "float32" or "bf16") means on `device`: auto is bf16 on GPUs that compute in it, float32 elsewhere
    (V100, T4 and older merely emulate it, slowly)."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
