"""Public model families in Hugging Face layout: what their config.json says, as keys of a recipe, and how their tensors are named.

A folder that `init.*` names gives its part's sizes, so that a recipe need not repeat them; keys that a recipe sets itself
must agree. Each family is one entry of a table. No weights are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mirasol_cli.config.hub import folder_of
from mirasol_cli.errors import MirasolError
from mirasol_cli.files import read_json

# Encoders -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorNames:
    """What a family calls the parts of a pre-norm ViT; those below `layer` are inside of each layer. None: it has none."""

    patch: str = "embeddings.patch_embeddings.projection"
    patch_bias: bool = True
    layer: str = "encoder.layer"
    norm1: str = "layernorm_before"
    query: str = "attention.attention.query"
    key: str = "attention.attention.key"
    value: str = "attention.attention.value"
    biases: tuple[str | None, str | None, str | None] | None = None  # of query, key, value; None: `<name>.bias`
    out: str = "attention.output.dense"
    attention_scale: str | None = None
    norm2: str = "layernorm_after"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    mlp_scale: str | None = None
    norm: str = "layernorm"
    input_norm: str | None = None


VIT_NAMES = TensorNames()
CLIP_NAMES = TensorNames(
    patch="embeddings.patch_embedding", layer="encoder.layers", norm1="layer_norm1", query="self_attn.q_proj", key="self_attn.k_proj",
    value="self_attn.v_proj", out="self_attn.out_proj", norm2="layer_norm2", up="mlp.fc1", down="mlp.fc2", norm="post_layernorm",
)  # fmt: skip

VIT_SIZES = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "mlp_dim": "intermediate_size",
    "activation": "hidden_act", "norm_eps": "layer_norm_eps",
}  # fmt: skip
VIT_DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}  # fmt: skip
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}

Pixels = tuple[tuple[float, float, float], tuple[float, float, float]]
HALF: Pixels = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET: Pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI: Pixels = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class EncoderFamily:
    """One family of encoders.

    Attributes:
        name: what it is called in messages.
        names: its tensors.
        sizes: key of a trunk -> key of config.json.
        defaults: what config.json may leave out, since it is the family's default.
        pixels: mean and deviation of its pixels, where no preprocessor_config.json says them; None: it hears.
        input_norm: it has a norm before its first layer.
        dropped: what it has and tubes or patches have no place for, for the run's notes.
    """

    name: str
    names: TensorNames = VIT_NAMES
    sizes: Mapping[str, str] = field(default_factory=lambda: VIT_SIZES)
    defaults: Mapping[str, Any] = field(default_factory=lambda: VIT_DEFAULTS)
    pixels: Pixels | None = HALF
    input_norm: bool = False
    dropped: str = "its class token and position table are not used"


_DINOV2 = EncoderFamily(
    "DINOv2",
    replace(VIT_NAMES, norm1="norm1", norm2="norm2", up="mlp.fc1", down="mlp.fc2", attention_scale="layer_scale1.lambda1",
            mlp_scale="layer_scale2.lambda1"),
    defaults=VIT_DEFAULTS | {"layer_norm_eps": 1e-6, "mlp_ratio": 4}, pixels=IMAGENET,
)  # fmt: skip
_CLIP = EncoderFamily(
    "CLIP", replace(CLIP_NAMES, patch_bias=False, input_norm="pre_layrnorm"),
    defaults=VIT_DEFAULTS | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}, pixels=OPENAI, input_norm=True,
)  # fmt: skip
_SIGLIP = EncoderFamily(
    "SigLIP", CLIP_NAMES, defaults=VIT_DEFAULTS | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    dropped="its position table and pooling head are not used",
)  # fmt: skip

VIDEO_FAMILIES: dict[str, EncoderFamily] = {
    "vit": EncoderFamily("ViT"),
    "deit": EncoderFamily("DeiT", pixels=IMAGENET),
    "clip_vision_model": _CLIP,
    "clip": _CLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip": _SIGLIP,  # SigLIP 2 of a fixed resolution, too
    "siglip2_vision_model": replace(_SIGLIP, name="SigLIP 2"),  # of any resolution
    "siglip2": replace(_SIGLIP, name="SigLIP 2"),
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(_DINOV2, dropped="its class token, registers and position table are not used"),
    "videomae": EncoderFamily(
        "VideoMAE", replace(VIT_NAMES, biases=("attention.attention.q_bias", None, "attention.attention.v_bias")), pixels=IMAGENET,
        dropped="its positions of whole clips are not used",
    ),
}  # fmt: skip
AUDIO_FAMILIES: dict[str, EncoderFamily] = {
    "audio-spectrogram-transformer": EncoderFamily(
        "AST", pixels=None, dropped="its class token, distillation token and position table are not used"
    ),
    "whisper": EncoderFamily(
        "Whisper",
        TensorNames(
            patch="encoder.conv1", layer="encoder.layers", norm1="self_attn_layer_norm", query="self_attn.q_proj", key="self_attn.k_proj",
            value="self_attn.v_proj", biases=("self_attn.q_proj.bias", None, "self_attn.v_proj.bias"), out="self_attn.out_proj",
            norm2="final_layer_norm", up="fc1", down="fc2", norm="encoder.layer_norm",
        ),
        {
            "width": "d_model", "layers": "encoder_layers", "heads": "encoder_attention_heads", "mlp_dim": "encoder_ffn_dim",
            "activation": "activation_function",
        },
        {
            "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "activation_function": "gelu",
            "layer_norm_eps": 1e-5,
        },
        pixels=None,
        dropped="its table of positions is cut to a chunk, and no convolution reaches over a chunk's border",
    ),
}  # fmt: skip
"""`model_type` of config.json -> family."""


def encoder_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the encoder: a model of pictures and texts has it in a section of its own."""
    inner = config.get("vision_config") if config.get("model_type") in ("clip", "siglip", "siglip2") else None
    return dict(inner) if isinstance(inner, dict) else dict(config)


def trunk_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `model.encoder` from the config.json of an encoder of a known family."""
    family = (VIDEO_FAMILIES | AUDIO_FAMILIES)[config["model_type"]]
    settings = {**family.defaults, **encoder_settings(config)}
    if "mlp_ratio" in settings and "intermediate_size" not in encoder_settings(config):  # DINOv2
        settings["intermediate_size"] = int(settings["hidden_size"] * settings["mlp_ratio"])
    sizes = {key: settings.get(theirs) for key, theirs in family.sizes.items()}
    sizes["activation"] = ACTIVATIONS.get(str(sizes["activation"]), sizes["activation"])
    return sizes | {"norm_eps": float(settings["layer_norm_eps"]), "input_norm": family.input_norm}


def audio_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `clip.audio` that an audio encoder's weights need."""
    if config["model_type"] == "whisper":
        return {
            "frontend": "whisper", "sample_rate": 16000, "n_mels": config.get("num_mel_bins", 80), "n_fft": 400, "win_length": 400,
            "hop_length": 160,
        }  # fmt: skip
    stride = config.get("frequency_stride", 10)
    return {  # 25 ms and 10 ms are fixed in AST's feature extractor
        "frontend": "ast", "sample_rate": 16000, "n_mels": config.get("num_mel_bins", 128), "win_length": 400, "hop_length": 160,
        "patch": config.get("patch_size", 16), "patch_stride": stride,
    }  # fmt: skip


# Text decoders ------------------------------------------------------------------------------------------------------

TEXT_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},  # Llama 1 to 3, TinyLlama, OpenLLaMA, SmolLM
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
"""`model_type` of config.json -> keys of `model.text` that the family implies and config.json does not say."""


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


# What a folder says -------------------------------------------------------------------------------------------------


def recipe_keys(folders: Mapping[str, str], *, share: bool | None) -> dict[str, dict[str, Any]]:
    """What the config.json files of the folders that `init` names say of a recipe: key of `init` -> keys of the recipe.

    A folder that is missing, unreadable or of no known family says nothing here: reading its weights tells what is wrong.

    Args:
        folders: key of `init` -> folder.
        share: what the recipe says of `model.encoder.share`, or None where it does not. Two encoders get a trunk each; a single one
            fills the shared trunk.
    """
    found: dict[str, dict[str, Any]] = {}
    apart = share is False or (share is None and {"video_encoder", "audio_encoder"} <= folders.keys())
    for key, folder in folders.items():
        config = _config(folder_of(folder))
        if key == "text_decoder" and config.get("model_type") in TEXT_FAMILIES:
            found[key] = {"model": {"text": text_sizes(config)}}
        families = {"video_encoder": VIDEO_FAMILIES, "audio_encoder": AUDIO_FAMILIES}.get(key, {})
        if config.get("model_type") in families:
            keys: dict[str, Any] = {"model": {key if apart else "encoder": trunk_sizes(config)}}
            if key == "audio_encoder":
                keys["clip"] = {"audio": audio_settings(config)}
            found[key] = keys
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / "config.json")
    except MirasolError:
        return {}
    return config if isinstance(config, dict) else {}
