"""Low-rank adaptation (LoRA, arXiv 2106.09685): linear maps whose own weights stay, with a small product learned beside them.

The weights keep their names, so that what was trained without LoRA loads into a model with it; `lora_a` and `lora_b` stand beside
them. Merged, a map is a plain linear one again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirasol_cli.fields import FieldError
from mirasol_cli.model.config import LoraConfig


class LoraLinear(nn.Linear):
    """y = x W^T + bias + (alpha / rank) x A^T B^T. B starts at zero, so that the map starts as it was."""

    def __init__(self, base: nn.Linear, config: LoraConfig):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.scale = config.alpha / config.rank
        weight = base.weight.detach()
        self.lora_a = nn.Parameter(torch.randn_like(weight[:1].expand(config.rank, -1)) * base.in_features**-0.5)
        self.lora_b = nn.Parameter(weight.new_zeros(base.out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    def like(self, config: LoraConfig) -> bool:
        """Whether it is adapted by the same rank and scale."""
        return (len(self.lora_a), self.scale) == (config.rank, config.alpha / config.rank)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain map that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight + self.scale * (self.lora_b @ self.lora_a))
        plain.bias = self.bias
        return plain


def add_lora(model: nn.Module, config: LoraConfig) -> None:
    """Adapt every linear map in the layers of `config.parts`. Raises FieldError for a part that the model does not have."""
    for part in config.parts:
        prefixes = layers_of(model, part)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and name.startswith(prefixes):
                _put(model, name, LoraLinear(module, config))


def merge_lora(model: nn.Module) -> None:
    """Make every adapted map a plain one."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            _put(model, name, module.merged())


def merge_foreign(tensors: dict[str, Tensor], config: LoraConfig, model: nn.Module) -> int:
    """Merge those products of other weights (`tensors`, adapted as `config` says) that `model` has no place for; returns how many.

    It has a place where it adapts the same map by the same rank and scale.
    """
    scale = config.alpha / config.rank
    places = {name for name, module in model.named_modules() if isinstance(module, LoraLinear) and module.like(config)}
    foreign = [name for name in (n.removesuffix(".lora_a") for n in tensors if n.endswith(".lora_a")) if name not in places]
    for name in foreign:
        product = tensors.pop(f"{name}.lora_b").float() @ tensors.pop(f"{name}.lora_a").float()
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + scale * product
    return len(foreign)


def layers_of(model: nn.Module, part: str) -> tuple[str, ...]:
    """How the names of a part's layers begin; `encoder` stands for both where video and audio have one each."""
    if part == "text":
        return ("text.layers.",)
    names = [name for name in ("encoder", "video_encoder", "audio_encoder") if hasattr(model, name)]
    chosen = [name for name in names if part in (name, "encoder")]
    if not chosen:
        raise FieldError("lora.parts", f"model.lora.parts: {part!r} is not in this model, which has {', '.join([*names, 'text'])}")
    return tuple(f"{name}.blocks." for name in chosen)


def kept_by_lora(model: nn.Module, config: LoraConfig) -> set[str]:
    """Parameters that an adapted part keeps as they are: all of its own, but not what is new in this model: the maps to the Combiner's
    width, cross-attention and its keys and values."""
    kept = set()
    for part in config.parts:
        trunks = tuple(prefix.removesuffix("blocks.").removesuffix("layers.") for prefix in layers_of(model, part))
        new = (".output_proj.", "text.cross_layers.", "text.kv_proj.", ".lora_a", ".lora_b")
        kept |= {name for name, _ in model.named_parameters() if name.startswith(trunks) and not any(word in name for word in new)}
    return kept


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
