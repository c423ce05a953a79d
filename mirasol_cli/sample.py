"""What a stored clip holds: the table of its fields, and everything that follows from it.

Media fills a sample, the shard writer stores it and checks it, the collate reads it, controls mask it and previews draw it, all by
this table. A new field is one line of FIELDS, and its value where `media.clip.clip_sample` fills a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

from mirasol_cli.geometry import THUMBNAIL_FRAMES, THUMBNAIL_SIZE, ClipGeometry


class AudioState(IntEnum):
    """The values of the field `audio_state`."""

    NONE = 0  # no sound in this span
    SILENT = 1  # a track that is silent all through it
    AUDIBLE = 2  # sound

    @property
    def word(self) -> str:
        """As reports, lists and `--json` say it."""
        return self.name.lower()


@dataclass(frozen=True)
class Field:
    """One field of a sample. `shape` is written in letters of the legend (see `geometry`) and numbers; `T` first: one entry per chunk.

    `mask` names the field whose zeros say where this one holds nothing; a mask masks itself. Fields without a mask say when the clip
    plays, not what it shows: they stay where audio or video is taken away, and where chunks change places.
    """

    name: str
    dtype: str
    shape: str
    mask: str = ""

    @property
    def per_chunk(self) -> bool:
        return self.shape.startswith("T")


TUBES = "tubes"
"""The one field that a sample holds several times: `tubes.0`, `tubes.1` ..., one per kind of tube, with its own N and P."""
VIDEO, AUDIO = "frame_valid", "audio_state"
"""The masks of all video fields and of all audio fields."""
FIELDS = (
    Field(TUBES, "uint8", "T N P", mask=VIDEO),  # RGB under each tube
    Field("thumbnails", "uint8", f"T {THUMBNAIL_FRAMES} {THUMBNAIL_SIZE} {THUMBNAIL_SIZE} 3", mask=VIDEO),  # RGB
    Field("mel", "float16", "T Z S", mask="mel_valid"),  # normalised log-mel spectrogram
    Field("mel_valid", "uint8", "T S", mask=AUDIO),  # 1: the column holds sound
    Field("frame_valid", "uint8", "T F", mask=VIDEO),  # 1: a frame that differs from the one before it
    Field("frame_times", "float64", "T F"),  # s, when the frame comes on screen; NaN where there is none
    Field("span", "float64", "2"),  # s, start and end of what was read
    Field("audio_state", "uint8", "", mask=AUDIO),  # AudioState
)
"""In the order in which a row's checksum takes them."""


ITEM_BYTES = {"uint8": 1, "float16": 2, "float32": 4, "float64": 8}


def tube_field(kind: int) -> str:
    return f"{TUBES}.{kind}"


def field_shapes(
    geometry: ClipGeometry, *, chunks: int | None = None, fields: Sequence[Field] | None = None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (numpy dtype, shape) of every field of one sample, or of some `fields`, in the order of the table.

    Args:
        chunks: T, where it is not the geometry's.
    """
    sizes = {
        "T": geometry.chunks if chunks is None else chunks, "F": geometry.frames_per_chunk,
        "Z": geometry.audio.n_mels, "S": geometry.audio.columns,
    }  # fmt: skip
    shapes = {}
    for field in FIELDS if fields is None else fields:
        if field.name == TUBES:
            for kind, (tube, count) in enumerate(zip(geometry.tubes, geometry.tube_tokens, strict=True)):
                shapes[tube_field(kind)] = field.dtype, _shape(field, sizes | {"N": count, "P": tube.numbers_per_token})
        else:
            shapes[field.name] = field.dtype, _shape(field, sizes)
    return shapes


def bytes_per_clip(geometry: ClipGeometry) -> int:
    """Bytes that one view of a clip takes in a shard. The few that a clip has once, not per chunk, do not count."""
    shapes = field_shapes(geometry, fields=[field for field in FIELDS if field.per_chunk])
    return sum(prod(shape) * ITEM_BYTES[dtype] for dtype, shape in shapes.values())


def fields_under(*masks: str) -> tuple[Field, ...]:
    """The fields that hold nothing where one of `masks` is zero, the masks themselves among them."""
    found = set(masks)
    while more := {field.name for field in FIELDS if field.mask in found} - found:
        found |= more
    return tuple(field for field in FIELDS if field.name in found)


def names_of(fields: Sequence[Field], sample: Any) -> list[str]:
    """The names that `fields` have in a sample: TUBES has one for each kind of tube."""
    wanted = {field.name for field in fields}
    return [name for name in sample if name.split(".")[0] in wanted]


def _shape(field: Field, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[size] if size in sizes else int(size) for size in field.shape.split())
