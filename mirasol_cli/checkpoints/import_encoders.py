"""Start from public encoders: ViT, DeiT, CLIP, SigLIP (1 and 2), DINOv2 and VideoMAE for the video, AST and Whisper for the audio.

The trunk is copied layer by layer, so that it computes what the source computes. Tokens are made otherwise: tubes and
patches of one chunk with fixed positions take the place of the source's patches, learned positions and extra tokens.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mirasol_cli.checkpoints.import_plan import LoadReport, Plan, check_equal, check_type, prefix_of
from mirasol_cli.checkpoints.safetensors_folder import SafetensorsFolder
from mirasol_cli.config.families import AUDIO_FAMILIES, VIDEO_FAMILIES, EncoderFamily, audio_settings, encoder_settings, trunk_sizes
from mirasol_cli.errors import CheckpointError
from mirasol_cli.geometry import Tube
from mirasol_cli.model.config import TrunkConfig
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.model.tokens import whisper_positions

# What the pixels and the spectrogram of our tokens are normalised with (`TubeTokens`, the front end `ast`).
OUR_PIXELS = (0.5, 0.5)
OUR_AST = (-4.2677393, 4.5689974)


def load_video_encoder(model: Mirasol, folder: Path) -> LoadReport:
    """An encoder of `VIDEO_FAMILIES` into the video's tubes and trunk.

    The patch kernel is inflated into every tube kernel: a token of a still clip is the source's embedding of the tube's patch,
    resized to the source's patch size (with space-to-depth, the first channels of it). The source's normalisation of pixels is
    folded into the kernel. Class tokens, registers and positions have no place here: positions are TubeViT's fixed ones.

    Raises:
        CheckpointError: another architecture, sizes that differ from the recipe's, or damaged files.
    """
    source = check_video_encoder(model, folder)
    family, trunk = VIDEO_FAMILIES[source.model_type], model.config.video_trunk
    plan = Plan(model, source, ("video_tokens.", _trunk_name(model, "video_encoder")), family.dropped)
    prefix = prefix_of(source, f"{family.names.patch}.weight")
    _plan_trunk(plan, family, prefix, trunk)

    kernel = plan.take(f"{prefix}{family.names.patch}.weight").float()
    if kernel.dim() == 2 and (side := math.isqrt(kernel.shape[1] // 3)) ** 2 * 3 == kernel.shape[1]:
        kernel = kernel.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)  # SigLIP 2 maps the numbers of a patch, colours last
    if kernel.dim() not in (4, 5) or kernel.shape[1] != 3:
        raise CheckpointError(f"'{folder}' has a patch kernel of shape {list(kernel.shape)}, RGB frames need [width, 3, patch, patch]")
    kernel_DCtpp = kernel if kernel.dim() == 5 else kernel[:, :, None]
    bias_D = _bias(plan, f"{prefix}{family.names.patch}.bias" if family.names.patch_bias else None, trunk.width)
    mean, std = _pixel_normalisation(source, family)
    kernel_DCtpp, bias_D = _renormalise(kernel_DCtpp, bias_D, (OUR_PIXELS[0] - mean) / std, OUR_PIXELS[1] / std)
    for number, tube in enumerate(model.geometry.tubes):
        channels = trunk.width // tube.kernels_per_token
        how = f"{_by(kernel.shape[2:])} patch to {_by(tube.kernel)} tube"
        if tube.kernels_per_token > 1:
            how += f", first {channels} of {kernel.shape[0]} channels"
        plan.put(f"video_tokens.maps.{number}.weight", inflate(kernel_DCtpp, tube)[:channels], how)
        plan.put(f"video_tokens.maps.{number}.bias", bias_D[:channels], how)
    plan.put("video_tokens.kind", torch.zeros(len(model.geometry.tubes), trunk.width), "zero, as the source has none")
    return plan.carry_out()


def load_audio_encoder(model: Mirasol, folder: Path) -> LoadReport:
    """An encoder of `AUDIO_FAMILIES` into the audio's tokens and trunk.

    An AST needs its own filterbank and overlapping patches (`clip.audio.frontend: ast`), Whisper its own filters and convolutions
    (`clip.audio.frontend: whisper`); the folder's config.json sets these keys where the recipe does not.

    Raises:
        CheckpointError: another architecture, a front end or sizes that differ from the recipe's, or damaged files.
    """
    source = check_audio_encoder(model, folder)
    family, trunk = AUDIO_FAMILIES[source.model_type], model.config.audio_trunk
    plan = Plan(model, source, ("audio_tokens.", _trunk_name(model, "audio_encoder")), family.dropped)
    prefix = prefix_of(source, f"{family.names.patch}.weight")
    _plan_trunk(plan, family, prefix, trunk)
    if source.model_type == "whisper":
        _plan_convolutions(plan, prefix)
    else:
        _plan_spectrogram_patches(plan, f"{prefix}{family.names.patch}")
    plan.put("audio_tokens.kind", torch.zeros(trunk.width), "zero, as the source has none")
    return plan.carry_out()


def inflate(kernel_DCtpp: Tensor, tube: Tube) -> Tensor:
    """A patch kernel [D, 3, t', p, p] as the linear map [D, t * h * w * 3] of a tube kernel.

    OURS: instead of resizing the kernel itself, the map is "resize the tube's t x h x w pixels to t' x p x p, then apply the
    source's kernel", which is linear in the pixels; of a picture's kernel (t' = 1) each frame gets 1/t. On a still clip the token
    therefore is the source's embedding of the resized patch, exactly, whatever the tube's size.
    """
    t, h, w = tube.kernel
    rows_ph, columns_pw = (_resizer(inner, outer) for inner, outer in ((h, kernel_DCtpp.shape[3]), (w, kernel_DCtpp.shape[4])))
    frames_st = F.interpolate(torch.eye(t)[None], size=kernel_DCtpp.shape[2], mode="area")[0].T
    return torch.einsum("dcspq,st,ph,qw->dthwc", kernel_DCtpp, frames_st, rows_ph, columns_pw).flatten(1)


def _resizer(inputs: int, outputs: int) -> Tensor:
    """[outputs, inputs]: bilinear interpolation along one axis, averaging over the area when it shrinks."""
    eye = torch.eye(inputs)[None, None]
    return F.interpolate(eye, size=(outputs, inputs), mode="bilinear", antialias=outputs < inputs)[0, 0]


def _renormalise(kernel: Tensor, bias_D: Tensor, shift_C: Tensor, scale_C: Tensor) -> tuple[Tensor, Tensor]:
    """Kernel [D, C, ...] and bias for our inputs u, where the source's inputs are scale * u + shift."""
    return kernel * scale_C.view(-1, *[1] * (kernel.dim() - 2)), bias_D + torch.einsum("dc,c->d", kernel.flatten(2).sum(-1), shift_C)


def _pixel_normalisation(source: SafetensorsFolder, family: EncoderFamily) -> tuple[Tensor, Tensor]:
    """Mean and deviation per colour, of pixels in [0, 1]; without a preprocessor_config.json those its family was trained with."""
    if source.preprocessor.get("do_normalize", True) is False or family.pixels is None:
        return torch.zeros(3), torch.ones(3)
    mean, std = source.preprocessor.get("image_mean", family.pixels[0]), source.preprocessor.get("image_std", family.pixels[1])
    try:
        return torch.tensor(mean, dtype=torch.float32).expand(3), torch.tensor(std, dtype=torch.float32).expand(3)
    except (TypeError, ValueError, RuntimeError):
        raise CheckpointError(
            f"'{source.folder}' has an unusable image_mean or image_std: {mean}, {std}", "mend preprocessor_config.json"
        ) from None


# Plans --------------------------------------------------------------------------------------------------------------


def _plan_trunk(plan: Plan, family: EncoderFamily, prefix: str, trunk: TrunkConfig) -> None:
    """The source's layers to our blocks. Factors on what a layer adds to its residual (DINOv2) are folded into its last maps."""
    names, settings = family.names, encoder_settings(plan.source.config)
    start = next(name for name in plan.ours if ".blocks." in name).split("blocks.")[0]
    for number in range(trunk.layers):
        ours, theirs = f"{start}blocks.{number}.", f"{prefix}{names.layer}.{number}."
        projections = (names.query, names.key, names.value)
        query, key, value = (plan.take(f"{theirs}{name}.weight") for name in projections)
        plan.put(f"{ours}attention.query.weight", query)
        plan.put(f"{ours}attention.key_value.weight", torch.cat((key, value)))
        biases: tuple[str | None, ...] = names.biases or tuple(f"{name}.bias" for name in projections)
        if not settings.get("qkv_bias", settings.get("qv_bias", True)):
            biases = (None, None, None)
        query, key, value = (_bias(plan, theirs + name if name else None, trunk.width) for name in biases)
        plan.put(f"{ours}attention.query.bias", query)
        plan.put(f"{ours}attention.key_value.bias", torch.cat((key, value)))
        for our_name, their_name, scale in (
            ("attention.out", names.out, names.attention_scale), ("mlp.down", names.down, names.mlp_scale),
        ):  # fmt: skip
            weight, bias = plan.take(f"{theirs}{their_name}.weight"), plan.take(f"{theirs}{their_name}.bias")
            if scale is not None:
                factor_D = plan.take(theirs + scale).float()
                weight, bias = weight.float() * factor_D[:, None], bias.float() * factor_D
            how = "" if scale is None else f"times {scale}"
            plan.put(f"{ours}{our_name}.weight", weight, how)
            plan.put(f"{ours}{our_name}.bias", bias, how)
        for our_name, their_name in (("norm1", names.norm1), ("norm2", names.norm2), ("mlp.up", names.up)):
            _plan_pair(plan, ours + our_name, theirs + their_name)
    if names.input_norm is not None:
        _plan_pair(plan, f"{start}input_norm", prefix + names.input_norm)
    final = prefix + names.norm
    if f"{final}.weight" not in plan.source.names and settings.get("use_mean_pooling"):
        final = "fc_norm"  # of a VideoMAE classifier: outside of its encoder
    if settings.get("use_mean_pooling") and f"{final}.weight" not in plan.source.names:
        plan.note += "; it has no final norm, so that one starts fresh"
    else:
        _plan_pair(plan, f"{start}norm", final)


def _plan_pair(plan: Plan, ours: str, theirs: str) -> None:
    for kind in ("weight", "bias"):
        plan.put(f"{ours}.{kind}", plan.take(f"{theirs}.{kind}"))


def _plan_spectrogram_patches(plan: Plan, patch: str) -> None:
    """AST's patch kernel; its constants of normalisation are folded in."""
    source = plan.source
    kernel_D1pp, bias_D = plan.take(f"{patch}.weight").float(), plan.take(f"{patch}.bias").float()
    # AST computes (x - mean) / (2 std); ours is the same with AudioSet's constants.
    mean = torch.tensor([float(source.preprocessor.get("mean", OUR_AST[0]))])
    std = torch.tensor([float(source.preprocessor.get("std", OUR_AST[1]))])
    kernel_D1pp, bias_D = _renormalise(kernel_D1pp, bias_D, (OUR_AST[0] - mean) / (2 * std), OUR_AST[1] / std)
    plan.put("audio_tokens.map.weight", kernel_D1pp.flatten(1))
    plan.put("audio_tokens.map.bias", bias_D)


def _plan_convolutions(plan: Plan, prefix: str) -> None:
    """Whisper's two convolutions. Its positions are fixed ones, which our tokens have, too."""
    for layer in ("conv1", "conv2"):
        _plan_pair(plan, f"audio_tokens.{layer}", f"{prefix}encoder.{layer}")
    table = plan.take(f"{prefix}encoder.embed_positions.weight").float()
    needed = plan.model.geometry.audio.tokens
    if len(table) < needed:
        raise CheckpointError(
            f"'{plan.source.folder}' has positions for {len(table)} tokens, a chunk has {needed}",
            f"set clip.audio.columns to {2 * len(table)}",
        )
    if (table[:needed] - whisper_positions(needed, table.shape[1])).abs().max() > 1e-2:
        raise CheckpointError(f"'{plan.source.folder}' has other positions than Whisper's fixed ones", "use a checkpoint that keeps them")


def _bias(plan: Plan, name: str | None, width: int) -> Tensor:
    """A bias; zeros where there is none."""
    return torch.zeros(width) if name is None else plan.take(name).float()


def _trunk_name(model: Mirasol, separate: str) -> str:
    return "encoder." if model.config.encoder.share else f"{separate}."


# Checks -------------------------------------------------------------------------------------------------------------


def check_video_encoder(model: Mirasol, folder: Path) -> SafetensorsFolder:
    """The folder, if by its config.json and the heads of its files it fits the model, which may be without memory.

    Raises CheckpointError as `load_video_encoder`.
    """
    source = SafetensorsFolder(folder)
    check_type(source, "a video encoder", VIDEO_FAMILIES)
    _check_trunk(source, model.config.video_trunk, "model.encoder" if model.config.video_encoder is None else "model.video_encoder")
    return source


def check_audio_encoder(model: Mirasol, folder: Path) -> SafetensorsFolder:
    """As `check_video_encoder`. Raises CheckpointError as `load_audio_encoder`."""
    source = SafetensorsFolder(folder)
    check_type(source, "an audio encoder", AUDIO_FAMILIES)
    _check_audio(source, model)
    _check_trunk(source, model.config.audio_trunk, "model.encoder" if model.config.audio_encoder is None else "model.audio_encoder")
    return source


def _check_trunk(source: SafetensorsFolder, ours: TrunkConfig, section: str) -> None:
    if encoder_settings(source.config).get("use_swiglu_ffn"):
        raise CheckpointError(
            f"'{source.folder}' has a gated MLP (use_swiglu_ffn), which the encoders have no option for", "use another size"
        )
    check_equal(source, {f"{section}.{key}": (getattr(ours, key), theirs) for key, theirs in trunk_sizes(source.config).items()})


def _check_audio(source: SafetensorsFolder, model: Mirasol) -> None:
    audio, needed = model.geometry.audio, audio_settings(source.config)
    needed["sample_rate"] = source.preprocessor.get("sampling_rate", needed["sample_rate"])
    pairs = {f"clip.audio.{key}": (getattr(audio, key), theirs) for key, theirs in needed.items()}
    if source.model_type != "whisper":
        pairs["clip.audio.patch_stride (time)"] = (audio.patch_stride, source.config.get("time_stride", 10))
    check_equal(source, pairs)


def _by(sizes: tuple[int, ...] | torch.Size) -> str:
    return "x".join(map(str, sizes))
