"""What a run holds in memory, measured or estimated, and what to say when it does not fit."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

import torch

from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import EnvironmentProblem
from mirasol_cli.model.mirasol import Mirasol

if TYPE_CHECKING:
    from mirasol_cli.training.setup import Run

_PEAK_TFLOPS = {
    r"H200": 989.0, r"H200 NVL": 836.0, r"H100( SXM5)? \d+GB HBM3": 989.0, r"H100 PCIe": 756.0, r"H100 NVL": 836.0,
    r"A100-(SXM4|PCIE)-\d+GB": 312.0, r"A100 \d+GB PCIe": 312.0, r"L40S": 362.0, r"L40": 181.0, r"L4": 121.0, r"A10": 125.0,
    r"RTX 4090": 165.0, r"RTX 3090": 71.0,
}  # fmt: skip
"""Dense bf16 figures of the maker's data sheets, in 1e12 FLOP/s, by the driver's whole name for the GPU, but for its first words.
Variants have figures of their own (NVL, laptop, a MIG slice), so that a name which only begins like one of these is not known."""


def peak_flops_per_s(device: torch.device, bf16: bool) -> float | None:
    """Peak of a known GPU in bf16; None elsewhere, so that no utilisation is claimed."""
    if device.type != "cuda" or not bf16:
        return None
    name = re.sub(r"^(NVIDIA )?(GeForce )?", "", torch.cuda.get_device_name(device))
    return next((figure * 1e12 for known, figure in _PEAK_TFLOPS.items() if re.fullmatch(known, name)), None)


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def fixed_bytes(parameters: int, trainable: int, *, ema: bool, bf16: bool) -> int:
    """Weights, gradients, two moments of AdamW and averages, all float32, and the weights' copies that bf16 computes with."""
    return 4 * (parameters + 3 * trainable + (trainable if ema else 0)) + (2 * parameters if bf16 else 0)


def clips_at_once(recipe: Recipe, share: int) -> int:
    """Clips of a micro batch of a process that takes `share` clips of every global batch."""
    return min(recipe.train.micro_batch_size or share, share)


def activation_bytes(recipe: Recipe, model: Mirasol, clips: int, questions: int, *, bf16: bool) -> int:
    """What the forward pass of one micro batch keeps for the backward pass, texts at their longest. An estimate.

    Per token and block about 10 vectors of the width and 2 of the feed-forward width are kept (attention matrices are not, in
    fused attention); with activation checkpointing one vector per block, and one block at a time in full. An encoder that is left
    out, or in which nothing is trained, keeps none.
    """
    config, geometry = recipe.model, recipe.clip
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad and ".output_proj." not in name}
    trunks = [
        (geometry.chunks * tokens, trunk.width, trunk.mlp_dim, trunk.layers)
        for modality, tokens, trunk in (
            ("video", geometry.video_tokens, config.video_trunk), ("audio", geometry.audio_tokens, config.audio_trunk)
        )
        if recipe.data.modalities[modality] and learning & {f"{modality}_tokens", f"{modality}_encoder", "encoder"}
    ]  # fmt: skip
    slots = config.latents_per_chunk(geometry)
    chunks = geometry.chunks
    all_tokens = recipe.data.video * geometry.video_tokens + recipe.data.audio * geometry.audio_tokens
    text = config.text
    turns = chunks * recipe.train.augment.max_chunk_repeats  # of a Token Turing Machine
    text_tokens = questions * (text.max_question + text.max_answer)
    parts = [  # (tokens of a clip, width, feed-forward width, blocks)
        *trunks,
        (
            chunks * all_tokens,
            config.combiner.width,
            config.combiner.mlp_dim,
            config.combiner.layers if config.combiner.kind != "ttm" else 0,
        ),
        (turns * slots, config.combiner.width, config.combiner.mlp_dim, config.combiner.layers if config.combiner.kind == "ttm" else 0),
        (chunks * slots, config.latent.width, config.latent.mlp_dim, config.latent.layers),
        (text_tokens, text.width, 2 * text.mlp_dim, text.layers + text.layers // text.cross_attention_every),
    ]
    number = 2 if bf16 else 4
    total = 0
    for tokens, width, mlp, blocks in parts:
        block = tokens * (10 * width + 2 * mlp) * number
        total += blocks * tokens * width * number + block if recipe.train.activation_checkpointing else blocks * block
    return clips * total


def memory_at_hand(device: torch.device) -> int | None:
    """Bytes that a timed step may count on: free on a GPU, the part of the machine's memory that is not in use elsewhere; None: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        return found["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return None


def gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def out_of_memory(error: BaseException, run: Run) -> EnvironmentProblem | None:
    """The error as one message, if it says that memory ran out; else None."""
    text = str(error)
    is_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text or "out of memory" in text
    if not is_memory:
        return None
    recipe = run.recipe
    parameters = sum(p.numel() for p in run.model.parameters())
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    clips = clips_at_once(recipe, len(run.world.local_slice(recipe.train.global_batch_size)))
    fixed = fixed_bytes(parameters, trainable, ema=run.ema is not None, bf16=run.bf16)
    activations = activation_bytes(recipe, run.model, clips, recipe.data.questions_per_clip, bf16=run.bf16)
    return EnvironmentProblem(
        f"out of memory in step {run.step + 1} on {run.world.device}, with {gib(peak_bytes(run.world.device))} used at most: "
        f"{parameters:,} parameters with gradients and optimizer {gib(fixed)}, "
        f"activations of {clips} clips x {recipe.clip.chunks} chunks x {recipe.clip.tokens_per_chunk} tokens "
        f"and up to {recipe.data.questions_per_clip} questions each about {gib(activations)}",
        f"lower train.micro_batch_size (now {clips}), set train.activation_checkpointing=true, or lower data.questions_per_clip; "
        "on several GPUs also train.parallel=fsdp",
    )
