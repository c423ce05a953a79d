"""Losses as (sum, count), so that means can be taken over a global batch, and diagnostics that tell learning from collapse.

A cosine between prediction and next latent collapses: on noise it falls to zero while all latents become one vector,
even with a detached target. Here the target is the Combiner output of the next chunk, detached; the error is counted
in units of the target's own variance, and two terms after VICReg (arXiv 2105.04906) keep that variance: every channel
spreads over clips and chunks, and channels do not repeat one another. The form and its factors are OURS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mirasol_cli.errors import UsageError

SPREAD = 1.0  # weight of the variance term against the prediction error
DECORRELATION = 0.04  # weight of the covariance term; VICReg has the same 25 : 1
LEAST_VARIANCE = 0.1  # the prediction error is not magnified beyond this
DIAGNOSED_ROWS = 4096  # latents looked at for the effective rank


@dataclass(frozen=True)
class Prediction:
    """Detached tensors that the diagnostics are computed from."""

    predicted_BTMD: Tensor  # for chunks 1 .. T - 1
    target_BTMD: Tensor
    pairs_BT: Tensor  # bool


@dataclass(frozen=True)
class LossPart:
    """A loss of one batch before the division: mean = sum / count."""

    sum: Tensor
    count: Tensor
    prediction: Prediction | None = None  # of the latent loss, for diagnostics


@dataclass
class Losses:
    """Named losses of one batch; `diagnostics` are computed only when asked for."""

    parts: dict[str, LossPart] = field(default_factory=dict)
    latents_BTMD: Tensor | None = None
    present_BT: Tensor | None = None
    tokens_BTND: Tensor | None = None  # the encoders' outputs, with their graph, until the backward pass

    def gradient_shares(self, weights: Mapping[str, float], counts: Mapping[str, Tensor | float] | None = None) -> dict[str, float]:
        """Each weighted loss's share of the gradient at the encoders' outputs: its norm over the sum of all norms.

        One more backward pass per loss, down to the encoders; before the one that trains. All processes must call it together.
        """
        assert self.tokens_BTND is not None
        norms = {}
        for name in self.parts:
            (gradient,) = torch.autograd.grad(self.weighted_mean(name, weights, counts), self.tokens_BTND, retain_graph=True)
            norms[name] = float(gradient.float().norm())
        whole = sum(norms.values()) or 1.0
        return {name: norm / whole for name, norm in norms.items()}

    def weighted_mean(self, name: str, weights: Mapping[str, float], counts: Mapping[str, Tensor | float] | None = None) -> Tensor:
        """A loss's term of the total."""
        part = self.parts[name]
        count = torch.as_tensor(part.count if counts is None else counts[name], dtype=part.sum.dtype, device=part.sum.device)
        return weights[name] * part.sum / count.clamp(min=1)

    def total(self, weights: Mapping[str, float], counts: Mapping[str, Tensor | float] | None = None) -> Tensor:
        """Weighted sum of the means. `counts` replaces the local counts by those of the global batch (per process)."""
        if not self.parts:
            raise UsageError("this batch has no loss: no text, and every weight of an audio-video loss is zero")
        return torch.stack([self.weighted_mean(name, weights, counts) for name in self.parts]).sum()

    @cached_property
    def diagnostics(self) -> dict[str, float]:
        """`rank`: effective rank of the centred latents. `cosine`: mean cosine between latents of different chunks.
        `r2`: share of the next Combiner output's variance that is predicted (0: no better than the slot's mean)."""
        found: dict[str, float] = {}
        if self.latents_BTMD is not None and self.present_BT is not None:
            found["rank"] = float(effective_rank(self.latents_BTMD, self.present_BT))
            found["cosine"] = float(mean_cosine(self.latents_BTMD, self.present_BT))
        for part in self.parts.values():
            if part.prediction is not None and int(part.prediction.pairs_BT.sum()) > 1:
                found["r2"] = float(r2(part.prediction))
        return found


def masked_error(predicted: Tensor, target: Tensor, valid: Tensor) -> LossPart:
    """Sum over valid items of the mean squared error of an item; `valid` has the leading axes of both."""
    error = (predicted.float() - target.float()).square().flatten(valid.dim()).mean(-1)
    return LossPart(torch.where(valid, error, 0.0).sum(), valid.sum())


def latent_loss(predicted_BTMD: Tensor, combined_BTMD: Tensor, latents_BTMD: Tensor, present_BT: Tensor) -> LossPart:
    """Next-chunk prediction in units of the target's variance, and the spread of Combiner outputs and latents that
    forbids both to become constant.

    The statistics are those of all clips that are in memory at once, over all processes. Counts pairs of consecutive chunks.
    """
    target, pairs_BT = combined_BTMD[:, 1:].detach(), present_BT[:, :-1] & present_BT[:, 1:]
    error = masked_error(predicted_BTMD, target, pairs_BT)
    variance = slot_variance(combined_BTMD.detach(), present_BT).mean().clamp(min=LEAST_VARIANCE)
    spread = (spread_loss(combined_BTMD, present_BT) + spread_loss(latents_BTMD, present_BT)) / 2
    prediction = Prediction(predicted_BTMD.detach(), target, pairs_BT)
    return LossPart(error.sum / variance + error.count * spread, error.count, prediction)


def spread_loss(x_BTMD: Tensor, present_BT: Tensor) -> Tensor:
    """Variance hinge and covariance penalty over clips and chunks, each slot about its own mean."""
    rows = degrees_of_freedom(present_BT) * x_BTMD.shape[2]
    with torch.autocast(x_BTMD.device.type, enabled=False):  # a covariance in bf16 would be mostly rounding
        flat = centre_slots(x_BTMD.float(), present_BT).flatten(0, 2)
        covariance = over_processes(flat.T @ flat) / rows
    deviation = (covariance.diagonal() + 1e-4).sqrt()
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return SPREAD * F.relu(1 - deviation).mean() + DECORRELATION * off_diagonal / x_BTMD.shape[-1]


def centre_slots(x_BTMD: Tensor, present_BT: Tensor) -> Tensor:
    """x minus its slot's mean over real chunks; zero where a chunk is not real."""
    weight = present_BT[..., None, None].to(x_BTMD.dtype)
    mean = over_processes((x_BTMD * weight).sum((0, 1))) / over_processes(weight.sum()).clamp(min=1)
    return torch.where(present_BT[..., None, None], x_BTMD - mean, 0.0)


def slot_variance(x_BTMD: Tensor, present_BT: Tensor) -> Tensor:
    """Unbiased variance [M, D] over real chunks."""
    return over_processes(centre_slots(x_BTMD.float(), present_BT).square().sum((0, 1))) / degrees_of_freedom(present_BT)


def degrees_of_freedom(present_BT: Tensor) -> Tensor:
    return (over_processes(present_BT.sum()) - 1).clamp(min=1)


@torch.no_grad()
def effective_rank(x_BTMD: Tensor, present_BT: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of the centred rows (Roy & Vetterli 2007); 1 .. D."""
    rows = centre_slots(x_BTMD.float(), present_BT)[present_BT].flatten(0, 1)
    rows = rows[:: max(1, rows.shape[0] // DIAGNOSED_ROWS)]
    rows = (rows.cpu() if rows.device.type == "mps" else rows).double()  # squares of float32 would hide a collapse in their rounding
    product = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(product).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def mean_cosine(x_BTMD: Tensor, present_BT: Tensor) -> Tensor:
    """Mean cosine between latents of the same slot in different chunks of all clips; near 1 after a collapse."""
    unit = torch.where(present_BT[..., None, None], F.normalize(x_BTMD.float(), dim=-1), 0.0)
    rows = present_BT.sum()
    pairs = unit.sum((0, 1)).square().sum(-1).mean() - rows
    return pairs / (rows * (rows - 1)).clamp(min=1)


@torch.no_grad()
def r2(prediction: Prediction) -> Tensor:
    """1 - error / variance of the target about its slot's mean, over valid pairs. The slot means are taken from the same
    pairs; their variance is the unbiased one, so that the true mean scores 0, not less."""
    predicted, target, pairs = prediction.predicted_BTMD, prediction.target_BTMD, prediction.pairs_BT
    error = masked_error(predicted, target, pairs)
    return 1 - (error.sum / error.count) / slot_variance(target, pairs).mean()


def over_processes(x: Tensor) -> Tensor:
    """Sum over the processes of a training step, through which gradients flow back to all of them. Without gradients
    (evaluation, diagnostics) a process computes for itself, since it may be the only one to do so."""
    if not _distributed() or not torch.is_grad_enabled():
        return x
    return cast(Tensor, _SumOverProcesses.apply(x))


class _SumOverProcesses(torch.autograd.Function):
    """Every process's result depends on every process's input, so the gradient of an input is the sum over all results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
