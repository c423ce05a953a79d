"""Tokens of picture and sound, and the pre-norm ViT that encodes each chunk of them on its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mirasol_cli.fields import FieldError
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.model.config import EncoderConfig
from mirasol_cli.model.layers import Block, key_mask, learned_parameter, norm, sine_cosine


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


class Encoder(nn.Module):
    """A pre-norm ViT over the tokens of one chunk of one modality."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        last = max(config.layers - 1, 1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_dim, dropout=config.dropout, drop_path=config.drop_path * index / last)
            for index in range(config.layers)
        )
        self.norm = norm(config.width)

    def forward(self, x_BTND: Tensor, valid_BTN: Tensor | None = None) -> Tensor:
        """[B, T, N, D] -> [B, T, N, D]; no chunk sees another. Outputs of invalid tokens are finite and mean nothing."""
        x = x_BTND.flatten(0, 1)
        mask = None if valid_BTN is None else key_mask(valid_BTN.flatten(0, 1))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).unflatten(0, x_BTND.shape[:2])


def token_map(numbers: int, channels: int) -> nn.Linear:
    """The linear map of a tube or patch. Pixels of unit size give content of about unit size, as the positions have:
    neither drowns the other at the start of training (xavier's scale would depend on the ratio of the two widths)."""
    layer = nn.Linear(numbers, channels)
    nn.init.normal_(layer.weight, std=numbers**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def tube_positions(centres_tyx: Sequence[tuple[float, float, float]], width: int) -> Tensor:
    """Positions [N, width] of tube centres (frame in the chunk, row, column); channels in the paper's order t, x, y."""
    return sine_cosine(torch.tensor([(t, x, y) for t, y, x in centres_tyx]), width)


def mirror_tubes(pixels: Tensor, tube: Tube) -> Tensor:
    """[..., P] -> [..., P]: the same tubes of the mirrored video: columns inside each kernel, and the kernels of a
    space-to-depth group along the width, change order."""
    parts = pixels.unflatten(-1, (*tube.space_to_depth, *tube.kernel, 3))
    return parts.flip(-5, -2).flatten(-7)


def spectrogram_patches(mel_BTZS: Tensor, geometry: AudioGeometry) -> Tensor:
    """[B, T, Z, S] -> [B, T, N, patch * patch]."""
    patches = mel_BTZS.unfold(2, geometry.patch, geometry.patch_stride).unfold(3, geometry.patch, geometry.patch_stride)
    return patches.flatten(2, 3).flatten(-2)
