"""Sound at the right time: click tracks and tones whose place is known by construction."""

import numpy as np
import pytest

from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.audio import audio_windows
from mirasol_cli.media.clip import clip_sample
from mirasol_cli.media.decode import decode_clips
from mirasol_cli.media.probe import probe
from mirasol_cli.media.sampling import ClipRequest
from mirasol_cli.sample import AudioState
from tests.media.made_clips import clicks, regular, write_clip

GEOMETRY = ClipGeometry(frames=32, chunks=4, size=64)
RATE = 16000


def windows(path, edges_s):
    return list(audio_windows(path, probe(path, allow_audio_only=True), np.array(edges_s), RATE))


def loudest_s(waveform) -> float:
    envelope = np.convolve(np.abs(waveform), np.hanning(161), "same")
    return float(np.argmax(envelope)) / RATE


TRACKS = {"mp4": ("aac", 48000), "mkv": ("libopus", 48000), "avi": ("pcm_s16le", 8000), "mov": ("aac", 44100)}


@pytest.mark.parametrize("suffix", TRACKS)
def test_the_sound_of_a_chunk_is_in_that_chunk(tmp_path, suffix):
    codec, rate = TRACKS[suffix]
    centres = [0.5 + k for k in range(8)]
    video = "mpeg4" if suffix == "avi" else "libx264"
    tones = [300.0 + 350.0 * k for k in range(8)]
    path = write_clip(
        tmp_path / f"clicks.{suffix}", regular(200, 25), codec=video, audio_codec=codec, audio_rate=rate,
        audio=clicks(centres, 8.0, rate, frequencies=tones),
    )  # fmt: skip
    (clip,) = decode_clips(path, [ClipRequest(start_s=0.0, end_s=8.0)], ClipGeometry(frames=64, chunks=8, size=64))
    for window, tone in zip(clip.windows, tones, strict=True):
        assert abs(len(window.waveform) - RATE) <= 1
        assert loudest_s(window.waveform) == pytest.approx(0.5, abs=0.004)
        spectrum = np.abs(np.fft.rfft(window.waveform))
        assert np.argmax(spectrum) * RATE / len(window.waveform) == pytest.approx(tone, abs=60)
        assert window.valid[:-600].all()


def test_picture_and_sound_share_one_timeline(tmp_path):
    """The picture starts 2 s after the sound: its first chunk hears what is played then, not what the track begins with."""
    for suffix, codec in (("mp4", "aac"), ("mkv", "libopus")):
        path = write_clip(tmp_path / f"late.{suffix}", regular(100, 25, 2.0), audio=clicks([1.0, 2.5, 5.25], 6.0), audio_codec=codec)
        (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY)
        assert clip.span_s == pytest.approx((2.0, 6.0), abs=0.05)
        first, second, third, fourth = clip.windows
        assert loudest_s(first.waveform) + clip.span_s[0] == pytest.approx(2.5, abs=0.005)
        assert loudest_s(fourth.waveform) + 3 + clip.span_s[0] == pytest.approx(5.25, abs=0.04)
        assert max(np.abs(second.waveform).max(), np.abs(third.waveform).max()) < 0.02


def test_sound_that_starts_late_and_ends_early_is_padded_and_masked(tmp_path):
    path = write_clip(tmp_path / "short.mp4", regular(100, 25), audio=clicks([0.5], 1.5), audio_start_s=1.25)
    (window,) = windows(path, [0.0, 4.0])
    heard = np.flatnonzero(window.valid) / RATE
    assert heard[0] == pytest.approx(1.25, abs=0.03)
    assert heard[-1] == pytest.approx(2.75, abs=0.06)
    assert loudest_s(window.waveform) == pytest.approx(1.75, abs=0.005)
    assert not window.waveform[~window.valid].any()
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY)
    sample = clip_sample(clip, GEOMETRY)
    assert sample["mel"].shape == (4, 128, 256)
    heard_per_chunk = sample["mel_valid"].sum(axis=1, dtype=int)
    assert heard_per_chunk[0] == 0
    assert heard_per_chunk[1] == pytest.approx(75, abs=4)
    assert heard_per_chunk[2] == pytest.approx(75, abs=6)
    assert heard_per_chunk[3] == 0


def test_windows_tile_the_span(tmp_path):
    path = write_clip(tmp_path / "tone.mkv", None, audio=np.sin(np.arange(48000 * 5) / 20).astype(np.float32) / 2, audio_codec="pcm_s16le")
    edges = np.linspace(0.3, 4.7, 8)
    pieces = windows(path, edges)
    (whole,) = windows(path, edges[[0, -1]])
    assert np.array_equal(np.concatenate([piece.waveform for piece in pieces]), whole.waveform)
    assert whole.valid.all()


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "aac"), ("mkv", "libopus"), ("mkv", "pcm_s16le"), ("mp4", "libmp3lame")])
def test_a_span_far_inside_is_sought(tmp_path, suffix, codec):
    at = [10.0 * k + 5.0 for k in range(12)]
    path = write_clip(tmp_path / f"{codec}.{suffix}", regular(240, 2), size=(64, 64), audio=clicks(at, 120.0), audio_codec=codec)
    for start in (104.0, 53.5, 0.0, 113.25):
        (window,) = windows(path, [start, start + 4.0])
        inside = [time - start for time in at if start < time < start + 4]
        assert window.valid.mean() > 0.98
        if inside:
            assert loudest_s(window.waveform) == pytest.approx(inside[0], abs=0.005)
        else:
            assert np.abs(window.waveform).max() < 0.02


def test_none_silent_and_sound_are_told_apart(tmp_path):
    tracks = {
        "none": None,
        "silent": np.zeros(48000 * 2, np.float32),
        "sound": clicks([1.0], 2.0),
        "elsewhere": clicks([0.5], 2.0),
    }
    states = {}
    for name, track in tracks.items():
        path = write_clip(tmp_path / f"{name}.mp4", regular(50, 25), audio=track)
        (clip,) = decode_clips(path, [ClipRequest(start_s=1.0 if name == "elsewhere" else 0.0, end_s=2.0)], GEOMETRY)
        sample = clip_sample(clip, GEOMETRY)
        states[name] = int(sample["audio_state"])
        assert bool(sample["mel_valid"].any()) == (name != "none")
    assert states == {"none": AudioState.NONE, "silent": AudioState.SILENT, "sound": AudioState.AUDIBLE, "elsewhere": AudioState.SILENT}


def test_hostile_float_samples_stay_finite(tmp_path):
    track = np.zeros(48000, np.float32)
    track[1000:2000] = np.nan
    track[3000:4000] = np.inf
    track[5000:6000] = -1e30
    path = write_clip(tmp_path / "bad.mkv", regular(25, 25), audio=track, audio_codec="pcm_f32le")
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY)
    sample = clip_sample(clip, GEOMETRY)
    assert np.isfinite(sample["mel"].astype(np.float32)).all()


def test_audio_only_is_kept_when_allowed(tmp_path):
    path = write_clip(tmp_path / "only.m4a", None, audio=clicks([1.0], 2.0))
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY, allow_audio_only=True)
    sample = clip_sample(clip, GEOMETRY)
    assert not sample["frame_valid"].any()
    assert sample["audio_state"] == AudioState.AUDIBLE
    assert sample["mel_valid"].any(axis=1).all()
