"""How a span of a video becomes tensors: chunks, tubes, spectrogram windows, and every number derived from them.

One `ClipGeometry` is shared by the recipe, the media pipeline, the shards and the model, so that no number
has to be kept equal by hand. This module knows no torch, no files and no YAML.

The legend for shapes, used as suffixes at function borders throughout the package:

    B clips            T chunks (the paper's t counts chunks)   F frames per chunk      H W pixels
    Z mel bins         S spectrogram columns per chunk          N encoder tokens per chunk
    M Combiner outputs per chunk (the paper's m)                D width                 P numbers per tube or patch
    Q questions of a clip                                       L text length           V vocabulary
    K keys that are attended to                                 R rows: texts of a batch, or turns
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from mirasol_cli.fields import FieldError, check_fields, checked_field, to_plain

Triple = tuple[int, int, int]

THUMBNAIL_FRAMES = 4
"""Thumbnails per chunk: the target of the reconstruction loss (OURS: tubes are sparse, it can't be rebuilt from them)."""
THUMBNAIL_SIZE = 32
"""Height and width of a thumbnail, px."""


@dataclass(frozen=True, kw_only=True)
class Tube:
    """One kind of sparse video tube (TubeViT 3.2, Table 12); all triples are (frames, rows, columns)."""

    kernel: Triple = checked_field(help="size of one kernel")
    stride: Triple = checked_field(help="distance between neighbouring tokens")
    offset: Triple = checked_field((0, 0, 0), "where the first tube starts")
    space_to_depth: Triple = checked_field((1, 1, 1), "kernels joined into one token per axis, each making width / product channels")

    def __post_init__(self) -> None:
        check_fields(self)
        for axis in range(3):
            if self.kernel[axis] < 1 or self.stride[axis] < 1 or self.space_to_depth[axis] < 1 or self.offset[axis] < 0:
                raise FieldError("tubes", f"{self.describe()} has a size below 1 or a negative offset")
            if self.stride[axis] % self.space_to_depth[axis]:
                raise FieldError(
                    "tubes", f"{self.describe()}: stride {self.stride[axis]} is not divisible by space_to_depth {self.space_to_depth[axis]}"
                )

    @property
    def step(self) -> Triple:
        """Distance between neighbouring kernels: TubeViT divides the stride by the space-to-depth factor (3.4)."""
        (t, h, w), (a, b, c) = self.stride, self.space_to_depth
        return t // a, h // b, w // c

    @property
    def footprint(self) -> Triple:
        """Extent of one token, space-to-depth included."""
        (t, h, w), (a, b, c), (dt, dh, dw) = self.kernel, self.space_to_depth, self.step
        return t + (a - 1) * dt, h + (b - 1) * dh, w + (c - 1) * dw

    @property
    def kernels_per_token(self) -> int:
        a, b, c = self.space_to_depth
        return a * b * c

    @property
    def kernel_numbers(self) -> int:
        """Numbers under one kernel, colours included."""
        t, h, w = self.kernel
        return t * h * w * 3

    @property
    def numbers_per_token(self) -> int:
        """P: uint8 numbers stored for one token."""
        return self.kernels_per_token * self.kernel_numbers

    def grid(self, frames: int, height: int, width: int) -> Triple:
        """Tokens along each axis of a video of this size; 0 where the tube does not fit."""
        counts = []
        for axis, extent in enumerate((frames, height, width)):
            room = extent - self.offset[axis] - self.kernel[axis]
            kernels = room // self.step[axis] + 1 if room >= 0 else 0
            counts.append(kernels // self.space_to_depth[axis])
        return counts[0], counts[1], counts[2]

    def centres(self, frames: int, height: int, width: int) -> list[tuple[float, float, float]]:
        """Centre (frame, row, column) of every token, in token order (frames, then rows, then columns)."""
        axes = [
            [i * self.stride[axis] + self.offset[axis] + self.footprint[axis] / 2 for i in range(count)]
            for axis, count in enumerate(self.grid(frames, height, width))
        ]
        return [(t, y, x) for t, y, x in product(*axes)]

    def within(self, frames: int) -> Tube:
        """This tube for chunks of fewer frames than it covers: as deep as the chunk, without space-to-depth in time."""
        if self.offset[0] + self.footprint[0] <= frames:
            return self
        kernel, factor = (min(self.kernel[0], frames), *self.kernel[1:]), (1, *self.space_to_depth[1:])
        return replace(self, kernel=kernel, space_to_depth=factor)

    def describe(self) -> str:
        return "tube " + "x".join(map(str, self.kernel))


# OURS: TubeViT's four tubes (Table 12) with their temporal footprint cut to 8 frames, so that they fit the paper's
# 8-frame chunks (16 chunks of 128 frames); TubeViT's own 16x4x4 tube yields nothing there. Longer chunks repeat strides.
CHUNK_TUBES = (
    Tube(kernel=(4, 8, 8), stride=(8, 32, 32), space_to_depth=(2, 1, 1)),
    Tube(kernel=(8, 4, 4), stride=(8, 32, 32), offset=(0, 8, 8), space_to_depth=(1, 2, 2)),
    Tube(kernel=(4, 12, 12), stride=(8, 32, 32), offset=(0, 16, 16)),
    Tube(kernel=(1, 16, 16), stride=(8, 16, 16)),
)
SHORT_CHUNK = 8
"""OURS: the paper's chunks begin at 4 frames. In chunks of fewer than 8 the tubes are cut to the chunk's frames (`Tube.within`): models
of 8 and more frames a chunk share their weights, those of 4 to 7 have their own."""
# TubeViT Table 12, verbatim: 539 tokens at 32x224x224 (the paper prints 559; its own arithmetic gives 539).
TUBEVIT_TUBES = (
    Tube(kernel=(8, 8, 8), stride=(16, 32, 32), space_to_depth=(2, 1, 1)),
    Tube(kernel=(16, 4, 4), stride=(6, 32, 32), offset=(4, 8, 8), space_to_depth=(1, 2, 2)),
    Tube(kernel=(4, 12, 12), stride=(16, 32, 32), offset=(0, 16, 16)),
    Tube(kernel=(1, 16, 16), stride=(32, 16, 16)),
)
NAMED_TUBES = {"chunk": CHUNK_TUBES, "tubevit": TUBEVIT_TUBES}


@dataclass(frozen=True, kw_only=True)
class AudioGeometry:
    """The spectrogram of one chunk's window of sound."""

    frontend: str = checked_field(
        "mel", "log-mel spectrogram, or the filterbank and patches that AST's or Whisper's weights need", choices=("mel", "ast", "whisper")
    )
    sample_rate: int = checked_field(16000, "samples per second, mono", minimum=8000)
    n_mels: int = checked_field(128, "Z, mel bins", minimum=16)
    n_fft: int = checked_field(1024, "samples of one Fourier transform", minimum=64)
    win_length: int = checked_field(400, "samples of one window (25 ms)", minimum=16)
    hop_length: int = checked_field(160, "samples between columns (10 ms)", minimum=16)
    columns: int = checked_field(256, "S, columns per chunk; longer windows are pooled, shorter ones padded and masked", minimum=16)
    patch: int = checked_field(16, "rows and columns of one patch; whisper's tokens are two columns, all bins high", minimum=2)
    patch_stride: int = checked_field(16, "distance between patches (AST uses 10); not read for whisper", minimum=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.win_length > self.n_fft:
            raise FieldError("win_length", f"{self.win_length} samples do not fit into n_fft {self.n_fft}")
        if self.frontend == "whisper" and self.columns % 2:
            raise FieldError("columns", f"{self.columns} is odd; a token of frontend whisper is two columns")
        if self.n_mels < self.patch or self.columns < self.patch:
            raise FieldError("patch", f"{self.patch} is larger than the spectrogram of {self.n_mels} x {self.columns}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (mel bins, columns)."""
        (rows, columns), (down, right) = self.patch_shape, self.patch_step
        return (self.n_mels - rows) // down + 1, (self.columns - columns) // right + 1

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Mel bins and columns under one token (Whisper's convolutions also look at the columns beside them)."""
        return (self.n_mels, 2) if self.frontend == "whisper" else (self.patch, self.patch)

    @property
    def patch_step(self) -> tuple[int, int]:
        """Distance between tokens, in mel bins and columns."""
        return (self.n_mels, 2) if self.frontend == "whisper" else (self.patch_stride, self.patch_stride)

    @property
    def patch_numbers(self) -> int:
        return self.patch_shape[0] * self.patch_shape[1]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True, kw_only=True)
class ClipGeometry:
    """The recipe section `clip:`."""

    frames: int = checked_field(128, "frames per clip, sampled uniformly by time", minimum=1, maximum=4096)
    chunks: int = checked_field(16, "T, equal consecutive chunks of time", minimum=1, maximum=1024)
    size: int = checked_field(224, "px: the short side is scaled to it, then the centre is cropped", minimum=16, maximum=1024)
    tubes: tuple[Tube, ...] = checked_field(CHUNK_TUBES, "`chunk`, `tubevit`, or a list of kernel/stride/offset/space_to_depth")
    audio: AudioGeometry = checked_field(factory=AudioGeometry, help="the spectrogram")
    views: int = checked_field(1, "spans and crops per training clip; view 0 is the centre", minimum=1, maximum=64)
    min_span_s: float = checked_field(
        0.0, "seconds: a shorter segment takes this much context around its middle (EPIC-SOUNDS: 10)", minimum=0
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.frames % self.chunks:
            near = [c for c in range(1, self.frames + 1) if self.frames % c == 0 and 4 <= self.frames // c <= 64]
            raise FieldError("chunks", f"{self.frames} frames do not divide into {self.chunks} equal chunks; chunks that do: {near}")
        if not 4 <= self.frames_per_chunk <= 64:
            raise FieldError(
                "chunks", f"{self.frames} frames / {self.chunks} chunks = {self.frames_per_chunk} frames per chunk; 4 to 64 are allowed"
            )
        if not self.tubes:
            raise FieldError("tubes", "at least one tube is needed")
        if self.frames_per_chunk < SHORT_CHUNK:
            object.__setattr__(self, "tubes", tuple(tube.within(self.frames_per_chunk) for tube in self.tubes))
        for tube in self.tubes:
            if 0 in tube.grid(*self.chunk_shape):
                frames, height, width = self.chunk_shape
                raise FieldError(
                    "tubes",
                    f"{tube.describe()} at offset {tube.offset} with footprint {tube.footprint} yields no token in a chunk of "
                    f"{frames} frames of {height}x{width} px; use fewer chunks, a larger size, or other tubes",
                )

    @property
    def frames_per_chunk(self) -> int:
        """F."""
        return self.frames // self.chunks

    @property
    def chunk_shape(self) -> Triple:
        return self.frames_per_chunk, self.size, self.size

    @cached_property
    def tube_tokens(self) -> tuple[int, ...]:
        """Tokens per chunk of each tube kind."""
        return tuple(a * b * c for a, b, c in (tube.grid(*self.chunk_shape) for tube in self.tubes))

    @property
    def video_tokens(self) -> int:
        return sum(self.tube_tokens)

    @property
    def audio_tokens(self) -> int:
        return self.audio.tokens

    @property
    def tokens_per_chunk(self) -> int:
        """N."""
        return self.video_tokens + self.audio_tokens

    def to_plain(self) -> dict:
        """As JSON-ready dicts and lists; `from_plain` reads it back."""
        return to_plain(self)

    @staticmethod
    def from_plain(plain: dict) -> ClipGeometry:
        values = dict(plain)
        values["tubes"] = tuple(Tube(**{key: tuple(value) for key, value in tube.items()}) for tube in values["tubes"])
        values["audio"] = AudioGeometry(**values["audio"])
        return ClipGeometry(**values)

    @property
    def folder_name(self) -> str:
        """The default shard folder: readable, and different for every geometry."""
        name = f"{self.frames}f-{self.chunks}c-{self.size}px"
        rest = {key: value for key, value in self.to_plain().items() if key not in ("frames", "chunks", "size")}
        if rest != {key: value for key, value in ClipGeometry().to_plain().items() if key in rest}:
            name += "-" + hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:8]
        return name

    def differences(self, other: ClipGeometry) -> list[str]:
        """One line per key that differs, `clip.size: 224 here, 112 there`."""
        mine, theirs = _flatten(self.to_plain()), _flatten(other.to_plain())
        different = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
        return [f"clip.{key}: {mine.get(key)} here, {theirs.get(key)} there" for key in different]


def _flatten(plain: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
