"""Video and audio tokens, and the pre-norm ViT that encodes each chunk separately."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirasol_cli.fields import FieldError
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.model.config import TrunkConfig
from mirasol_cli.model.layers import Block, key_mask, learned_parameter, norm, project_width, sine_cosine


class TubeTokens(nn.Module):
    """Sparse video tubes to tokens (TubeViT 3.2-3.4): one linear map and one embedding per tube kind, fixed positions.

    With space-to-depth, a kernel makes width / kernels_per_token channels, and the kernels of a token are joined on
    the channels. Positions are computed from the geometry and are no part of the state dict, so that weights trained
    on 128 frames load at 512.
    """

    position_ND: Tensor
    mirrored_position_ND: Tensor

    def __init__(self, geometry: ClipGeometry, width: int):
        super().__init__()
        self.tubes: Sequence[Tube] = geometry.tubes
        for tube in self.tubes:
            if width % tube.kernels_per_token:
                raise FieldError(
                    "encoder.width",
                    f"model.encoder.width: {width} is not divisible by the {tube.kernels_per_token} kernels that {tube.describe()} joins "
                    "into one token",
                )
        self.maps = nn.ModuleList(token_map(tube.kernel_numbers, width // tube.kernels_per_token) for tube in self.tubes)
        self.kind = learned_parameter(len(self.tubes), width)
        centres = [centre for tube in self.tubes for centre in tube.centres(*geometry.chunk_shape)]
        self.register_buffer("position_ND", tube_positions(centres, width), persistent=False)
        mirrored = [(t, y, geometry.size - x) for t, y, x in centres]
        self.register_buffer("mirrored_position_ND", tube_positions(mirrored, width), persistent=False)

    def forward(self, tubes: Sequence[Tensor], flip_B: Tensor | None = None) -> Tensor:
        """uint8 [B, T, N_k, P_k] per tube kind -> [B, T, N, D]; clips with `flip_B` are mirrored left to right."""
        content = [self._content(index, pixels, flip_B) for index, pixels in enumerate(tubes)]
        if flip_B is None:
            return torch.cat(content, dim=2) + self.position_ND
        position = torch.where(flip_B[:, None, None], self.mirrored_position_ND, self.position_ND)
        return torch.cat(content, dim=2) + position[:, None]

    def _content(self, index: int, pixels_BTNP: Tensor, flip_B: Tensor | None) -> Tensor:
        tube, linear_map = self.tubes[index], self.maps[index]
        if flip_B is not None:
            mirrored = mirror_tubes(pixels_BTNP, tube)
            pixels_BTNP = torch.where(flip_B[:, None, None, None], mirrored, pixels_BTNP)
        kernels = pixels_BTNP.unflatten(-1, (tube.kernels_per_token, tube.kernel_numbers))
        kernels = kernels.to(self.kind.dtype).mul_(2 / 255).sub_(1)  # (x / 255 - 0.5) / 0.5, as ViT's image processor
        return linear_map(kernels).flatten(-2) + self.kind[index]


class SpectrogramTokens(nn.Module):
    """Square patches of one chunk's log-mel to tokens, with fixed positions of (bin, column)."""

    position_ND: Tensor

    def __init__(self, geometry: AudioGeometry, width: int):
        super().__init__()
        self.geometry = geometry
        self.map = token_map(geometry.patch**2, width)
        self.kind = learned_parameter(width)
        rows, columns = geometry.grid
        centres = [
            (row * geometry.patch_stride + geometry.patch / 2, column * geometry.patch_stride + geometry.patch / 2)
            for row in range(rows)
            for column in range(columns)
        ]
        self.register_buffer("position_ND", sine_cosine(torch.tensor(centres), width), persistent=False)

    def forward(self, mel_BTZS: Tensor) -> Tensor:
        """float [B, T, Z, S] -> [B, T, N, D]; patches row by row, from the lowest bins up."""
        patches = spectrogram_patches(mel_BTZS, self.geometry).to(self.kind.dtype)
        return self.map(patches) + self.kind + self.position_ND


class ConvolutionTokens(nn.Module):
    """Whisper's first layers (arXiv 2212.04356, section 2.2): two convolutions along one chunk's log-mel, with GELU, to a token for
    every two columns. Its table of positions, sines beside cosines, is cut to the chunk."""

    position_ND: Tensor

    def __init__(self, geometry: AudioGeometry, width: int):
        super().__init__()
        self.conv1 = convolution(geometry.n_mels, width)
        self.conv2 = convolution(width, width, stride=2)
        self.kind = learned_parameter(width)
        self.register_buffer("position_ND", whisper_positions(geometry.tokens, width), persistent=False)

    def forward(self, mel_BTZS: Tensor) -> Tensor:
        """float [B, T, Z, S] -> [B, T, N, D]; no convolution reaches over the chunk's border."""
        x = F.gelu(self.conv1(mel_BTZS.flatten(0, 1).to(self.kind.dtype)))
        x_BTND = F.gelu(self.conv2(x)).transpose(1, 2).unflatten(0, mel_BTZS.shape[:2])
        return x_BTND + self.kind + self.position_ND


def build_audio_tokens(geometry: AudioGeometry, width: int) -> SpectrogramTokens | ConvolutionTokens:
    """The audio's tokens as its front end makes them."""
    return ConvolutionTokens(geometry, width) if geometry.frontend == "whisper" else SpectrogramTokens(geometry, width)


class Encoder(nn.Module):
    """A pre-norm ViT over the tokens of one chunk of one modality. `output_width` is that of the tokens that leave it."""

    def __init__(self, config: TrunkConfig, output_width: int | None = None):
        super().__init__()
        last = max(config.layers - 1, 1)
        self.input_norm = norm(config.width, config.norm_eps) if config.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                config.width, config.heads, config.mlp_dim, dropout=config.dropout, drop_path=config.drop_path * index / last,
                activation=config.activation, norm_eps=config.norm_eps,
            )
            for index in range(config.layers)
        )  # fmt: skip
        self.norm = norm(config.width, config.norm_eps)
        self.output_proj = project_width(config.width, output_width or config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None) -> Tensor:
        """[B, T, N, D] -> [B, T, N, D]; no chunk sees another. Outputs of invalid tokens are finite and mean nothing."""
        x = self.input_norm(x_BTND.flatten(0, 1))
        mask = None if valid_BTN is None else key_mask(valid_BTN.flatten(0, 1))
        for block in self.blocks:
            x = block(x, mask)
        return self.output_proj(self.norm(x)).unflatten(0, x_BTND.shape[:2])


def token_map(numbers: int, channels: int) -> nn.Linear:
    """The linear map of a tube or patch. Pixels of unit size give content of about unit size, as the positions have:
    neither drowns the other at the start of training (xavier's scale would depend on the ratio of the two widths)."""
    layer = nn.Linear(numbers, channels)
    nn.init.normal_(layer.weight, std=numbers**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv1d:
    """Three columns wide, scaled as `token_map`."""
    layer = nn.Conv1d(inputs, outputs, kernel_size=3, stride=stride, padding=1)
    nn.init.normal_(layer.weight, std=(3 * inputs) ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def whisper_positions(count: int, width: int) -> Tensor:
    """Whisper's fixed positions [count, width]: all sines, then all cosines, of 10000^(-j / (width / 2 - 1)) each."""
    half = width // 2
    rate = torch.exp(-math.log(10000.0) / max(half - 1, 1) * torch.arange(half))
    angle = torch.arange(count)[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width - 2 * half))


def tube_positions(centres_tyx: Sequence[tuple[float, float, float]], width: int) -> Tensor:
    """Positions [N, width] of tube centres (frame in the chunk, row, column); channels in the paper's order t, x, y."""
    return sine_cosine(torch.tensor([(t, x, y) for t, y, x in centres_tyx]), width)


def mirror_tubes(pixels: Tensor, tube: Tube) -> Tensor:
    """[..., P] -> [..., P]: the same tubes of the mirrored video: columns inside each kernel, and the kernels of a
    space-to-depth group along the width, change order."""
    parts = pixels.unflatten(-1, (*tube.space_to_depth, *tube.kernel, 3))
    return parts.flip(-5, -2).flatten(-7)


def spectrogram_patches(mel_BTZS: Tensor, geometry: AudioGeometry) -> Tensor:
    """[B, T, Z, S] -> [B, T, N, mel bins * columns of a patch]."""
    (rows, columns), (down, right) = geometry.patch_shape, geometry.patch_step
    patches = mel_BTZS.unfold(2, rows, down).unfold(3, columns, right)
    return patches.flatten(2, 3).flatten(-2)
