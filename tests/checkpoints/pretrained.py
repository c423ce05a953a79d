"""Small models of transformers with random weights, saved as a user would find them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

PIECES = 50
LLAMA3_ROTARY = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
TEXT = {
    "llama-2": ("Llama", {}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3_ROTARY, "max_position_embeddings": 512}),
    "mistral": ("Mistral", {"sliding_window": 4096, "head_dim": 8}),
    "smollm": ("Llama", {"tie_word_embeddings": True, "rope_theta": 100000.0, "num_attention_heads": 4}),
    "qwen-2": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6}),
    "qwen-3": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 16, "rms_norm_eps": 1e-6}),
}
"""Family -> transformers' class, and how its config differs from `TEXT_SIZES`."""
TEXT_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "vocab_size": PIECES, "rms_norm_eps": 1e-5,
}  # fmt: skip


@contextmanager
def imported_transformers() -> Iterator[Any]:
    """transformers, which imports torchaudio wherever it is installed, even where it cannot be imported."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            importlib.import_module("torchaudio")
        except (ImportError, OSError):
            patch.setitem(sys.modules, "torchaudio", None)
        transformers = pytest.importorskip("transformers")
        transformers.utils.logging.disable_progress_bar()
        yield transformers


def loud(model: nn.Module, seed: int = 0) -> Any:
    """Random weights that make signals of unit size, as trained ones do; transformers' own start near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(around + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_text(hf: Any, folder: Path, family: str, *, shards: str = "1GB", bf16: bool = False, **more: Any) -> Any:
    """The model of a family, as saved; in bf16 its weights are rounded, and it computes in float32."""
    kind, options = TEXT[family]
    model = loud(getattr(hf, f"{kind}ForCausalLM")(getattr(hf, f"{kind}Config")(**TEXT_SIZES | options | more)))
    if bf16:
        model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=shards)
    # Read again, since `to` rounded the frequencies of the rotary positions, too.
    return type(model).from_pretrained(folder, dtype=torch.float32).eval() if bf16 else model


TRUNK = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
WHISPER = {
    "d_model": 24, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_layers": 1,
    "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "num_mel_bins": 32, "max_source_positions": 24,
}  # fmt: skip
_DINO = {key: value for key, value in TRUNK.items() if key != "intermediate_size"} | {"image_size": 56, "patch_size": 14, "mlp_ratio": 2}
VIDEO: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", TRUNK | {"image_size": 64, "patch_size": 16}),
    "vit without biases": ("ViT", TRUNK | {"image_size": 64, "patch_size": 32, "qkv_bias": False}),
    "deit": ("DeiT", TRUNK | {"image_size": 64, "patch_size": 16}),
    "clip": ("CLIPVision", TRUNK | {"image_size": 64, "patch_size": 16}),
    "siglip": ("SiglipVision", TRUNK | {"image_size": 64, "patch_size": 16}),
    "siglip 2": ("Siglip2Vision", TRUNK | {"num_patches": 16, "patch_size": 16}),
    "dinov2": ("Dinov2", _DINO),
    "dinov2 with registers": ("Dinov2WithRegisters", _DINO),
    "videomae": ("VideoMAE", TRUNK | {"image_size": 64, "num_frames": 2, "use_mean_pooling": False}),
}
"""Family -> transformers' class and config."""
AUDIO: dict[str, tuple[str, dict[str, Any]]] = {
    "ast": ("AST", TRUNK | {"max_length": 48, "num_mel_bins": 32}),
    "whisper": ("Whisper", WHISPER),
}


def save_encoder(hf: Any, folder: Path, family: str, **more: Any) -> Any:
    """The encoder of a family, as saved."""
    kind, options = (VIDEO | AUDIO)[family]
    model = loud(getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**options | more)))
    if family == "whisper":
        positions = model.encoder.embed_positions.weight
        with torch.no_grad():  # fixed ones, which no training changes
            positions.copy_(whisper_positions(*positions.shape))
    model.save_pretrained(folder)
    return model


def whisper_positions(count: int, width: int) -> torch.Tensor:
    """As OpenAI's code makes them."""
    rate = np.exp(-np.log(10000) / (width // 2 - 1) * np.arange(width // 2))
    angle = np.arange(count)[:, None] * rate[None]
    return torch.from_numpy(np.concatenate([np.sin(angle), np.cos(angle)], axis=1)).float()


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "hf:google/siglip-base-patch16-224": ("SiglipVision", {}),  # the defaults of its class are its sizes
    "hf:MIT/ast-finetuned-audioset-10-10-0.4593": ("AST", {}),
    "hf:openai/whisper-base": (
        "Whisper",
        {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_layers": 6,
         "decoder_attention_heads": 8, "decoder_ffn_dim": 2048},
    ),
    "hf:Qwen/Qwen2.5-0.5B": (
        "Qwen2",
        {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
         "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True, "max_window_layers": 24,
         "max_position_embeddings": 32768},
    ),
}  # fmt: skip
"""What the shipped recipes start from -> transformers' class and the sizes in its config.json."""


def published_config(hf: Any, name: str) -> Any:
    kind, options = PUBLISHED[name]
    return getattr(hf, f"{kind}Config")(**options)
