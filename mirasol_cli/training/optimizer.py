"""AdamW with a rate per part of the model, the learning-rate schedule, gradient norm, and averaged weights (EMA)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mirasol_cli.checkpoints.load import copy_stored
from mirasol_cli.checkpoints.tensor_files import shapes_of
from mirasol_cli.config.schema import RatesRecipe, TrainRecipe
from mirasol_cli.errors import CheckpointError
from mirasol_cli.runtime.distributed import is_sharded_tensor

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")
_ENCODER_PARTS = ("video_tokens", "audio_tokens", "encoder", "video_encoder", "audio_encoder")


def part_of(name: str) -> str:
    """The key of `train.lr_mult` that a parameter falls under, from the first word of its name."""
    first = name.split(".", 1)[0]
    if first in _ENCODER_PARTS:
        return "encoder"
    if first in ("combiner", "text"):
        return first
    return "latent"


def decays(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay pulls on: matrices of linear maps.

    Norms, biases, gates, and every table of learned vectors (vocabulary, positions, mask tokens, initial memory) are left alone.
    """
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d))}


def encoder_depths(names: Iterable[str]) -> dict[str, int]:
    """Layers of each encoder trunk, by the first word of its name."""
    depths: dict[str, int] = {}
    for name in names:
        first, layer = name.split(".", 1)[0], _LAYER.search(name)
        if first in _ENCODER_PARTS and layer:
            depths[first] = max(depths.get(first, 0), int(layer.group(1)) + 1)
    return depths


def rate_factor(name: str, rates: RatesRecipe, layerwise_lr_decay: float, depths: Mapping[str, int]) -> float:
    """Factor on the learning rate of one parameter: its part's rate, times `layerwise_lr_decay` per encoder layer above it."""
    factor: float = getattr(rates, part_of(name))
    if part_of(name) != "encoder":
        return factor
    first, layer = name.split(".", 1)[0], _LAYER.search(name)
    if layer and first in depths:
        return factor * layerwise_lr_decay ** (depths[first] - 1 - int(layer.group(1)))
    if first in depths:  # the trunk's own norms come after its last layer
        return factor
    return factor * layerwise_lr_decay ** max(depths.values(), default=0)  # tokenizers lie below the first layer


def parameter_groups(model: nn.Module, train: TrainRecipe) -> list[dict[str, Any]]:
    """Trainable parameters by (rate factor, decay), each group with the `names` of its parameters."""
    decayed, depths = decays(model), encoder_depths(name for name, _ in model.named_parameters())
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor, decay = rate_factor(name, train.lr_mult, train.layerwise_lr_decay, depths), name in decayed
            group = groups.setdefault(
                (factor, decay), {"params": [], "names": [], "factor": factor, "weight_decay": train.weight_decay if decay else 0.0}
            )
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


def build_optimizer(model: nn.Module, train: TrainRecipe) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; made after sharding, since it holds on to the parameter objects."""
    # One pass over memory per tensor: on the CPU a quarter of the default's time, a tenth of a step of a small model.
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameter_groups(model, train), lr=train.lr, betas=train.betas, fused=fused or None)


def rate_at(step: int, train: TrainRecipe) -> float:
    """Share of the peak rate at optimizer step `step` (from 0): linear warm-up, then a cosine to `min_lr_ratio` just after the last."""
    if step < train.warmup_steps:
        return (step + 1) / (train.warmup_steps + 1)
    way = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return train.min_lr_ratio + (1 - train.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * way))


def set_rate(optimizer: torch.optim.Optimizer, step: int, train: TrainRecipe) -> float:
    """Give every group its rate for `step`; returns the rate of a part with factor 1."""
    rate = train.lr * rate_at(step, train)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale all gradients down to a global norm of at most `largest` (0: leave them); returns the norm before.

    The norm is over all shards, and the same on every process. A norm that is not finite changes no gradient.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if is_sharded_tensor(norm):
        norm = norm.full_tensor()
    value = float(norm)
    if largest > 0 and math.isfinite(value):
        torch.nn.utils.clip_grads_with_norm_(with_gradient, largest, norm)
    return value


class AveragedWeights:
    """Exponential moving average of the trainable weights, in float32 and in the sharding of the model."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: p.detach().float().clone() for name, p in model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After optimizer step `step` (from 0). OURS: early on the window grows with the run, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter.float(), 1 - decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raises CheckpointError if `source` does not hold exactly these parameters."""
        if tensors.keys() != self.values.keys():
            different = ", ".join(sorted(tensors.keys() ^ self.values.keys())[:5])
            raise CheckpointError(f"the averaged weights of '{source}' do not belong to this model: {different}", "use another checkpoint")
        for name, value in self.values.items():
            copy_stored(value, tensors, name)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the averages; a second call restores both."""
        for name, parameter in model.named_parameters():
            if name in self.values:
                raw = parameter.detach().clone()
                parameter.copy_(self.values[name])
                self.values[name].copy_(raw)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by name, `<state>/<parameter>`, in the sharding of this run."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: str) -> None:
    """The reverse of `optimizer_tensors`, into the sharding of this run.

    Raises:
        CheckpointError: a tensor of `source` has another shape than its parameter, or belongs to none.
    """
    shapes = shapes_of(tensors)
    left = set(shapes)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state: dict[str, Tensor] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                stored = f"{key}/{name}"
                if stored not in shapes:
                    continue
                left.discard(stored)
                if key == "step":  # AdamW keeps its count on the CPU unless it is fused
                    state[key] = tensors[stored].to(parameter.device if group.get("fused") else "cpu", copy=True)
                elif shapes[stored] != tuple(parameter.shape):
                    raise CheckpointError(f"'{source}': {stored} has shape {list(shapes[stored])}, the model {list(parameter.shape)}")
                else:
                    state[key] = torch.empty_like(parameter.detach())
                    copy_stored(state[key], tensors, stored)
            if state:
                optimizer.state[parameter] = state
    if left:
        raise CheckpointError(f"'{source}' holds state of parameters that are not trained here: {', '.join(sorted(left)[:5])}")
