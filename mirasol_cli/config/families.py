"""Public model families in Hugging Face layout: what their config.json says, as keys of a recipe's model section.

A folder that `init.*` names gives its part's sizes, so that a recipe need not repeat them; keys that a recipe sets itself
must agree. Each family is one entry of a table. No weights are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirasol_cli.errors import MirasolError
from mirasol_cli.files import read_json

TEXT_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},  # Llama 1 to 3, TinyLlama, OpenLLaMA, SmolLM
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
"""`model_type` of config.json -> keys of `model.text` that the family implies and config.json does not say."""


def sizes_of(folder: Path, section: str) -> dict[str, Any] | None:
    """Keys of `model.<section>` as the folder's config.json has them; None where it is missing, unreadable or of no known family
    (reading the weights says which)."""
    try:
        config = read_json(folder / "config.json")
    except MirasolError:
        return None
    if not isinstance(config, dict):
        return None
    return text_sizes(config) if config.get("model_type") in TEXT_FAMILIES else None


def text_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `model.text` from the config.json of a text model; its file may leave out what is its family's default."""
    heads, rotary = config.get("num_attention_heads"), _rotary(config)
    sizes = {
        "width": config.get("hidden_size"),
        "layers": config.get("num_hidden_layers"),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim"),
        "mlp_dim": config.get("intermediate_size"),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": float(rotary.get("rope_theta") or config.get("rope_theta") or 10000.0),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
        "qkv_bias": False,
        "qk_norm": False,
    } | TEXT_FAMILIES[config["model_type"]]
    if _rotary_type(rotary) == "llama3":
        sizes["rope_scaling"] = {
            "factor": float(rotary.get("factor", 1.0)),
            "low_freq_factor": float(rotary.get("low_freq_factor", 1.0)),
            "high_freq_factor": float(rotary.get("high_freq_factor", 4.0)),
            "original_max_positions": rotary.get("original_max_position_embeddings") or config.get("max_position_embeddings", 8192),
        }
    return sizes


def text_problems(config: Mapping[str, Any], longest: int) -> list[str]:
    """What a text model has that the decoder has no option for; `longest` is the most tokens of a text."""
    window = config.get("sliding_window") if config.get("use_sliding_window", config.get("model_type") == "mistral") else None
    found = {
        f"the activation {config.get('hidden_act', 'silu')} (silu is known)": config.get("hidden_act", "silu") != "silu",
        "a bias of the attention's output": bool(config.get("attention_bias", False)),
        "a bias of the MLP": bool(config.get("mlp_bias", False)),
        f"rotary positions of type {_rotary_type(_rotary(config))} (default and llama3 are known)": (
            _rotary_type(_rotary(config)) not in ("default", "llama3")
        ),
        f"a sliding window of {window} tokens, below the {longest} that a text may have here": (
            isinstance(window, int) and window < longest
        ),
    }
    return [what for what, is_there in found.items() if is_there]


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Newer files have rope_parameters, older ones rope_theta and rope_scaling."""
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(config.get(key), dict):
            return config[key]
    return {}


def _rotary_type(rotary: Mapping[str, Any]) -> str:
    return str(rotary.get("rope_type") or rotary.get("type") or "default")
