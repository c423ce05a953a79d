"""One table of parameters and FLOPs by part: what `--dry-run` prints and what the Combiners are compared by.

FLOPs are those of one forward pass for one clip: matrix products only, a multiplication and its addition count as two.
A training step takes about three times as many. Attention over chunks counts the chunks that are seen; padding and
dropped sound or picture count in full, as they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.model.config import CombinerConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.model.parameter_names import part_named
from mirasol_cli.model.reconstruction import THUMBNAIL_NUMBERS, THUMBNAIL_QUERIES
from mirasol_cli.model.token_turing import BOTTLENECK, ERASE_TOKENS

PARTS = ("video_tokens", "audio_tokens", "encoder", "combiner", "latent", "reconstruction", "contrastive", "text")


@dataclass(frozen=True)
class PartCost:
    part: str
    parameters: int
    flops: int  # forward, one clip


def model_table(
    config: ModelConfig, geometry: ClipGeometry, vocab_size: int, *, questions: int = 1, text_tokens: int = 64, target_tokens: int = 8
) -> list[PartCost]:
    """One row per part. Text: `questions` rows of `text_tokens` tokens, `target_tokens` of which carry loss."""
    parameters = count_parameters(config, geometry, vocab_size)
    text = text_flops(config, geometry, vocab_size, questions, text_tokens, target_tokens)
    flops = {**media_flops(config, geometry), "text": text}
    if "contrastive" in config.heads:
        shared = min(config.latent.width, config.text.width, 512)
        flops["contrastive"] = 2 * shared * (config.latent.width + config.text.width)
        flops["text"] += decoder_flops(config.text, questions, text_tokens, memory=0)
    return [PartCost(part, parameters[part], flops.get(part, 0)) for part in PARTS if parameters[part]]


def count_parameters(config: ModelConfig, geometry: ClipGeometry, vocab_size: int) -> dict[str, int]:
    """Parameters by part, counted on a model without memory (meta device); two encoders count as one part."""
    with torch.device("meta"):
        model = Mirasol(config, geometry, vocab_size)
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_named(name)] += parameter.numel()
    return counts


def media_flops(config: ModelConfig, geometry: ClipGeometry) -> dict[str, int]:
    """FLOPs by part, without text."""
    chunks, width, encoder = geometry.chunks, config.encoder.width, config.encoder
    tubes = sum(2 * count * tube.kernel_numbers * width for count, tube in zip(geometry.tube_tokens, geometry.tubes, strict=True))
    layer = sum(block_flops(n, n, width, encoder.mlp) for n in (geometry.video_tokens, geometry.audio_tokens))
    slots = config.latents_per_chunk(geometry)
    return {
        "video_tokens": chunks * tubes,
        "audio_tokens": chunks * 2 * geometry.audio_tokens * geometry.audio.patch**2 * width,
        "encoder": chunks * encoder.layers * layer,
        "combiner": combiner_flops(config.combiner, width, geometry.tokens_per_chunk, chunks),
        "latent": latent_flops(config.latent, config.combiner.width, slots, chunks, predict="latent" in config.heads),
        "reconstruction": reconstruction_flops(config, geometry, slots),
    }


def block_flops(queries: int, keys: int, width: int, mlp: int, projected: int | None = None) -> int:
    """One block; `projected` tokens become keys and values (all keys, unless some are kept from before)."""
    projections = 4 * queries * width**2 + 4 * (keys if projected is None else projected) * width**2
    return projections + 4 * queries * keys * width + 4 * queries * width * mlp


def resize_flops(tokens: int, inputs: int, outputs: int) -> int:
    return 0 if inputs == outputs else 2 * tokens * inputs * outputs


def combiner_flops(config: CombinerConfig, input_width: int, tokens: int, chunks: int) -> int:
    """All chunks of one clip. N = `tokens`, M = config.outputs."""
    width, outputs, layers = config.width, config.outputs, config.layers
    enter = chunks * resize_flops(tokens, input_width, width)
    if config.kind == "ttm":
        return enter + chunks * turing_flops(config, tokens)
    if config.kind == "transformer" and config.context == "history":
        total = 0
        for seen in range(1, chunks + 1):
            total += (layers - 1) * block_flops(tokens, seen * tokens, width, config.mlp, projected=tokens)
            total += block_flops(outputs, seen * tokens, width, config.mlp, projected=tokens)
        return enter + total
    if config.kind == "transformer":
        chunk = (layers - 1) * block_flops(tokens, tokens, width, config.mlp) + block_flops(outputs, tokens, width, config.mlp)
        return enter + chunks * chunk
    if config.kind == "cls":
        both = tokens + outputs
        chunk = (layers - 1) * block_flops(both, both, width, config.mlp) + block_flops(outputs, both, width, config.mlp)
        return enter + chunks * chunk
    if config.kind == "perceiver":
        return enter + chunks * layers * block_flops(outputs, tokens + outputs, width, config.mlp)
    return enter + (chunks * 2 * outputs * tokens * width if config.kind == "mean" else 0)


def turing_flops(config: CombinerConfig, tokens: int) -> int:
    """One chunk of a Token Turing Machine: the same for every chunk."""
    memory, outputs, width = config.memory, config.outputs, config.width
    process = config.layers * block_flops(outputs, outputs, width, config.mlp)
    read = _summary_flops(config.read, memory + tokens, outputs, width)
    if config.write == "add-erase":
        token_mlp = 2 * width * BOTTLENECK * (outputs + ERASE_TOKENS)
        channel_mlp = 4 * ERASE_TOKENS * width * BOTTLENECK
        return read + process + 2 * memory * BOTTLENECK * (width + ERASE_TOKENS) + 2 * (token_mlp + channel_mlp)
    gate = 4 * memory * width**2 if config.write == "gated" else 0
    return read + process + gate + _summary_flops(config.write, memory + tokens + outputs, memory, width)


def _summary_flops(kind: str, tokens: int, outputs: int, width: int) -> int:
    if kind == "query":  # the learned queries are projected once, the output layer runs on the pooled tokens
        return 4 * tokens * width**2 + 4 * outputs * width**2 + 4 * outputs * tokens * width
    return 2 * tokens * BOTTLENECK * (width + outputs) + 2 * outputs * tokens * width


def latent_flops(config: LatentConfig, input_width: int, slots: int, chunks: int, *, predict: bool) -> int:
    width = config.width
    total = chunks * resize_flops(slots, input_width, width)
    for seen in range(1, chunks + 1):
        keys = slots * (min(seen, config.window) if config.window else seen)
        total += config.layers * block_flops(slots, keys, width, config.mlp, projected=slots)
    head = 2 * slots * (width * 2 * width + 2 * width * input_width)
    return total + (chunks - 1) * head * predict


def reconstruction_flops(config: ModelConfig, geometry: ClipGeometry, slots: int) -> int:
    targets = {
        "video": (THUMBNAIL_QUERIES, THUMBNAIL_NUMBERS),
        "audio": (geometry.audio_tokens, geometry.audio.patch**2),
    }
    return sum(
        (geometry.chunks - 1) * _predictor_flops(config.reconstruction, config.latent.width, slots, queries, numbers)
        for head, (queries, numbers) in targets.items()
        if head in config.heads
    )


def _predictor_flops(config: ReconstructionConfig, input_width: int, slots: int, queries: int, numbers: int) -> int:
    blocks = config.layers * block_flops(queries, slots + queries, config.width, config.mlp)
    return resize_flops(slots, input_width, config.width) + blocks + 2 * queries * config.width * numbers


def text_flops(config: ModelConfig, geometry: ClipGeometry, vocab_size: int, questions: int, tokens: int, targets: int) -> int:
    """Keys and values of the latents once per clip, the decoder per question, the output layer per target token."""
    text = config.text
    carried = config.combiner.memory if config.combiner.kind == "ttm" else 0
    memory = geometry.chunks * config.latents_per_chunk(geometry) + carried
    narrow = text.kv_heads * (text.width // text.heads)
    once = (text.layers // text.cross_every) * 4 * memory * config.latent.width * narrow
    once += resize_flops(carried, config.combiner.width, config.latent.width)
    return once + decoder_flops(text, questions, tokens, memory) + 2 * questions * targets * text.width * vocab_size


def decoder_flops(text: TextConfig, questions: int, tokens: int, memory: int) -> int:
    """The decoder's layers, output layer left out. Self-attention counts all L x L products, though half are masked."""
    narrow = text.kv_heads * (text.width // text.heads)
    attention = 4 * tokens * text.width * (text.width + narrow) + 4 * tokens**2 * text.width
    cross = 4 * tokens * text.width**2 + 4 * tokens * memory * text.width
    layers = text.layers * (attention + 6 * tokens * text.width * text.mlp)
    return questions * (layers + (text.layers // text.cross_every) * cross * (memory > 0))
