"""Parameters that are not trained, by name pattern."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from mirasol_cli.errors import RecipeError


@dataclass(frozen=True)
class FreezeReport:
    """Which parameters were frozen, and how much of the model that is."""

    names: tuple[str, ...]
    frozen: int  # numbers in them
    total: int  # numbers in the whole model

    def __str__(self) -> str:
        return f"frozen: {len(self.names)} tensors with {self.frozen:,} of {self.total:,} parameters"


def freeze(model: nn.Module, patterns: Iterable[str]) -> FreezeReport:
    """Switch off the gradient of every parameter that a pattern matches.

    A pattern is a shell pattern of the whole name (`encoder.blocks.*.mlp.*`), or the name of a part, which stands for
    all of it (`text`, `encoder.blocks.0`).

    Raises:
        RecipeError: a pattern matches nothing (all such patterns, each with near names), or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        matched = {name for name in parameters if fnmatchcase(name, pattern) or name.startswith(pattern + ".")}
        if not matched:
            problems.append(f"freeze: {pattern!r} matches no parameter{_near(pattern, parameters)}")
        chosen |= matched
    if problems:
        raise RecipeError(problems, "`--dry-run` prints the parts of the model")
    if chosen and not any(parameter.requires_grad for name, parameter in parameters.items() if name not in chosen):
        raise RecipeError(["freeze: the patterns match all parameters; nothing is left to train"], "freeze less")
    for name in chosen:
        parameters[name].requires_grad_(False)
    frozen = sum(parameters[name].numel() for name in chosen)
    return FreezeReport(tuple(sorted(chosen)), frozen, sum(parameter.numel() for parameter in parameters.values()))


def _near(pattern: str, names: Iterable[str]) -> str:
    """Names and parts that a slip of the pen could have meant."""
    known = {".".join(name.split(".")[: depth + 1]) for name in names for depth in range(name.count(".") + 1)}
    bare = ".".join(part for part in pattern.split(".") if part.strip("*?"))
    close = get_close_matches(bare, sorted(known, key=lambda name: (len(name), name)), n=3, cutoff=0.5)
    return f"; near it: {', '.join(close)}" if close else ""
