"""What is stored is what was shown: the clock, coded and muxed in the ways that files come in, read back against its own time."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import decord_reader
from mirasol_cli.media.decode import DecodedClip, decode_clips, probe
from mirasol_cli.media.packets import PictureTable
from mirasol_cli.media.sampling import ClipRequest
from tests.media.clock import FPS, Clock, beep_offsets_s, copy_span, read_frame, write_clock

GEOMETRY = ClipGeometry(frames=32, chunks=4, size=64)
HALF_A_FRAME_S = 0.5 / FPS
ROUNDING_S = 2e-3  # containers that count in milliseconds
BEEP_S = 0.01
FFMPEG = shutil.which("ffmpeg") and shutil.which("ffprobe")

x264 = {"preset": "ultrafast"}
b_frames = {"preset": "ultrafast", "bf": "3"}
open_gop = {"preset": "veryfast", "x264-params": "open-gop=1:bframes=8:b-adapt=0:keyint=24:b-pyramid=normal"}
refresh = {"preset": "ultrafast", "x264-params": "intra-refresh=1:keyint=50"}
x265 = {"preset": "ultrafast", "x265-params": "keyint=50:bframes=4:log-level=none"}
x265_closed = {"preset": "ultrafast", "x265-params": "keyint=50:bframes=4:open-gop=0:log-level=none"}
realtime = {"deadline": "realtime", "cpu-used": "8"}
fragments = {"movflags": "frag_keyframe+empty_moov"}


def uneven() -> list[float]:
    """Picture times of a clip whose rate changes: 25, 50, 8 and 12.5 a second."""
    steps = [0.04] * 50 + [0.02] * 100 + [0.125] * 16 + [0.08] * 50
    return [round(float(t), 4) for t in np.cumsum([0.0, *steps[:-1]])]


@dataclass
class Case:
    """A file, when its content starts, and which reader it is for."""

    suffix: str
    clock: Clock
    cut: tuple[float, float] | None = None  # copied by packets, as download scripts cut
    from_key: bool = True
    decord: bool = False
    fast: bool = False

    def write(self, folder: Path) -> Path:
        path = folder / f"clip.{self.suffix}"
        if self.cut is None:
            return write_clock(path, self.clock)
        return copy_span(write_clock(folder / "whole.mp4", self.clock), path, *self.cut, from_key=self.from_key)


CASES = {
    # what decord may read
    "h264 mp4": Case("mp4", Clock(options=b_frames), decord=True, fast=True),
    "h264 mov": Case("mov", Clock(options=b_frames), decord=True),
    "h264 m4v": Case("m4v", Clock(options=x264, audio=None), decord=True),
    "h264 mp4 without B-frames": Case("mp4", Clock(options={"preset": "ultrafast", "bf": "0"}), decord=True),
    "h264 mp4, one group": Case("mp4", Clock(options=b_frames, gop=1000), decord=True),
    "h264 mp4, all key": Case("mp4", Clock(options=x264, gop=1), decord=True),
    "h264 mp4, index first": Case("mp4", Clock(options=x264, mux={"movflags": "faststart"}), decord=True),
    "h264 mp4, uneven": Case("mp4", Clock(options=b_frames, times_s=uneven()), decord=True, fast=True),
    "turned 90": Case("mp4", Clock(options=x264, lay="turned 90"), decord=True, fast=True),
    "turned 180": Case("mp4", Clock(options=x264, lay="turned 180"), decord=True),
    "turned 270": Case("mov", Clock(options=x264, lay="turned 270"), decord=True),
    # how pictures lie
    "mirrored": Case("mp4", Clock(options=x264, lay="mirrored"), fast=True),
    "upside down": Case("mov", Clock(options=x264, lay="upside down")),
    "transposed": Case("mp4", Clock(options=x264, lay="transposed")),
    "transversed": Case("mp4", Clock(options=x264, lay="transversed")),
    "wide pixels mp4": Case("mp4", Clock(options=x264, pixel_aspect=Fraction(2)), fast=True),
    "wide pixels mkv": Case("mkv", Clock(options=x264, pixel_aspect=Fraction(2))),
    "tall pixels mp4": Case("mp4", Clock(options=x264, pixel_aspect=Fraction(1, 2))),
    "wide pixels, turned": Case("mp4", Clock(options=x264, pixel_aspect=Fraction(2), lay="turned 90", size=(96, 160))),
    # H.264 that decord would read wrong, or may
    "open groups mp4": Case("mp4", Clock(options=open_gop, gop=24), fast=True),
    "open groups mkv": Case("mkv", Clock(options=open_gop, gop=24)),
    "open groups mov": Case("mov", Clock(options=open_gop, gop=24)),
    "h264 mkv": Case("mkv", Clock(options=b_frames)),
    "h264 mkv, uneven": Case("mkv", Clock(options=b_frames, times_s=uneven())),
    "h264 mp4, interlaced": Case("mp4", Clock(options={"preset": "ultrafast", "x264-params": "tff=1"})),
    "h264 mp4, 10 bit": Case("mp4", Clock(options=x264, pix_fmt="yuv420p10le")),
    "h264 mp4, 4:4:4": Case("mp4", Clock(options=x264, pix_fmt="yuv444p")),
    "h264 mp4, fragments": Case("mp4", Clock(options=b_frames, mux=fragments), decord=True),
    "h264 mp4, refreshed bit by bit": Case("mp4", Clock(options=refresh)),
    "h264 mkv, refreshed bit by bit": Case("mkv", Clock(options=refresh)),
    "h264 ts": Case("ts", Clock(options=b_frames), fast=True),
    "h264 m2ts": Case("m2ts", Clock(options=b_frames)),
    "h264 flv": Case("flv", Clock(options=x264)),
    "h264 nut": Case("nut", Clock(options=b_frames)),
    # late clocks
    "starts at 3 s, mp4": Case("mp4", Clock(options=b_frames, start_s=3.0), decord=True),
    "starts at 3 s, mkv": Case("mkv", Clock(options=b_frames, start_s=3.0)),
    "starts at 3 s, ts": Case("ts", Clock(options=b_frames, start_s=3.0)),
    "starts at 5000 s, flv": Case("flv", Clock(options=x264, start_s=5000.0, mux={"flvflags": "no_duration_filesize"}), fast=True),
    # cut by packets
    "cut mp4": Case("mp4", Clock(options=b_frames, seconds=20), cut=(7.3, 17.3), fast=True),
    "cut mp4, long groups": Case("mp4", Clock(options=b_frames, seconds=20, gop=250), cut=(7.3, 17.3)),
    "cut mov": Case("mov", Clock(options=b_frames, seconds=20), cut=(7.3, 17.3)),
    "cut mkv": Case("mkv", Clock(options=b_frames, seconds=20), cut=(7.3, 17.3)),
    "cut ts": Case("ts", Clock(options=b_frames, seconds=20), cut=(7.3, 17.3)),
    "cut open groups mp4": Case("mp4", Clock(options=open_gop, seconds=20, gop=24), cut=(7.3, 17.3)),
    "cut hevc mp4": Case("mp4", Clock(codec="libx265", options=x265, seconds=20), cut=(7.3, 17.3)),
    # other codecs
    "hevc mp4": Case("mp4", Clock(codec="libx265", options=x265), fast=True),
    "hevc mkv": Case("mkv", Clock(codec="libx265", options=x265)),
    "hevc mp4, closed groups": Case("mp4", Clock(codec="libx265", options=x265_closed)),
    "hevc ts": Case("ts", Clock(codec="libx265", options=x265)),
    "mpeg4 mp4, B-frames": Case("mp4", Clock(codec="mpeg4", options={"bf": "2"}, gop=15)),
    "mpeg4 mkv, B-frames": Case("mkv", Clock(codec="mpeg4", options={"bf": "2"}, gop=15)),
    "mpeg4 avi without B-frames": Case("avi", Clock(codec="mpeg4", gop=15, audio="pcm_s16le"), fast=True),
    "mpeg2 mkv, B-frames": Case("mkv", Clock(codec="mpeg2video", options={"bf": "2"}, gop=15)),
    "mpeg2 mov, B-frames": Case("mov", Clock(codec="mpeg2video", options={"bf": "2"}, gop=15, audio="pcm_s16le")),
    "mpeg2 ts": Case("ts", Clock(codec="mpeg2video", options={"bf": "2"}, gop=15, audio="mp2")),
    "mpeg2 mpg": Case("mpg", Clock(codec="mpeg2video", gop=15, audio="mp2", size=(192, 128))),
    "mpeg1 mpg": Case("mpg", Clock(codec="mpeg1video", gop=15, audio="mp2", size=(192, 128))),
    "vp8 webm": Case("webm", Clock(codec="libvpx", options=realtime, audio="libopus")),
    "vp9 webm": Case("webm", Clock(codec="libvpx-vp9", options=realtime, audio="libopus"), fast=True),
    "vp9 mp4": Case("mp4", Clock(codec="libvpx-vp9", options=realtime)),
    "av1 mp4": Case("mp4", Clock(codec="libsvtav1", options={"preset": "10", "crf": "20"})),
    "av1 webm": Case("webm", Clock(codec="libsvtav1", options={"preset": "10", "crf": "20"}, audio="libopus")),
    "mjpeg mkv": Case("mkv", Clock(codec="mjpeg", pix_fmt="yuvj420p", audio="pcm_s16le"), fast=True),
    "mjpeg mov": Case("mov", Clock(codec="mjpeg", pix_fmt="yuvj420p", audio="pcm_s16le")),
    "mjpeg avi": Case("avi", Clock(codec="mjpeg", pix_fmt="yuvj420p", audio="pcm_s16le")),
    "png mov": Case("mov", Clock(codec="png", pix_fmt="rgb24", audio="pcm_s16le")),
    "ffv1 mkv": Case("mkv", Clock(codec="ffv1", pix_fmt="yuv420p", audio="flac")),
    "prores mov": Case("mov", Clock(codec="prores_ks", pix_fmt="yuv422p10le", audio="pcm_s16le")),
    "qtrle mov": Case("mov", Clock(codec="qtrle", pix_fmt="rgb24", audio="pcm_s16le")),
    "flv1 flv": Case("flv", Clock(codec="flv", gop=15)),
    "wmv2 asf": Case("wmv", Clock(codec="wmv2", gop=15, audio="libmp3lame")),
    "h263 3gp": Case("3gp", Clock(codec="h263", gop=15, size=(176, 144))),
}
CASES_PARAMS = [pytest.param(name, marks=[] if case.fast else [pytest.mark.slow], id=name) for name, case in CASES.items()]


def decode(path: Path, *, progress: Callable[[str], None] = lambda stage: None, **options) -> DecodedClip:
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY, progress=progress, **options)
    if isinstance(clip, MediaError):
        raise clip
    return clip


def wanted_times_s(clip: DecodedClip) -> np.ndarray:
    return np.linspace(*clip.span_s, 2 * GEOMETRY.frames + 1)[1::2]


def distance_s(numbers: np.ndarray, starts_s: np.ndarray, times_s: np.ndarray) -> np.ndarray:
    """How far each time lies from the interval in which the picture of that number is on screen."""
    ends_s = np.append(starts_s[1:], 2 * starts_s[-1] - starts_s[-2])
    return np.maximum(0, np.maximum(starts_s[numbers] - times_s, times_s - ends_s[numbers]))


def content_start_s(path: Path, case: Case) -> float:
    """The clock's time at the clip's first instant: MP4 hides what comes before a cut, other containers show it from its key on."""
    if case.cut is None:
        return 0.0
    if case.suffix in ("mp4", "mov"):
        return case.cut[0]
    with av.open(str(path)) as copy, av.open(str(path.parent / "whole.mp4")) as whole:
        first = next(frame for frame in copy.decode(video=0))
        twin = [frame for frame in whole.decode(video=0) if np.array_equal(frame.to_ndarray(), first.to_ndarray())]
        return float(twin[0].pts * twin[0].time_base) - float(whole.streams.video[0].start_time * whole.streams.video[0].time_base)


@pytest.mark.parametrize("name", CASES_PARAMS)
def test_frames_and_beeps_are_at_their_time(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.clock.codec not in av.codecs_available or case.clock.audio not in (*av.codecs_available, None):
        pytest.skip("this build of PyAV has no such encoder")
    path = case.write(tmp_path)
    stages: list[str] = []
    clip = decode(path, progress=stages.append)
    assert ("decord" in stages) == case.decord
    begins_s = content_start_s(path, case) - clip.span_s[0]
    read = [read_frame(frame) for frame in clip.frames]
    off = distance_s(np.array([number for number, _ in read]), case.clock.frame_times_s(), wanted_times_s(clip) + begins_s)
    assert off.max() <= HALF_A_FRAME_S + ROUNDING_S
    assert all(upright for _, upright in read)
    assert np.isfinite(clip.frame_times_s).all()
    assert clip.frame_valid.all()
    length_s = (10.0 if case.cut is None else case.cut[1] - content_start_s(path, case)) if case.clock.times_s is None else None
    if length_s is not None:
        assert clip.span_s[1] - clip.span_s[0] == pytest.approx(length_s, abs=0.16)
    if case.clock.audio is not None:
        waveform = np.concatenate([window.waveform for window in clip.windows])
        late_s = beep_offsets_s(waveform, clip.span_s[0] + begins_s, range(20))
        assert len(late_s) >= 8
        assert np.abs(late_s).max() < BEEP_S


def test_decord_itself_is_wrong_on_open_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why there is a whitelist: without it, decord shows other pictures than those of the time, and says nothing."""
    path = CASES["open groups mkv"].write(tmp_path)
    monkeypatch.setattr(decord_reader, "decord_table", lambda *_: PictureTable((), ()))
    monkeypatch.setattr(decord_reader, "_check", lambda *_: None)
    clip = decode(path)
    numbers = np.array([read_frame(frame)[0] for frame in clip.frames])
    assert clip.frame_valid.all()
    assert distance_s(numbers, np.arange(250) / FPS, wanted_times_s(clip)).max() > 0.2


def test_decord_must_count_as_the_packets_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = CASES["h264 mp4"].write(tmp_path)
    table = decord_reader.decord_table
    stages: list[str] = []

    def one_less(*arguments) -> PictureTable:
        found = table(*arguments)
        return PictureTable(found.times_s[:-1], found.keys)

    monkeypatch.setattr(decord_reader, "decord_table", one_less)
    numbers = [read_frame(frame)[0] for frame in decode(path, progress=stages.append).frames]
    assert stages[:3] == ["decord", "pyav", "pyav"]
    assert numbers == [int(time * FPS) for time in wanted_times_s(decode(path))]


def joined(folder: Path, second: Clock, suffix: str = "ts") -> Path:
    """Two recordings in one file, as recorders and `cat` leave them."""
    first = write_clock(folder / f"a.{suffix}", Clock(options=b_frames, seconds=5.0))
    other = write_clock(folder / f"b.{suffix}", second)
    path = folder / f"joined.{suffix}"
    path.write_bytes(first.read_bytes() + other.read_bytes())
    return path


@pytest.mark.parametrize("start_s", [0.0, 3600.0], ids=["starts anew", "jumps an hour"])
def test_clocks_that_jump_are_joined(start_s: float, tmp_path: Path) -> None:
    clip = decode(joined(tmp_path, Clock(options=b_frames, seconds=5.0, start_s=start_s)))
    assert clip.span_s[1] - clip.span_s[0] == pytest.approx(10.0, abs=0.1)
    assert clip.frame_valid.all()
    times_s = wanted_times_s(clip) - clip.span_s[0]
    numbers = np.array([read_frame(frame)[0] for frame in clip.frames])
    content_s = np.where(times_s < 5.0, times_s, times_s - 5.0)
    near = np.abs(times_s - 5.0) < 0.15
    assert distance_s(numbers, np.arange(125) / FPS, content_s)[~near].max() <= 0.1, "the second part begins where the longer stream ends"
    second_s = float(np.median((times_s - numbers / FPS)[times_s > 5.2])) - 0.5 / FPS
    waveform = np.concatenate([window.waveform for window in clip.windows])
    first = beep_offsets_s(waveform[: 5 * 16000], 0.0, range(5))
    heard = np.array(first + beep_offsets_s(waveform[round(second_s * 16000) :], 0.0, range(4)))
    assert len(heard) >= 8
    assert np.abs(heard).max() < 0.03, "sound and picture of each part stay together"


def test_a_file_that_begins_without_a_key_picture_masks_what_cannot_be_decoded(tmp_path: Path) -> None:
    case = Case("mkv", Clock(options=b_frames, seconds=20), cut=(7.3, 17.3), from_key=False)
    for use_decord in (True, False):
        clip = decode(case.write(tmp_path), use_decord=use_decord)
        numbers = np.array([read_frame(frame)[0] for frame in clip.frames])
        assert 20 <= clip.frame_valid.sum() < 32
        assert np.isnan(clip.frame_times_s[0])
        shown_s = clip.frame_times_s[clip.frame_valid]
        first_s = numbers[clip.frame_valid][0] / FPS - shown_s[0]
        np.testing.assert_allclose(numbers[clip.frame_valid] / FPS - shown_s, first_s, atol=HALF_A_FRAME_S)


def test_pictures_made_of_what_was_lost_are_not_shown(tmp_path: Path) -> None:
    """Zeros in the middle of the file: the decoder conceals the hole, and says so of the first pictures only."""
    path = write_clock(tmp_path / "hole.mp4", Clock(options=b_frames, seconds=20, gop=100, audio=None, mux={"movflags": "faststart"}))
    data = bytearray(path.read_bytes())
    begin, length = len(data) // 2, len(data) // 8
    data[begin : begin + length] = bytes(length)
    path.write_bytes(data)
    clip = decode(path)
    numbers = np.array([read_frame(frame)[0] for frame in clip.frames])
    off = distance_s(numbers, np.arange(500) / FPS, wanted_times_s(clip))
    assert 16 <= clip.frame_valid.sum() < 32
    assert off[clip.frame_valid].max() <= HALF_A_FRAME_S
    assert np.isnan(clip.frame_times_s).sum() >= 3
    assert not clip.frame_valid[np.isnan(clip.frame_times_s)].any()


def test_a_picture_that_turns_midway_keeps_its_proportions(tmp_path: Path) -> None:
    first = write_clock(tmp_path / "a.ts", Clock(options=x264, seconds=5.0, audio=None, size=(160, 96)))
    second = write_clock(tmp_path / "b.ts", Clock(options=x264, seconds=5.0, audio=None, size=(96, 160), start_s=5.0))
    path = tmp_path / "turned.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert all(upright for _, upright in map(read_frame, decode(path).frames))


# Kinds that lack presentation times or pictures: the judge is a decode of every picture by ffmpeg.
UNTIMED = {
    "h264 avi without B-frames": Case("avi", Clock(options={"preset": "ultrafast", "bf": "0"}, audio="pcm_s16le")),
    "mpeg2 mpg, B-frames": Case("mpg", Clock(codec="mpeg2video", options={"bf": "2"}, gop=15, audio="mp2", size=(192, 128))),
    "mpeg4 avi, B-frames": Case("avi", Clock(codec="mpeg4", options={"bf": "2"}, gop=15, audio="pcm_s16le")),
    "h264 avi, B-frames": Case("avi", Clock(options=b_frames, audio="pcm_s16le")),
    "no key picture first, mkv": Case("mkv", Clock(options=b_frames, seconds=20), cut=(7.3, 17.3), from_key=False),
    "no key picture first, ts": Case("ts", Clock(options=b_frames, seconds=20), cut=(7.3, 17.3), from_key=False),
    "refreshed bit by bit, cut": Case("mkv", Clock(options=refresh, seconds=20), cut=(7.3, 17.3), from_key=False),
}


@pytest.mark.skipif(not FFMPEG, reason="ffmpeg is the judge here")
@pytest.mark.parametrize("name", UNTIMED)
def test_pictures_without_times_are_those_of_ffmpeg(name: str, tmp_path: Path) -> None:
    path = UNTIMED[name].write(tmp_path)
    clip = decode(path)
    times_s, numbers = ffmpeg_frames(path)
    times_s = times_s - probe(path).zero_s
    shown = numbers[np.clip(np.searchsorted(times_s, wanted_times_s(clip) + 1e-3, side="right") - 1, 0, None)]
    read = np.array([read_frame(frame)[0] for frame in clip.frames])
    assert np.abs(read - shown)[clip.frame_valid].max() <= 1
    assert clip.frame_valid.sum() >= 16


def ffmpeg_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(time in s, number) of every picture that ffmpeg decodes."""
    show = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "frame=best_effort_timestamp_time", "-of", "csv=p=0"]
    times = subprocess.run([*show, str(path)], capture_output=True, text=True, check=True).stdout.split()
    crop = ["-vf", "crop='min(iw,ih)':'min(iw,ih)',scale=64:64", "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), *crop], capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 64, 64, 3)
    seconds: list[float] = []
    for time in times:
        known = time.strip(",")
        seconds.append(seconds[-1] + 1 / FPS if known == "N/A" else float(known))
    count = min(len(seconds), len(frames))
    return np.array(seconds[:count]), np.array([read_frame(image)[0] for image in frames[:count]])
