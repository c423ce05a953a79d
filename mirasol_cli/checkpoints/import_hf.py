"""Start from public weights: ViT and DeiT for the picture, AST for the sound, Llama-format models for the text.

All read local safetensors folders in Hugging Face layout and copy what fits into a model that is already built. What
does not fit is refused with both values or listed in the report; nothing is left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mirasol_cli.checkpoints.parameter_names import first_names
from mirasol_cli.checkpoints.safetensors_folder import SafetensorsFolder
from mirasol_cli.config.families import TEXT_FAMILIES, text_problems, text_sizes
from mirasol_cli.errors import CheckpointError
from mirasol_cli.fields import to_plain
from mirasol_cli.geometry import Tube
from mirasol_cli.model.config import RopeScalingConfig
from mirasol_cli.model.mirasol import Mirasol

# What the pixels and the spectrogram of our tokens are normalised with (`TubeTokens`, the `ast` front end).
OUR_PIXELS = (0.5, 0.5)
OUR_AST = (-4.2677393, 4.5689974)
PROMPT_MARKS = 16  # tokens of a text that the recipe's limits do not count
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class LoadReport:
    """What came from where. All but `unexpected` are names of our parameters."""

    source: str
    loaded: tuple[str, ...]  # copied as they were
    resized: tuple[str, ...]  # made to fit, each with how
    missing: tuple[str, ...]  # of the same parts, but not in the source: they keep their initial values
    unexpected: tuple[str, ...]  # tensors of the source that have no place here

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors from '{self.source}'"]
        parts += [f"{len(self.resized)} resized: {first_names(self.resized)}"] if self.resized else []
        parts += [f"{len(self.missing)} new here: {first_names(self.missing)}"] if self.missing else []
        parts += [f"{len(self.unexpected)} not used: {first_names(self.unexpected)}"] if self.unexpected else []
        return "; ".join(parts)


def load_video_encoder(model: Mirasol, folder: Path) -> LoadReport:
    """A ViT or DeiT into the picture's tubes and trunk.

    The trunk is copied layer by layer. The patch kernel is inflated into every tube kernel: a token of a still clip is
    the source's embedding of the tube's patch, resized to the source's patch size (with space-to-depth, the first
    channels of it). The source's normalisation of pixels is folded into the kernel. Start tokens and learned positions
    have no place here: positions are TubeViT's fixed ones.

    Raises:
        CheckpointError: another architecture, sizes that differ from the recipe's, or damaged files.
    """
    source = SafetensorsFolder(folder)
    _check_type(source, "a ViT or DeiT", ("vit", "deit"))
    _check_trunk(source, model)
    prefix = _prefix(source, "embeddings.patch_embeddings.projection.weight")
    plan = _Plan(model, source, ("video_tokens.", _trunk_name(model, "video_encoder")))
    _plan_trunk(plan, prefix)

    kernel_DCpp = plan.take(prefix + "embeddings.patch_embeddings.projection.weight").float()
    bias_D = plan.take(prefix + "embeddings.patch_embeddings.projection.bias").float()
    if kernel_DCpp.dim() != 4 or kernel_DCpp.shape[1] != 3:
        raise CheckpointError(
            f"'{folder}' has a patch kernel of shape {list(kernel_DCpp.shape)}, RGB pictures need [width, 3, patch, patch]"
        )
    mean, std = _pixel_normalisation(source)
    kernel_DCpp, bias_D = _renormalise(kernel_DCpp, bias_D, (OUR_PIXELS[0] - mean) / std, OUR_PIXELS[1] / std)
    for number, tube in enumerate(model.geometry.tubes):
        channels = model.config.encoder.width // tube.kernels_per_token
        how = f"{_by(kernel_DCpp.shape[2:])} patch to {_by(tube.kernel)} tube"
        if tube.kernels_per_token > 1:
            how += f", first {channels} of {kernel_DCpp.shape[0]} channels"
        plan.put(f"video_tokens.maps.{number}.weight", inflate(kernel_DCpp, tube)[:channels], how)
        plan.put(f"video_tokens.maps.{number}.bias", bias_D[:channels], how)
    plan.put("video_tokens.kind", torch.zeros(len(model.geometry.tubes), model.config.encoder.width), "zero, as the source has none")
    return plan.carry_out()


def load_audio_encoder(model: Mirasol, folder: Path) -> LoadReport:
    """An Audio Spectrogram Transformer (AST) into the sound's patches and trunk.

    AST's own filterbank and overlapping patches are needed: `clip.audio.frontend: ast` with the source's numbers.

    Raises:
        CheckpointError: another architecture, a front end or sizes that differ from the recipe's, or damaged files.
    """
    source = SafetensorsFolder(folder)
    _check_type(source, "an AST", ("audio-spectrogram-transformer",))
    audio, config = model.geometry.audio, source.config
    _check_equal(
        source,
        {
            "clip.audio.frontend": (audio.frontend, "ast"),
            "clip.audio.sample_rate": (audio.sample_rate, source.preprocessor.get("sampling_rate", 16000)),
            "clip.audio.n_mels": (audio.n_mels, config.get("num_mel_bins", 128)),
            "clip.audio.win_length": (audio.win_length, 400),  # Kaldi's 25 ms and 10 ms, fixed in AST's feature extractor
            "clip.audio.hop_length": (audio.hop_length, 160),
            "clip.audio.patch": (audio.patch, config.get("patch_size", 16)),
            "clip.audio.patch_stride": (audio.patch_stride, config.get("frequency_stride", 10)),
            "clip.audio.patch_stride (time)": (audio.patch_stride, config.get("time_stride", 10)),
        },
    )
    _check_trunk(source, model)
    prefix = _prefix(source, "embeddings.patch_embeddings.projection.weight")
    plan = _Plan(model, source, ("audio_tokens.", _trunk_name(model, "audio_encoder")))
    _plan_trunk(plan, prefix)

    kernel_D1pp = plan.take(prefix + "embeddings.patch_embeddings.projection.weight").float()
    bias_D = plan.take(prefix + "embeddings.patch_embeddings.projection.bias").float()
    # AST computes (x - mean) / (2 std); ours is the same with AudioSet's constants.
    mean = torch.tensor([float(source.preprocessor.get("mean", OUR_AST[0]))])
    std = torch.tensor([float(source.preprocessor.get("std", OUR_AST[1]))])
    kernel_D1pp, bias_D = _renormalise(kernel_D1pp, bias_D, (OUR_AST[0] - mean) / (2 * std), OUR_AST[1] / std)
    plan.put("audio_tokens.map.weight", kernel_D1pp.flatten(1))
    plan.put("audio_tokens.map.bias", bias_D)
    plan.put("audio_tokens.kind", torch.zeros(model.config.encoder.width), "zero, as the source has none")
    return plan.carry_out()


def load_text_decoder(model: Mirasol, folder: Path) -> LoadReport:
    """A language model of the Llama layout (Llama 1 to 3, Mistral, SmolLM, Qwen 2 and 3) into the text decoder.

    The gates of the cross-attention are closed, so that training starts from exactly that language model. An embedding
    with more rows than the vocabulary has pieces (padding of the source) is cut; one with fewer is refused.

    Raises:
        CheckpointError: another architecture, sizes that differ from the recipe's, or damaged files.
    """
    source = SafetensorsFolder(folder)
    _check_type(source, "a text model", tuple(TEXT_FAMILIES))
    _check_text(source, model)
    prefix = _prefix(source, "embed_tokens.weight")
    plan = _Plan(model, source, ("text.",))
    for name in plan.ours:
        inner = name.removeprefix("text.")
        if inner.startswith(("layers.", "norm.")):
            plan.put(name, plan.take(prefix + inner))

    embedding_VD = plan.take(prefix + "embed_tokens.weight")
    _plan_rows(plan, "text.embed_tokens.weight", embedding_VD)
    if model.text.lm_head is not None:
        tied = "lm_head.weight" not in source.names
        _plan_rows(plan, "text.lm_head.weight", embedding_VD if tied else plan.take("lm_head.weight"))
    for number in range(len(model.text.cross_layers)):
        plan.put(f"text.cross_layers.{number}.gate", torch.zeros(1), "closed, so that the source's own answers are kept")
    return plan.carry_out()


def inflate(kernel_DCpp: Tensor, tube: Tube) -> Tensor:
    """A patch kernel [D, 3, p, p] as the linear map [D, t * h * w * 3] of a tube kernel.

    OURS: instead of resizing the kernel itself, the map is "resize the tube's h x w patch to p x p, then apply the
    source's kernel", which is linear in the tube's pixels; each frame gets 1/t of it. On a still clip the token
    therefore is the source's embedding of the resized patch, exactly, whatever the tube's size.
    """
    t, h, w = tube.kernel
    rows_ph, columns_pw = (_resizer(inner, outer) for inner, outer in ((h, kernel_DCpp.shape[2]), (w, kernel_DCpp.shape[3])))
    kernel_Dhw3 = torch.einsum("dcpq,ph,qw->dhwc", kernel_DCpp, rows_ph, columns_pw)
    return (kernel_Dhw3 / t)[:, None].expand(-1, t, -1, -1, -1).flatten(1)


def _resizer(inputs: int, outputs: int) -> Tensor:
    """[outputs, inputs]: bilinear interpolation along one axis, averaging over the area when it shrinks."""
    eye = torch.eye(inputs)[None, None]
    return F.interpolate(eye, size=(outputs, inputs), mode="bilinear", antialias=outputs < inputs)[0, 0]


def _renormalise(kernel: Tensor, bias_D: Tensor, shift_C: Tensor, scale_C: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel and bias for our inputs u, where the source's inputs are scale * u + shift."""
    return kernel * scale_C[:, None, None], bias_D + torch.einsum("dcpq,c->d", kernel, shift_C)


def _pixel_normalisation(source: SafetensorsFolder) -> tuple[Tensor, Tensor]:
    """Mean and deviation per colour, of pixels in [0, 1]; without a preprocessor_config.json those its family was trained with."""
    if source.preprocessor.get("do_normalize", True) is False:
        return torch.zeros(3), torch.ones(3)
    usual = IMAGENET if source.model_type == "deit" else ((0.5,) * 3, (0.5,) * 3)
    mean, std = source.preprocessor.get("image_mean", usual[0]), source.preprocessor.get("image_std", usual[1])
    try:
        return torch.tensor(mean, dtype=torch.float32).expand(3), torch.tensor(std, dtype=torch.float32).expand(3)
    except (TypeError, ValueError, RuntimeError):
        raise CheckpointError(
            f"'{source.folder}' has a strange image_mean or image_std: {mean}, {std}", "mend preprocessor_config.json"
        ) from None


# The plan of a load -------------------------------------------------------------------------------------------------


class _Plan:
    """Gathers what goes where; nothing is copied before all of it is known to fit."""

    def __init__(self, model: Mirasol, source: SafetensorsFolder, parts: tuple[str, ...]):
        self.model, self.source = model, source
        self.ours = {name: parameter for name, parameter in model.named_parameters() if name.startswith(parts)}
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
        )


def _plan_trunk(plan: _Plan, prefix: str) -> None:
    """Hugging Face's ViT layers to our blocks."""
    trunk = next(name for name in plan.ours if ".blocks." in name).split("blocks.")[0]
    for number in range(plan.model.config.encoder.layers):
        ours, theirs = f"{trunk}blocks.{number}.", f"{prefix}encoder.layer.{number}."
        for kind in ("weight", "bias"):
            query, key, value = (_projection(plan, f"{theirs}attention.attention.{part}.{kind}") for part in ("query", "key", "value"))
            plan.put(f"{ours}attention.query.{kind}", query)
            plan.put(f"{ours}attention.key_value.{kind}", torch.cat((key, value)))
            for our_name, their_name in _SAME.items():
                plan.put(f"{ours}{our_name}.{kind}", plan.take(f"{theirs}{their_name}.{kind}"))
    for kind in ("weight", "bias"):
        plan.put(f"{trunk}norm.{kind}", plan.take(f"{prefix}layernorm.{kind}"))


_SAME = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention.out": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}


def _projection(plan: _Plan, name: str) -> Tensor:
    """Query, key or value; a source made without these biases has zeros."""
    if name.endswith(".bias") and plan.source.config.get("qkv_bias", True) is False:
        return torch.zeros(plan.model.config.encoder.width)
    return plan.take(name)


def _plan_rows(plan: _Plan, name: str, value_VD: Tensor) -> None:
    rows, pieces = value_VD.shape[0], plan.model.vocab_size
    plan.put(name, value_VD[:pieces], f"first {pieces} of {rows} rows" if rows > pieces else "")


def _trunk_name(model: Mirasol, separate: str) -> str:
    return "encoder." if model.config.encoder.share else f"{separate}."


def _prefix(source: SafetensorsFolder, ending: str) -> str:
    """What stands before the tensor names: nothing, or the model's name where a head was saved with it."""
    found = sorted((name.removesuffix(ending) for name in source.names if name == ending or name.endswith("." + ending)), key=len)
    if not found:
        raise CheckpointError(
            f"'{source.folder}' has no tensor '{ending}': nothing of it could be loaded", "give the folder of the whole model"
        )
    return found[0]


# Checks -------------------------------------------------------------------------------------------------------------


def _check_type(source: SafetensorsFolder, wanted: str, types: tuple[str, ...]) -> None:
    if source.model_type not in types:
        raise CheckpointError(
            f"'{source.folder}' is a model of type '{source.model_type}', but {wanted} (type {' or '.join(types)}) is needed here",
            "give the folder of such a model, or leave the key out",
        )


def _check_equal(source: SafetensorsFolder, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise with every pair (ours, theirs) that differs."""
    different = [f"{key} is {ours}, the source has {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]
    if different:
        raise CheckpointError(f"'{source.folder}' does not fit the recipe: {'; '.join(different)}", "set these keys to the source's values")


def _check_trunk(source: SafetensorsFolder, model: Mirasol) -> None:
    ours, theirs = model.config.encoder, source.config
    _check_equal(
        source,
        {
            "model.encoder.width": (ours.width, theirs.get("hidden_size")),
            "model.encoder.heads": (ours.heads, theirs.get("num_attention_heads")),
            "model.encoder.mlp_dim": (ours.mlp_dim, theirs.get("intermediate_size")),
            "model.encoder.layers": (ours.layers, theirs.get("num_hidden_layers")),
            "the activation": ("gelu", theirs.get("hidden_act", "gelu")),
        },
    )


def _check_text(source: SafetensorsFolder, model: Mirasol) -> None:
    text = model.config.text
    problems = text_problems(source.config, text.max_context + text.max_question + text.max_answer + PROMPT_MARKS)
    if problems:
        raise CheckpointError(f"'{source.folder}' has what the text decoder has no option for: {'; '.join(problems)}", "use another model")
    ours, theirs = to_plain(text), text_sizes(source.config)
    if theirs["tie_embeddings"]:
        theirs["tie_embeddings"] = ours["tie_embeddings"]  # both ways: an output layer of its own starts as the embedding
    theirs["head_dim"], ours["head_dim"] = theirs["head_dim"] or text.width // text.heads, text.head_width
    theirs.setdefault("rope_scaling", to_plain(RopeScalingConfig()))
    pieces, rows = model.vocab_size, source.config.get("vocab_size")
    pairs = {f"model.text.{key}": (ours[key], value) for key, value in theirs.items()}
    _check_equal(source, pairs | {"the vocabulary": (pieces, pieces if isinstance(rows, int) and rows >= pieces else rows)})


def _by(sizes: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, sizes))
