"""How a decoded picture becomes the one that a person sees: turned, mirrored, and with square pixels. Pure arithmetic."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

WIDEST_PIXEL = 16
"""A pixel aspect ratio beyond this (or below its inverse) is damage, and pixels count as square."""


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a picture: transposed first, then mirrored left-right and top-bottom."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether no turn by itself gives this orientation."""
        return self.transpose ^ self.flip_x ^ self.flip_y

    def flipped(self, image_HWC: np.ndarray) -> np.ndarray:
        """A picture that is transposed already, as it is shown; a view, no copy."""
        return image_HWC[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def orientation_of(frame: Any) -> Orientation:
    """The orientation that the display matrix of a decoded frame asks for; upright where it has none or an invalid one.

    The matrix maps a point (x, y) of the picture to (a x + c y, b x + d y) on the screen (ISO 14496-12, track header box).
    An angle cannot say all of it: front cameras mirror, too.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None or side_data.buffer_size < 36:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side_data)[:36])
    straight, turned = (abs(a), abs(d)), (abs(b), abs(c))
    if not any(straight) and all(turned):
        return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)
    if not any(turned) and all(straight):
        return Orientation(flip_x=a < 0, flip_y=d < 0)
    return Orientation()  # a slant: no player shows it


def pixel_aspect(stream: Any) -> float:
    """Width of a stored pixel over its height, as container or codec state it; 1 where neither does."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if 1 / WIDEST_PIXEL <= ratio <= WIDEST_PIXEL else 1.0


def displayed_size(frame: Any, aspect: float, orientation: Orientation) -> tuple[int, int]:
    """(width, height) of `frame` on the screen in px; the side that the pixel aspect stretches grows, as players do it."""
    width, height = frame.width, frame.height
    if aspect > 1:
        width = max(1, round(width * aspect))
    elif aspect < 1:
        height = max(1, round(height / aspect))
    return (height, width) if orientation.transpose else (width, height)
