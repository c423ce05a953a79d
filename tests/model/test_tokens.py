"""Tube and spectrogram tokens, positions, the encoder."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from mirasol_cli.fields import FieldError
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.model.config import EncoderConfig
from mirasol_cli.model.layers import key_mask, sine_cosine
from mirasol_cli.model.tokens import Encoder, SpectrogramTokens, TubeTokens, mirror_tubes, tube_positions
from tests.small_model import geometry


def cut(video_THWC: torch.Tensor, tube: Tube) -> torch.Tensor:
    """Straight-line tube cutter: [N, P], space-to-depth group outermost, then kernel t, h, w, then colour."""
    (kt, kh, kw), (st, sh, sw) = tube.kernel, tube.stride
    rows = []
    for t, y, x in product(*(range(count) for count in tube.grid(*video_THWC.shape[:3]))):
        kernels = []
        for gt in range(tube.space_to_depth[0]):
            for gh in range(tube.space_to_depth[1]):
                for gw in range(tube.space_to_depth[2]):
                    at = t * st + tube.offset[0] + gt * tube.step[0]
                    ay = y * sh + tube.offset[1] + gh * tube.step[1]
                    ax = x * sw + tube.offset[2] + gw * tube.step[2]
                    kernels.append(video_THWC[at : at + kt, ay : ay + kh, ax : ax + kw].reshape(-1))
        rows.append(torch.cat(kernels))
    return torch.stack(rows)


@pytest.mark.parametrize("width", [12, 13, 24, 46, 192, 253, 256, 448, 640, 768, 1024, 1280])
@pytest.mark.parametrize("shape", [(8, 224, 224), (4, 64, 160), (16, 96, 32)])
def test_positions_are_distinct_for_every_width_on_any_grid(width: int, shape: tuple[int, int, int]) -> None:
    tube = Tube(kernel=(1, 16, 16), stride=(4, 16, 16))
    centres = tube.centres(*shape)
    table = tube_positions(centres, width)
    assert table.shape == (len(centres), width)
    distance = torch.cdist(table.double(), table.double()) + 9 * torch.eye(len(table))
    assert distance.min() > 1e-2
    assert (table[:, width - width % 6 :] == 0).all()


def test_positions_follow_the_equations_channel_by_channel() -> None:
    t, y, x = 4.0, 24.0, 40.0
    row = tube_positions([(t, y, x)], 27)[0]
    for j in range(4):
        omega = 10000.0 ** (-j / 4)
        expected = torch.tensor([t * omega, x * omega, y * omega])
        torch.testing.assert_close(row[6 * j : 6 * j + 6 : 2], expected.sin())
        torch.testing.assert_close(row[6 * j + 1 : 6 * j + 6 : 2], expected.cos())
    assert (row[24:] == 0).all()


def test_equal_centres_have_equal_positions() -> None:
    large, small = Tube(kernel=(4, 16, 16), stride=(4, 16, 16)), Tube(kernel=(2, 8, 8), stride=(4, 16, 16), offset=(1, 4, 4))
    assert torch.equal(tube_positions(large.centres(8, 64, 64), 48), tube_positions(small.centres(8, 64, 64), 48))


def test_spectrogram_positions_are_distinct_on_a_non_square_grid() -> None:
    tokens = SpectrogramTokens(AudioGeometry(n_mels=64, columns=256, patch_stride=10), 24)
    table = tokens.position_ND
    assert table.shape[0] == 5 * 25
    assert (torch.cdist(table, table) + 9 * torch.eye(len(table))).min() > 1e-2


@pytest.mark.parametrize("tube", ClipGeometry().tubes, ids=lambda tube: tube.describe())
def test_linear_on_tubes_is_a_strided_3d_convolution(tube: Tube) -> None:
    shape = ClipGeometry(frames=8, chunks=1, size=64, tubes=(tube,))
    tokens = TubeTokens(shape, 48)
    video = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    ours = tokens([cut(video, tube)[None, None]])[0, 0] - tokens.kind[0] - tokens.position_ND

    linear = tokens.maps[0]
    weight = linear.weight.unflatten(1, (*tube.kernel, 3)).permute(0, 4, 1, 2, 3)
    normal = ((video.float() / 255 - 0.5) / 0.5).permute(3, 0, 1, 2)
    t, y, x = tube.offset
    grid = F.conv3d(normal[None, :, t:, y:, x:], weight, linear.bias, stride=tube.step)[0]
    gt, gh, gw = tube.space_to_depth
    nt, nh, nw = tube.grid(8, 64, 64)
    grid = grid[:, : nt * gt, : nh * gh, : nw * gw].reshape(-1, nt, gt, nh, gh, nw, gw)
    theirs = grid.permute(1, 3, 5, 2, 4, 6, 0).reshape(nt * nh * nw, -1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tube", [*ClipGeometry().tubes, Tube(kernel=(2, 4, 8), stride=(4, 32, 32), space_to_depth=(1, 2, 4))])
def test_mirrored_tubes_are_the_tubes_of_the_mirrored_video(tube: Tube) -> None:
    video = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    tokens = mirror_tubes(cut(video, tube), tube)
    mirrored = video.flip(2)
    for (t, y, x), token in zip(tube.centres(8, 64, 64), tokens, strict=True):
        start = [int(c - f / 2) for c, f in zip((t, y, 64 - x), tube.footprint, strict=True)]
        there = mirrored[start[0] :, start[1] :, start[2] :]
        expected = [
            there[i * tube.step[0] :, j * tube.step[1] :, k * tube.step[2] :][: tube.kernel[0], : tube.kernel[1], : tube.kernel[2]]
            for i, j, k in product(*(range(g) for g in tube.space_to_depth))
        ]
        assert torch.equal(token, torch.cat([kernel.reshape(-1) for kernel in expected]))


def test_flip_of_one_clip_mirrors_its_pixels_and_its_positions_only() -> None:
    shape = geometry(2)
    tokens = TubeTokens(shape, 24)
    tubes = [
        torch.randint(0, 256, (2, 2, n, t.numbers_per_token), dtype=torch.uint8)
        for n, t in zip(shape.tube_tokens, shape.tubes, strict=True)
    ]
    plain, flipped = tokens(tubes), tokens(tubes, torch.tensor([False, True]))
    assert torch.equal(plain[0], flipped[0])
    mirrored = tokens([mirror_tubes(x, t) for x, t in zip(tubes, shape.tubes, strict=True)])
    torch.testing.assert_close(flipped[1] - mirrored[1], (tokens.mirrored_position_ND - tokens.position_ND).expand(2, -1, -1))
    centres = [(t, y, 32 - x) for tube in shape.tubes for t, y, x in tube.centres(*shape.chunk_shape)]
    assert torch.equal(tokens.mirrored_position_ND, tube_positions(centres, 24))


def test_content_and_position_are_of_comparable_scale_at_the_start() -> None:
    shape = ClipGeometry(frames=8, chunks=1, size=64)
    tokens, audio = TubeTokens(shape, 192), SpectrogramTokens(shape.audio, 192)
    tubes = [
        torch.randint(0, 256, (4, 1, n, t.numbers_per_token), dtype=torch.uint8)
        for n, t in zip(shape.tube_tokens, shape.tubes, strict=True)
    ]
    for content, position in (
        (tokens(tubes) - tokens.position_ND, tokens.position_ND),
        (audio(torch.randn(4, 1, 128, 256)) - audio.position_ND, audio.position_ND),
    ):
        assert 0.3 < content.std() / position.std() < 3


def test_a_width_that_space_to_depth_does_not_divide_is_refused() -> None:
    with pytest.raises(FieldError, match="50 is not divisible by the 4 kernels"):
        TubeTokens(ClipGeometry(), 50)


def test_positions_are_no_part_of_the_state_dict() -> None:
    assert not [name for name in TubeTokens(geometry(), 24).state_dict() if "position" in name]


def encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(width=24, layers=3, heads=2, mlp_dim=48, **changes))


def test_masked_tokens_change_nothing_and_a_fully_masked_chunk_is_finite() -> None:
    trunk = encoder().eval()
    x = torch.randn(2, 2, 7, 24)
    valid = torch.ones(2, 2, 7, dtype=torch.bool)
    valid[0, 0, 4:] = False
    valid[1, 1] = False
    out = trunk(x, valid)
    torch.testing.assert_close(out[0, 0, :4], trunk(x[:1, :1, :4])[0, 0])
    torch.testing.assert_close(out[0, 1], trunk(x)[0, 1])
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())


def test_no_query_is_left_without_a_key() -> None:
    """Not every attention kernel turns a softmax over nothing into zeros."""
    mask = key_mask(torch.tensor([[True, False, False], [False, False, False]]))
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[True, False, False], [True, True, True]]


def test_no_mask_is_the_same_as_an_open_mask() -> None:
    trunk, x = encoder().eval(), torch.randn(2, 2, 7, 24)
    torch.testing.assert_close(trunk(x), trunk(x, torch.ones(2, 2, 7, dtype=torch.bool)))


def test_stochastic_depth_and_dropout_act_in_training_only() -> None:
    x = torch.randn(64, 1, 5, 24)
    for trunk in (encoder(drop_path=0.5), encoder(dropout=0.3)):
        assert not torch.equal(trunk(x), trunk(x))
        trunk.eval()
        assert torch.equal(trunk(x), trunk(x))
        assert torch.equal(trunk(x), encoder().eval()(x))
    dropped = encoder(drop_path=0.5)
    assert [block.drop_path for block in dropped.blocks] == [0, 0.25, 0.5]


def test_frequencies_do_not_underflow() -> None:
    """With the exponent printed in the paper, channels beyond the first few would be constant."""
    table = sine_cosine(torch.arange(224.0)[:, None] + 0.5, 256)
    assert (table[:, :254].std(0) > 1e-6).all()


@pytest.mark.parametrize("frames", [4, 5, 6, 7])
def test_the_shipped_tubes_fit_chunks_of_four_to_seven_frames(frames: int) -> None:
    """Every kind gives as many tokens as in a chunk of 8 frames, from no frame that the chunk lacks."""
    short, usual = (ClipGeometry(frames=4 * each, chunks=4, size=64) for each in (frames, 8))
    assert short.tube_tokens == usual.tube_tokens
    for tube in short.tubes:
        assert tube.footprint[0] <= frames
        assert tube.space_to_depth[0] == 1
    assert [tube.kernel[1:] for tube in short.tubes] == [tube.kernel[1:] for tube in usual.tubes]
    assert ClipGeometry.from_plain(short.to_plain()) == short
    tokens = TubeTokens(short, 24)
    sizes = zip(short.tube_tokens, short.tubes, strict=True)
    pixels = [torch.zeros(1, 4, count, tube.numbers_per_token, dtype=torch.uint8) for count, tube in sizes]
    assert tokens(pixels).shape == (1, 4, short.video_tokens, 24)
