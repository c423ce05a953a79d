import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mirasol_cli.geometry import TUBEVIT_TUBES, ClipGeometry, Tube
from mirasol_cli.media.tubes import cut_tubes, thumbnail_frames, thumbnails, video_valid

GEOMETRIES = {
    "chunk tubes": ClipGeometry(frames=16, chunks=2, size=64),
    "odd": ClipGeometry(
        frames=18, chunks=2, size=50,
        tubes=(
            Tube(kernel=(2, 5, 7), stride=(4, 6, 8), offset=(1, 3, 2), space_to_depth=(2, 1, 2)),
            Tube(kernel=(1, 8, 8), stride=(3, 8, 8)),
        ),
    ),
}  # fmt: skip


def random_frames(geometry, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (geometry.chunks, *geometry.chunk_shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_linear_map_of_tubes_is_a_convolution(name):
    geometry = GEOMETRIES[name]
    frames = random_frames(geometry)
    generator = torch.Generator().manual_seed(1)
    for tube, cut in zip(geometry.tubes, cut_tubes(frames, geometry), strict=True):
        kernel = torch.randn(5, 3, *tube.kernel, generator=generator, dtype=torch.float64)
        a, b, c = tube.offset
        video = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).double()[:, :, a:, b:, c:]
        convolved = F.conv3d(video, kernel, stride=tube.step)
        # space-to-depth: neighbouring positions of one token become its channels, group by group
        gt, gh, gw = tube.space_to_depth
        nt, nh, nw = tube.grid(*geometry.chunk_shape)
        convolved = convolved[:, :, : nt * gt, : nh * gh, : nw * gw].reshape(-1, 5, nt, gt, nh, gh, nw, gw)
        expected = convolved.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(geometry.chunks, nt * nh * nw, gt * gh * gw * 5)
        pixels = torch.from_numpy(cut).double().reshape(*cut.shape[:2], tube.kernels_per_token, tube.kernel_numbers)
        linear = pixels @ kernel.permute(0, 2, 3, 4, 1).reshape(5, -1).T
        torch.testing.assert_close(linear.flatten(2), expected)


def test_tubevit_gives_539_tokens():
    geometry = ClipGeometry(frames=32, chunks=1, size=224, tubes=TUBEVIT_TUBES)
    cut = cut_tubes(random_frames(geometry), geometry)
    assert sum(part.shape[1] for part in cut) == 539 == geometry.video_tokens
    assert [part.shape[2] for part in cut] == [tube.numbers_per_token for tube in geometry.tubes]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_tokens_lie_where_the_geometry_says(name):
    """Pixels hold their own coordinate; the mean over a token's first and last pixel is its centre."""
    geometry = GEOMETRIES[name]
    for axis in range(3):
        shape = [1, *[1] * 3, 1]
        shape[axis + 1] = geometry.chunk_shape[axis]
        ramp = np.broadcast_to(
            np.arange(geometry.chunk_shape[axis], dtype=np.uint8).reshape(shape), (geometry.chunks, *geometry.chunk_shape, 3)
        )
        for tube, cut in zip(geometry.tubes, cut_tubes(ramp, geometry), strict=True):
            centres = np.array([centre[axis] for centre in tube.centres(*geometry.chunk_shape)])
            middle = (cut.min(axis=2).astype(float) + cut.max(axis=2) + 1) / 2
            np.testing.assert_array_equal(middle, np.broadcast_to(centres, middle.shape))


def test_chunks_do_not_mix():
    geometry = GEOMETRIES["chunk tubes"]
    frames = random_frames(geometry)
    other = frames.copy()
    other[1] ^= 255
    for before, after in zip(
        [*cut_tubes(frames, geometry), thumbnails(frames)], [*cut_tubes(other, geometry), thumbnails(other)], strict=True
    ):
        assert np.array_equal(before[0], after[0])
        assert not np.array_equal(before[1], after[1])


def test_torch_frames_are_accepted_and_wrong_ones_refused():
    geometry = GEOMETRIES["chunk tubes"]
    frames = random_frames(geometry)
    for ours, theirs in zip(cut_tubes(frames, geometry), cut_tubes(torch.from_numpy(frames), geometry), strict=True):
        assert np.array_equal(ours, theirs)
    with pytest.raises(ValueError, match="the geometry asks for uint8"):
        cut_tubes(frames[:, :4], geometry)
    with pytest.raises(ValueError, match="float32"):
        cut_tubes(frames.astype(np.float32), geometry)


@pytest.mark.parametrize("size", [16, 50, 64, 224, 300])
def test_thumbnails_are_area_means(size):
    frames = np.random.default_rng(size).integers(0, 256, (1, 5, size, size, 3), dtype=np.uint8)
    small = thumbnails(frames)
    assert small.shape == (1, 4, 32, 32, 3)
    assert small.dtype == np.uint8
    fine = np.repeat(np.repeat(frames[:, thumbnail_frames(5)], 32, axis=2), 32, axis=3) if size < 64 else None
    if fine is not None:
        blocks = fine.reshape(1, 4, 32, size, 32, size, 3).sum(axis=(3, 5), dtype=np.int64)
        assert np.array_equal(small, (blocks + size * size // 2) // (size * size))
    elif size % 32 == 0:
        blocks = frames[:, thumbnail_frames(5)].reshape(1, 4, 32, size // 32, 32, size // 32, 3).mean(axis=(3, 5))
        assert np.abs(small - blocks).max() <= 0.5
    flat = np.full((1, 4, size, size, 3), 201, np.uint8)
    assert (thumbnails(flat) == 201).all()


def test_thumbnail_frames_spread_over_the_chunk():
    assert thumbnail_frames(8).tolist() == [1, 3, 5, 7]
    assert thumbnail_frames(4).tolist() == [0, 1, 2, 3]
    assert thumbnail_frames(64).tolist() == [8, 24, 40, 56]


def test_a_token_is_valid_when_it_sees_a_real_frame():
    geometry = dataclasses.replace(GEOMETRIES["chunk tubes"], frames=32)  # 16 frames to a chunk
    real = np.zeros((2, 16), bool)
    real[0, 0] = real[1, 9] = True
    valid = video_valid(real, geometry)
    assert valid.shape == (2, geometry.video_tokens)
    position = 0
    for tube, count in zip(geometry.tubes, geometry.tube_tokens, strict=True):
        centres = tube.centres(*geometry.chunk_shape)
        for chunk, frame in ((0, 0), (1, 9)):
            expected = [t - tube.footprint[0] / 2 <= frame < t + tube.footprint[0] / 2 for t, _, _ in centres]
            assert valid[chunk, position : position + count].tolist() == expected
        position += count
    assert video_valid(np.ones((2, 16)), geometry).all()
    assert not video_valid(np.zeros((2, 16)), geometry).any()
