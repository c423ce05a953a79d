"""From frames to sparse video tubes (TubeViT 3.2 to 3.4) and thumbnails, as uint8 pixels, without arithmetic on tubes.

A tube token is a linear map of a tube's pixels, so the pixels are cut once and stored: the model multiplies them by its
kernel, which equals a 3-d convolution without padding.
"""

from __future__ import annotations

import numpy as np

from mirasol_cli.geometry import THUMBNAIL_FRAMES, THUMBNAIL_SIZE, ClipGeometry, Tube


def cut_tubes(frames_TFHWC: np.ndarray, geometry: ClipGeometry) -> list[np.ndarray]:
    """The pixels of every token of every tube kind.

    Args:
        frames_TFHWC: uint8 [T, F, size, size, 3] RGB (an array, or a CPU tensor).

    Returns:
        One uint8 [T, N_k, P_k] per tube kind. Tokens in the order of `Tube.centres` (frames, rows, columns); the P numbers
        of a token in the order of its kernels (space-to-depth group: frames, rows, columns), and inside each kernel
        frames, rows, columns, colours.
    """
    frames = np.ascontiguousarray(frames_TFHWC)
    expected = (geometry.chunks, *geometry.chunk_shape, 3)
    if frames.shape != expected or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, the geometry asks for uint8 {expected}")
    return [_cut(frames, tube) for tube in geometry.tubes]


def _cut(frames_TFHWC: np.ndarray, tube: Tube) -> np.ndarray:
    chunks, *extent, colours = frames_TFHWC.shape
    chunk_stride, *strides, colour_stride = frames_TFHWC.strides
    grid = tube.grid(*extent)
    first = frames_TFHWC[:, tube.offset[0] :, tube.offset[1] :, tube.offset[2] :]
    shape = (chunks, *grid, *tube.space_to_depth, *tube.kernel, colours)
    steps = (
        chunk_stride,
        *(stride * step for stride, step in zip(tube.stride, strides, strict=True)),
        *(apart * step for apart, step in zip(tube.step, strides, strict=True)),
        *strides,
        colour_stride,
    )
    windows = np.lib.stride_tricks.as_strided(first, shape, steps, writeable=False)
    return windows.reshape(chunks, grid[0] * grid[1] * grid[2], tube.numbers_per_token)


def video_valid(frame_valid_TF: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """bool [T, N_video]: a token is valid when its footprint holds at least one real frame; tubes in geometry order."""
    real = np.asarray(frame_valid_TF).astype(bool)
    parts = []
    for tube in geometry.tubes:
        along_time, rows, columns = tube.grid(*geometry.chunk_shape)
        starts = [tube.offset[0] + i * tube.stride[0] for i in range(along_time)]
        valid_TN = np.stack([real[:, start : start + tube.footprint[0]].any(axis=1) for start in starts], axis=1)
        parts.append(np.repeat(valid_TN, rows * columns, axis=1))
    return np.concatenate(parts, axis=1)


def thumbnail_frames(frames_per_chunk: int) -> np.ndarray:
    """int [4]: the frames of a chunk that become thumbnails, at the centres of four equal parts."""
    return ((np.arange(THUMBNAIL_FRAMES) + 0.5) * frames_per_chunk / THUMBNAIL_FRAMES).astype(int)


def thumbnails(frames_TFHWC: np.ndarray) -> np.ndarray:
    """uint8 [T, 4, 32, 32, 3] of uint8 [T, F, H, W, 3]: mean over the area of each thumbnail pixel, rounded half up.

    All sums are whole numbers (below 2^32 for pictures of up to 4096 px), so the bytes are the same everywhere.
    """
    frames = np.asarray(frames_TFHWC)
    chosen = frames[:, thumbnail_frames(frames.shape[1])]
    height, width = chosen.shape[2:4]
    shrunk = _area_sums(chosen.reshape(-1, height, width * 3), 255)
    totals = _area_sums(shrunk.reshape(-1, width, 3), 255 * height)
    area = height * width
    means = (totals + area // 2) // area
    return means.astype(np.uint8).reshape(*chosen.shape[:2], THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)


def _area_sums(numbers: np.ndarray, largest: int) -> np.ndarray:
    """[n, extent, m], whose numbers are at most `largest`, to [n, 32, m]: sums over extent / 32 places each, times 32."""
    extent = numbers.shape[1]
    weights = _area_weights(extent)
    first, rows = np.arange(THUMBNAIL_SIZE) * extent // THUMBNAIL_SIZE, np.arange(THUMBNAIL_SIZE)
    kind = np.uint16 if largest * extent < 1 << 16 else np.uint32
    sums: np.ndarray = np.zeros((len(numbers), THUMBNAIL_SIZE, numbers.shape[2]), kind)
    for k in range(int(np.count_nonzero(weights, axis=1).max())):
        place = np.minimum(first + k, extent - 1)
        weight: np.ndarray = np.where(first + k < extent, weights[rows, place], 0).astype(kind)
        under = numbers[:, k :: extent // THUMBNAIL_SIZE] if extent % THUMBNAIL_SIZE == 0 else numbers[:, place]  # a slice is faster
        sums += under.astype(kind) * weight[:, None]
    return sums


def _area_weights(extent: int) -> np.ndarray:
    """int [32, extent]: how much of each pixel lies under each thumbnail pixel; each row sums to `extent`."""
    low, high = np.arange(THUMBNAIL_SIZE)[:, None] * extent, np.arange(1, THUMBNAIL_SIZE + 1)[:, None] * extent
    left, right = np.arange(extent) * THUMBNAIL_SIZE, np.arange(1, extent + 1) * THUMBNAIL_SIZE
    return np.clip(np.minimum(high, right) - np.maximum(low, left), 0, None)
