"""Frames picked by time: every clip's frames carry their number, so the right answer is known by construction."""

import av
import numpy as np
import pytest

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import decord_reader, pyav_reader
from mirasol_cli.media.decode import decode_clips, probe
from mirasol_cli.media.display import Orientation
from mirasol_cli.media.sampling import ClipRequest
from tests.media.made_clips import clicks, read_barcode, regular, write_clip

GEOMETRY = ClipGeometry(frames=32, chunks=4, size=64)


DECORDS = ("h264.mp4", "variable.mp4", "slow.mp4", "turned90.mp4", "turned180.mp4", "turned270.mp4")
"""What decord reads wrong or not at all."""


def variable_times() -> list[float]:
    """4 s at 25 frames a second, then 8 s at 4: what an index times a mean rate gets wrong."""
    return regular(100, 25) + regular(32, 4, 4.0)


def expected_numbers(starts_s, times_s) -> np.ndarray:
    return np.clip(np.searchsorted(starts_s, np.asarray(times_s) + 1e-3, side="right") - 1, 0, None)


def decode(path, request=None, geometry=GEOMETRY, **options):
    (clip,) = decode_clips(path, [request or ClipRequest()], geometry, **options)
    if isinstance(clip, MediaError):
        raise clip
    return clip


CLIPS = {
    "h264.mp4": dict(times=regular(250, 25), options={"bf": "3"}, keyframe_every=250),
    "h264.mkv": dict(times=regular(120, 25), options={"bf": "2"}, keyframe_every=50),
    "mpeg4.avi": dict(times=regular(100, 25), codec="mpeg4"),
    "vp9.webm": dict(times=regular(50, 25), codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    "variable.mp4": dict(times=variable_times(), options={"bf": "2"}),
    "variable.mkv": dict(times=variable_times()),
    "slow.mp4": dict(times=regular(46, 8.8)),
    "turned90.mp4": dict(times=regular(50, 25), rotation=90),
    "turned180.mp4": dict(times=regular(50, 25), rotation=180),
    "turned270.mp4": dict(times=regular(50, 25), rotation=-90),
    "late.mp4": dict(times=regular(100, 25, 2.0), audio=clicks([1.0], 6.0)),
    "transport.ts": dict(times=regular(250, 25), options={"bf": "2"}, keyframe_every=50, audio=clicks([1.0], 10.0)),
    "program.mpg": dict(times=regular(100, 25), codec="mpeg2video"),
    "av1.mp4": dict(times=regular(50, 25), codec="libsvtav1", options={"preset": "12"}),
    "moving.gif": dict(times=regular(40, 10), codec="gif", pix_fmt="gray"),
    "late.mkv": dict(times=regular(100, 25, 2.0), audio=clicks([1.0], 6.0), audio_codec="libopus"),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    made = {}

    def clip(name):
        if name not in made:
            recipe = dict(CLIPS[name])
            if recipe.get("codec", "libx264") not in av.codecs_available:
                pytest.skip(f"this build of PyAV cannot write {recipe['codec']}")
            made[name] = write_clip(folder / name, recipe.pop("times"), **recipe)
        return made[name]

    return clip


@pytest.mark.parametrize("use_decord", [True, False], ids=["decord", "pyav"])
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_on_screen(clips, name, use_decord, monkeypatch):
    other = pyav_reader if use_decord and name in DECORDS else decord_reader
    monkeypatch.setattr(other, "read_frames", lambda *_: pytest.fail("the wrong reader"))
    clip = decode(clips(name), use_decord=use_decord)
    starts = np.array(CLIPS[name]["times"])
    times = np.linspace(*clip.span_s, 65)[1::2]
    assert clip.frames.shape == (32, 64, 64, 3)
    assert clip.frames.dtype == np.uint8
    shift = clip.span_s[0] - starts[0]  # where a format has no way to say that a coder begins early, sound begins at its run-up
    assert abs(shift) < (0.03 if name == "transport.ts" else 2e-3)
    starts += shift
    wanted = expected_numbers(starts, times)
    assert [read_barcode(frame) for frame in clip.frames] == wanted.tolist()
    there = starts[wanted] <= times + 1e-3
    np.testing.assert_allclose(clip.frame_times_s, np.where(there, starts[wanted], np.nan), atol=1.1e-3)
    assert clip.frame_valid.tolist() == (there & (np.diff(wanted, prepend=-1) != 0)).tolist()
    assert abs(clip.span_s[1] - (2 * starts[-1] - starts[-2])) < 0.1 or name.startswith("variable")


@pytest.mark.parametrize("name", ["turned90.mp4", "turned270.mp4", "turned180.mp4", "h264.mp4"])
def test_both_readers_show_the_same_pixels(clips, name):
    first, second = (decode(clips(name), use_decord=use).frames.astype(int) for use in (True, False))
    assert np.abs(first - second).mean() < 1.0


def test_probe_tells_what_is_displayed(clips):
    info = probe(clips("turned90.mp4"))
    assert (info.width, info.height, info.video_codec) == (192, 128, "h264")
    assert info.orientation == Orientation(transpose=True, flip_y=True)
    assert info.seconds == pytest.approx(2.0, abs=0.05)
    late = probe(clips("late.mp4"))
    assert late.start_s == pytest.approx(2.0, abs=0.01)
    assert late.audio_start_s == pytest.approx(0.0, abs=0.01)


def test_spans_of_a_long_source_are_sought_in_one_opening(tmp_path, monkeypatch):
    path = write_clip(
        tmp_path / "long.mp4", regular(2000, 10), size=(96, 64), keyframe_every=40, options={"preset": "ultrafast", "bf": "2"}
    )
    opened, decoded = [], []
    original, frames = pyav_reader.open_media, pyav_reader.decoded_frames
    monkeypatch.setattr(pyav_reader, "open_media", lambda p: opened.append(p) or original(p))
    monkeypatch.setattr(pyav_reader, "decoded_frames", lambda *a: (decoded.append(f) or f for f in frames(*a)))
    spans = [(150.0, 153.2), (20.0, 23.2), (21.6, 24.8), (0.0, 3.2), (196.0, 250.0)]
    clips = list(decode_clips(path, [ClipRequest(start_s=a, end_s=b) for a, b in spans], GEOMETRY))
    assert len(opened) == 1
    assert len(decoded) < 400, "seeking decodes the neighbourhood of the spans, not the source"
    for clip, (start, end) in zip(clips, spans, strict=True):
        end = min(end, 200.0)
        assert clip.span_s == pytest.approx((start, end))
        times = start + (np.arange(32) + 0.5) * (end - start) / 32
        assert [read_barcode(frame) for frame in clip.frames] == expected_numbers(regular(2000, 10), times).tolist()


def test_hours_are_sampled_by_seeking(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "sparse.mp4", regular(1800, 2.0), size=(96, 64), keyframe_every=10, options={"preset": "ultrafast"})
    decoded, frames = [], pyav_reader.decoded_frames
    monkeypatch.setattr(pyav_reader, "decoded_frames", lambda *a: (decoded.append(f) or f for f in frames(*a)))
    clip = decode(path)
    times = (np.arange(32) + 0.5) * 900 / 32
    assert [read_barcode(frame) for frame in clip.frames] == expected_numbers(regular(1800, 2.0), times).tolist()
    assert len(decoded) < 600


def test_one_frame_is_a_very_short_clip(tmp_path):
    for use_decord in (True, False):
        clip = decode(write_clip(tmp_path / "one.mp4", [0.0]), use_decord=use_decord)
        assert clip.frame_valid.tolist() == [True] + [False] * 31
        assert {read_barcode(frame) for frame in clip.frames} == {0}


def test_few_frames_are_repeated_and_masked(tmp_path):
    clip = decode(write_clip(tmp_path / "few.mp4", regular(8, 8)))
    assert clip.frame_valid.sum() == 8
    assert [read_barcode(frame) for frame in clip.frames[clip.frame_valid]] == list(range(8))
    assert [read_barcode(frame) for frame in clip.frames] == np.repeat(np.arange(8), 4).tolist()


def test_before_the_picture_begins_there_is_none(clips):
    clip = decode(clips("late.mp4"), ClipRequest(start_s=0.0, end_s=4.0))
    assert not clip.frame_valid[:16].any()
    assert clip.frame_valid[16:].all()
    assert read_barcode(clip.frames[16]) == 1  # 2.0625 s: the second frame


def test_half_a_file_is_refused_or_masked(tmp_path):
    times = regular(250, 25)
    for name, options in {"half.mp4": {"movflags": "faststart"}, "half.mkv": {}}.items():
        whole = write_clip(tmp_path / name, times, keyframe_every=10, mux_options=options, audio=clicks([5.0], 10.0))
        path = tmp_path / f"cut-{name}"
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
        for use_decord in (True, False):
            with pytest.raises(MediaError, match=r"truncated: decoded \d\.\d of 10\.0 s") as caught:
                decode(path, use_decord=use_decord)
            assert "--keep-truncated" in caught.value.hint
            clip = decode(path, use_decord=use_decord, keep_truncated=True)
            kept = int(clip.frame_valid.sum())
            assert 10 < kept < 26
            assert clip.frame_valid[:kept].all()
            assert not clip.frame_valid[kept:].any()
            wanted = expected_numbers(times, (np.arange(kept) + 0.5) * 10 / 32)
            assert [read_barcode(frame) for frame in clip.frames[:kept]] == wanted.tolist()


def test_a_last_picture_that_stays_is_no_truncation(tmp_path):
    path = write_clip(tmp_path / "slide.mkv", regular(50, 25), audio=clicks([9.0], 10.0), audio_codec="libopus")
    clip = decode(path, ClipRequest(start_s=0.0, end_s=2.0))
    assert clip.frame_valid.all()
    info = probe(path)
    assert info.seconds == pytest.approx(2.0, abs=0.1), "the picture's own length, not the container's"


def test_views_are_drawn_from_the_key(clips):
    geometry = ClipGeometry(frames=32, chunks=4, size=64, views=3)
    requests = [ClipRequest(key=key, view=view) for key in "ab" for view in range(geometry.views)]
    first, second = (list(decode_clips(clips("h264.mp4"), requests, geometry)) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        assert one.span_s == two.span_s
        assert np.array_equal(one.frames, two.frames)
    assert first[0].span_s == first[3].span_s == pytest.approx((0.0, 10.0))
    spans = [clip.span_s for clip in first]
    assert len({spans[k] for k in (0, 1, 2, 4, 5)}) == 5
    assert all(spans[k][0] > 0.01 for k in (1, 2, 4, 5)), "a view lies anywhere in the span"
    assert all(start >= 0 and end <= 10.0 + 1e-6 and end - start >= 8.0 - 1e-6 for start, end in spans)
    assert np.array_equal(first[0].frames, decode(clips("h264.mp4")).frames), "view 0 does not depend on the number of views"
    for clip in first:
        times = np.linspace(*clip.span_s, 65)[1::2]
        np.testing.assert_allclose(clip.frame_times_s, np.floor((times + 1e-3) * 25) / 25, atol=1e-6)


def test_a_short_segment_takes_context_around_it(clips):
    geometry = ClipGeometry(frames=32, chunks=4, size=64, min_span_s=4.0)
    assert decode(clips("h264.mp4"), ClipRequest(start_s=5.0, end_s=6.0), geometry).span_s == pytest.approx((3.5, 7.5))
    assert decode(clips("h264.mp4"), ClipRequest(start_s=0.0, end_s=1.0), geometry).span_s == pytest.approx((0.0, 4.0))
    assert decode(clips("h264.mp4"), ClipRequest(start_s=9.5, end_s=9.9), geometry).span_s == pytest.approx((6.0, 10.0))
    assert decode(clips("h264.mp4"), ClipRequest(start_s=1.0, end_s=8.0), geometry).span_s == pytest.approx((1.0, 8.0))


def test_impossible_spans_cost_themselves_only(clips):
    requests = [ClipRequest(start_s=a, end_s=b) for a, b in ((20.0, 30.0), (5.0, 5.0), (6.0, 2.0), (float("nan"), 3.0), (1.0, 2.0))]
    *bad, good = decode_clips(clips("h264.mp4"), [*requests[:-1], requests[-1]], GEOMETRY)
    assert [error.reason for error in bad] == [
        "span 20.00 to 30.00 s lies outside the video of 10.00 s",
        "span 5.00 to 5.00 s is empty",
        "span 6.00 to 2.00 s is empty",
        "span nan to 3.00 s is empty",
    ]
    assert good.frame_valid.sum() == 25
