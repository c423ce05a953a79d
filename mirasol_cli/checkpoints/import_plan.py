"""What all imports of public weights share: a plan that is carried out only when all of it fits, its report, and the checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mirasol_cli.checkpoints.parameter_names import first_names
from mirasol_cli.checkpoints.safetensors_folder import SafetensorsFolder
from mirasol_cli.errors import CheckpointError
from mirasol_cli.model.mirasol import Mirasol


@dataclass(frozen=True)
class LoadReport:
    """What came from where. All but `unexpected` are names of our parameters."""

    source: str
    loaded: tuple[str, ...]  # copied as they were
    resized: tuple[str, ...]  # made to fit, each with how
    missing: tuple[str, ...]  # of the same parts, but not in the source: they keep their initial values
    unexpected: tuple[str, ...]  # tensors of the source that have no place here
    note: str = ""  # what is otherwise here than in the source

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors from '{self.source}'"]
        parts += [f"{len(self.resized)} resized: {first_names(self.resized)}"] if self.resized else []
        parts += [f"{len(self.missing)} new here: {first_names(self.missing)}"] if self.missing else []
        parts += [f"{len(self.unexpected)} not used: {first_names(self.unexpected)}"] if self.unexpected else []
        return "; ".join([*parts, self.note] if self.note else parts)


class Plan:
    """Gathers what goes where; nothing is copied before all of it is known to fit."""

    def __init__(self, model: Mirasol, source: SafetensorsFolder, parts: tuple[str, ...], note: str = ""):
        self.model, self.source, self.note = model, source, note
        parameters = dict(model.named_parameters())
        self.ours = {name: parameters[name] for name in parameters if name.startswith(parts) and ".lora_" not in name}
        self.values: dict[str, Tensor] = {}
        self.changes: dict[str, str] = {}
        self.taken: set[str] = set()

    def take(self, name: str) -> Tensor:
        self.taken.add(name)
        return self.source.tensor(name)

    def put(self, name: str, value: Tensor, change: str = "") -> None:
        if self.ours[name].shape != value.shape:
            raise CheckpointError(
                f"'{self.source.folder}': '{name}' is {list(self.ours[name].shape)} here and {list(value.shape)} there",
                "set the model section of the recipe to the source's sizes",
            )
        self.values[name] = value
        if change:
            self.changes[name] = change

    def carry_out(self) -> LoadReport:
        with torch.no_grad():
            for name, value in self.values.items():
                self.ours[name].copy_(value)
        return LoadReport(
            str(self.source.folder),
            tuple(sorted(self.values.keys() - self.changes.keys())),
            tuple(f"{name} ({self.changes[name]})" for name in sorted(self.changes)),
            tuple(sorted(self.ours.keys() - self.values.keys())),
            tuple(sorted(self.source.names - self.taken)),
            self.note,
        )


def prefix_of(source: SafetensorsFolder, ending: str) -> str:
    """What stands before the tensor names: nothing, or the model's name where a head was saved with it."""
    found = sorted((name.removesuffix(ending) for name in source.names if name == ending or name.endswith("." + ending)), key=len)
    if not found:
        raise CheckpointError(
            f"'{source.folder}' has no tensor '{ending}': nothing of it could be loaded", "give the folder of the whole model"
        )
    return found[0]


def check_type(source: SafetensorsFolder, wanted: str, types: Iterable[str]) -> None:
    if source.model_type not in types:
        raise CheckpointError(
            f"'{source.folder}' is a model of type '{source.model_type}', but {wanted} (type {' or '.join(types)}) is needed here",
            "give the folder of such a model, or remove the key",
        )


def check_equal(source: SafetensorsFolder, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise with every pair (ours, theirs) that differs."""
    different = [f"{key} is {ours}, the source has {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]
    if different:
        raise CheckpointError(
            f"'{source.folder}' does not match the recipe: {'; '.join(different)}", "set these keys to the source's values"
        )
