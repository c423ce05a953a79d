"""The frame that is stored is the one that was on screen at that time, and the sound is that of the same moment.

One barcode clip, coded, cut and muxed in the ways that files come in; what the readers give is compared with the content's own clock.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media import decord_reader
from mirasol_cli.media.decode import DecodedClip, decode_clips, probe
from mirasol_cli.media.packets import PictureTable
from mirasol_cli.media.sampling import ClipRequest
from tests.media import barcode
from tests.media.truth_clips import ORIENTATIONS, copy, encode, join, regular

GEOMETRY = ClipGeometry(frames=64, chunks=8, size=64)
FRAME_S = 1 / barcode.FPS
BEEP_TOLERANCE_S = 0.01
RUN_UP_S = 0.05
"""Formats that cannot say that a coder begins early let the sound begin at its run-up, and the file's time with it."""


@dataclass(frozen=True)
class Case:
    """One way to make a file, and what is known of it."""

    suffix: str
    coding: dict[str, Any] = field(default_factory=dict)  # of `encode`
    copying: tuple[dict[str, Any], ...] = ()  # of `copy`, one after the other
    content_s: float | None = 0.0  # of the content at the file's time 0; None: where the cut falls is the format's affair
    decord: bool = False  # whether decord reads it
    fast: bool = False

    @property
    def cut_s(self) -> float | None:
        """Where in the content a stream copy ended."""
        return sum(part["start_s"] for part in self.copying) + self.copying[-1]["seconds"] if self.copying else None


X264_OPEN = {"x264-params": "open-gop=1:bframes=8:b-adapt=0:keyint=24:b-pyramid=normal:scenecut=0"}
X265 = {"x265-params": "keyint=50:bframes=4:log-level=none:pools=none:frame-threads=1", "preset": "ultrafast"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=50:bframes=0"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "10", "auto-alt-ref": "1"}
LONG = regular(20.0)
CUT = ({"start_s": 7.3, "seconds": 10.0},)
VARIABLE = [*regular(4.0), *(4 + k / 4 for k in range(24))]
MPEG2 = {"codec": "mpeg2video", "gop": 15}


def h264(**more: Any) -> dict[str, Any]:
    return {"codec": "libx264", "gop": 50, "b_frames": 2} | more


CASES = {
    # H.264 in MP4 and MOV as most tools make it: decord's
    "h264.mp4": Case("mp4", h264(), decord=True, fast=True),
    "h264-long-gop.mp4": Case("mp4", h264(gop=250, b_frames=3), decord=True),
    "h264-short-gop.mp4": Case("mp4", h264(gop=5), decord=True),
    "h264-all-keys.mp4": Case("mp4", h264(gop=1, b_frames=0), decord=True),
    "h264-no-b.mp4": Case("mp4", h264(b_frames=0), decord=True),
    "h264-pyramid.mp4": Case("mp4", h264(options={"x264-params": "bframes=8:b-pyramid=normal:b-adapt=0"}), decord=True),
    "h264.mov": Case("mov", h264(), decord=True, fast=True),
    "h264-pcm.mov": Case("mov", h264(sound="pcm_s16le"), decord=True),
    "h264.m4v": Case("m4v", h264(), decord=True),
    "h264-faststart.mp4": Case("mp4", h264(mux={"movflags": "faststart"}), decord=True),
    "h264-variable.mp4": Case("mp4", h264(times_s=VARIABLE), decord=True, fast=True),
    "h264-no-sound.mp4": Case("mp4", h264(sound=None), decord=True),
    "h264-fragments.mp4": Case("mp4", h264(mux={"movflags": "frag_keyframe+empty_moov"}), content_s=None, decord=True),
    "h264-no-edit-list.mp4": Case("mp4", h264(mux={"use_editlist": "0"}), content_s=None, decord=True),
    # what decord reads wrong, in MP4 and MOV
    "h264-open-gop.mp4": Case("mp4", h264(options=X264_OPEN), fast=True),
    "h264-intra-refresh.mp4": Case("mp4", h264(options=INTRA_REFRESH)),
    "h264-10-bit.mp4": Case("mp4", h264(pix_fmt="yuv420p10le")),
    "h264-444.mp4": Case("mp4", h264(pix_fmt="yuv444p")),
    "h264-interlaced.mp4": Case("mp4", h264(options={"x264-params": "interlaced=1"})),
    "hevc-open-gop.mp4": Case("mp4", {"codec": "libx265", "options": X265, "gop": 50}, fast=True),
    "hevc-closed-gop.mp4": Case("mp4", {"codec": "libx265", "options": {"x265-params": X265["x265-params"] + ":open-gop=0"}}),
    "vp9.mp4": Case("mp4", {"codec": "libvpx-vp9", "options": VP9, "sound": "libopus"}),
    "av1.mp4": Case("mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}),
    "mpeg4-b-frames.mp4": Case("mp4", {"codec": "mpeg4", "b_frames": 2}, fast=True),
    "mpeg2-b-frames.mov": Case("mov", MPEG2 | {"b_frames": 2, "sound": "pcm_s16le"}),
    "mjpeg.mov": Case("mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "sound": "pcm_s16le"}),
    "prores.mov": Case("mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "sound": "pcm_s16le"}),
    "png.mov": Case("mov", {"codec": "png", "pix_fmt": "rgb24", "sound": "pcm_s16le"}),
    # cut by stream copy
    "cut.mp4": Case("mp4", h264(times_s=LONG), CUT, content_s=7.3, fast=True),
    "cut.mov": Case("mov", h264(times_s=LONG), CUT, content_s=7.3),
    "cut-long-gop.mp4": Case("mp4", h264(times_s=LONG, gop=250, b_frames=3), CUT, content_s=7.3),
    "cut-at-key.mp4": Case("mp4", h264(times_s=LONG), ({"start_s": 8.0, "seconds": 10.0},), content_s=8.0, decord=True),
    "cut-open-gop.mp4": Case("mp4", h264(times_s=LONG, options=X264_OPEN), CUT, content_s=7.3, fast=True),
    "cut-hevc.mp4": Case("mp4", {"codec": "libx265", "options": X265, "times_s": LONG}, CUT, content_s=7.3),
    "cut-twice.mp4": Case("mp4", h264(times_s=LONG), ({"start_s": 3.1}, {"start_s": 4.2, "seconds": 10.0}), content_s=None),
    "cut.mkv": Case("mkv", h264(times_s=LONG), CUT, content_s=None, fast=True),
    "cut-open-gop.mkv": Case("mkv", h264(times_s=LONG, options=X264_OPEN), CUT, content_s=None),
    "cut-hevc.mkv": Case("mkv", {"codec": "libx265", "options": X265, "times_s": LONG}, CUT, content_s=None),
    "cut.ts": Case("ts", h264(times_s=LONG), CUT, content_s=None, fast=True),
    "cut.flv": Case("flv", h264(times_s=LONG), CUT, content_s=None),
    # other containers
    "h264.mkv": Case("mkv", h264(), fast=True),
    "h264-open-gop.mkv": Case("mkv", h264(options=X264_OPEN)),
    "h264-variable.mkv": Case("mkv", h264(times_s=VARIABLE)),
    "hevc-open-gop.mkv": Case("mkv", {"codec": "libx265", "options": X265}),
    "mpeg2-b-frames.mkv": Case("mkv", MPEG2 | {"b_frames": 2, "sound": "pcm_s16le"}),
    "mjpeg.mkv": Case("mkv", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "sound": "pcm_s16le"}, fast=True),
    "ffv1.mkv": Case("mkv", {"codec": "ffv1", "sound": "flac"}),
    "vp8.webm": Case("webm", {"codec": "libvpx", "options": VP9 | {"cpu-used": "12"}, "sound": "libopus"}),
    "vp9.webm": Case("webm", {"codec": "libvpx-vp9", "options": VP9, "sound": "libopus"}, fast=True),
    "vp9-live.webm": Case("webm", {"codec": "libvpx-vp9", "options": VP9, "sound": "libopus", "mux": {"live": "1"}}),
    "av1.mkv": Case("mkv", {"codec": "libsvtav1", "options": {"preset": "12"}, "sound": "libopus"}),
    "h264.ts": Case("ts", h264(), content_s=None, fast=True),
    "h264-open-gop.ts": Case("ts", h264(options=X264_OPEN), content_s=None),
    "hevc.ts": Case("ts", {"codec": "libx265", "options": X265}, content_s=None),
    "mpeg2.ts": Case("ts", MPEG2 | {"b_frames": 2, "sound": "mp2"}, content_s=None),
    "mpeg2.mpg": Case("mpg", MPEG2 | {"b_frames": 2, "sound": "mp2"}, content_s=None, fast=True),
    "mpeg2.vob": Case("vob", MPEG2 | {"b_frames": 2, "sound": "ac3", "form": "vob"}, content_s=None),
    "h264.flv": Case("flv", h264(), content_s=None, fast=True),
    "h264-late-clock.flv": Case("flv", h264(start_s=5000.0, mux={"flvflags": "no_duration_filesize"}), content_s=None, fast=True),
    "wmv2.wmv": Case("wmv", {"codec": "wmv2", "sound": "libmp3lame"}, content_s=None),
    "h264.nut": Case("nut", h264(), content_s=None),
    "h263.3gp": Case("3gp", {"codec": "libx264", "gop": 12}, decord=True),
    "mpeg4.avi": Case("avi", {"codec": "mpeg4", "sound": "pcm_s16le"}, fast=True),
    "mjpeg.avi": Case("avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "sound": "pcm_s16le"}),
    "png.avi": Case("avi", {"codec": "png", "pix_fmt": "rgb24", "sound": "pcm_s16le"}),
    # start times
    "starts-late.mkv": Case("mkv", h264(start_s=100.0)),
    "starts-late.mp4": Case("mp4", h264(start_s=3.0), content_s=None, decord=True),
    "starts-at-36000.ts": Case("ts", h264(start_s=36000.0), content_s=None),
    "late-sound.mp4": Case("mp4", h264(sound_starts_s=3.0), decord=True, fast=True),
    "late-sound.mkv": Case("mkv", h264(sound_starts_s=3.0)),
    # not square
    "anamorphic.mp4": Case("mp4", h264(squeeze=2), fast=True),
    "anamorphic.mkv": Case("mkv", h264(squeeze=2)),
    "anamorphic.ts": Case("ts", MPEG2 | {"squeeze": 2, "sound": "mp2"}, content_s=None),
    "anamorphic-turned.mp4": Case("mp4", h264(squeeze=2, matrix=ORIENTATIONS["rot90"])),
}  # fmt: skip
CASES |= {  # turned and mirrored; decord knows how to turn
    f"{name}.{suffix}": Case(suffix, h264(matrix=matrix), decord=name in ("rot90", "rot180", "rot270"), fast=suffix == "mp4")
    for name, matrix in ORIENTATIONS.items()
    if name != "upright"
    for suffix in ("mp4", "mov")
}


def make(case: Case, folder: Path, name: str) -> Path:
    path = encode(folder / f"0-{name}", **case.coding) if not case.copying else encode(folder / f"0-{name}.mp4", **case.coding)
    for k, copying in enumerate(case.copying, 1):
        last = k == len(case.copying)
        path = copy(path, folder / (f"{k}-{name}" if last else f"{k}-{name}.mp4"), **copying)
    return path


def decode(path: Path, *, use_decord: bool = True, request: ClipRequest | None = None) -> tuple[DecodedClip, str]:
    """The clip, and the reader that read it."""
    stages: list[str] = []
    (clip,) = decode_clips(path, [request or ClipRequest()], GEOMETRY, use_decord=use_decord, progress=stages.append)
    if isinstance(clip, MediaError):
        raise clip
    return clip, "decord" if "decord" in stages else "pyav"


def heard(clip: DecodedClip) -> dict[int, float]:
    """Second of the content -> when its beep begins, on the file's timeline."""
    sound = np.concatenate([window.waveform for window in clip.windows])
    onsets = barcode.beep_onsets(sound, GEOMETRY.audio.sample_rate, range(20))
    return {second: clip.span_s[0] + onset for second, onset in onsets.items()}


def check_truth(
    clip: DecodedClip, times_s: list[float], content_s: float | None, *, sound: bool = True, beeps: int = 7, cut_s: float | None = None
) -> None:
    """Every frame within half a frame of the right time, upright, none masked; every beep within 10 ms of its picture.

    `cut_s`: where in the content a stream copy ended. What lies behind are pictures that were decoded ahead, with holes between.
    """
    wanted = np.linspace(*clip.span_s, 2 * GEOMETRY.frames + 1)[1::2]
    numbers, upright = zip(*map(barcode.read, clip.frames), strict=True)
    begins = np.array([*times_s, times_s[-1] + FRAME_S])
    assert max(numbers) < len(times_s), "a picture that is none of the clip's"
    offset = float(np.median(clip.frame_times_s - begins[list(numbers)]))  # of the file's clock against the content's
    if sound:
        found = {second: at - second - barcode.BEEP_AT_S for second, at in heard(clip).items()}
        assert len(found) >= beeps
        heard_s = float(np.median(list(found.values())))
        assert {second: late for second, late in found.items() if abs(late - heard_s) > BEEP_TOLERANCE_S} == {}
        shown_s, offset = offset, heard_s
    if content_s is not None:
        assert abs(offset + content_s) < RUN_UP_S
    content = wanted - offset  # the content's time at each wanted time
    early = begins[list(numbers)] - content
    late = content - begins[np.array(numbers) + 1]
    whole = content < (cut_s or np.inf)
    out = np.flatnonzero((np.maximum(early, late) > FRAME_S / 2 + 2e-3) & whole)
    wrong = [(round(float(content[k]), 3), numbers[k]) for k in out]
    assert wrong == [], "(time of the content, picture shown)"
    if sound:
        assert abs(heard_s - shown_s) < BEEP_TOLERANCE_S + (FRAME_S / 2 if cut_s else 0)  # a cut falls on a whole picture
    assert all(upright)
    assert np.isfinite(clip.frame_times_s).all()
    again = np.diff(numbers, prepend=-1) == 0
    assert clip.frame_valid.tolist() == (~again).tolist()


@pytest.mark.parametrize("use_decord", [True, False], ids=["default", "pyav"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if case.fast else [pytest.mark.slow]) for name, case in CASES.items()])
def test_what_is_stored_is_what_was_shown(name, use_decord, tmp_path):
    case = CASES[name]
    path = make(case, tmp_path, name)
    clip, reader = decode(path, use_decord=use_decord)
    assert reader == ("decord" if case.decord and use_decord else "pyav")
    sound = case.coding.get("sound", "aac") is not None
    check_truth(clip, case.coding.get("times_s", regular()), case.content_s, sound=sound, cut_s=case.cut_s)


def test_decord_on_an_open_gop_shows_other_moments(tmp_path, monkeypatch):
    """What the whitelist is for; and that the check above would see it."""
    path = make(CASES["h264-open-gop.mp4"], tmp_path, "open.mp4")
    monkeypatch.setattr(decord_reader, "decord_table", lambda *_: PictureTable((), ()))
    monkeypatch.setattr(decord_reader, "_check", lambda *_: None)
    clip, reader = decode(path)
    assert reader == "decord"
    with pytest.raises(AssertionError, match="picture shown"):
        check_truth(clip, regular(), 0.0)


@pytest.mark.parametrize("second_part_at_s", [0.0, 3600.0, 2.0], ids=["restart", "jump", "overlap"])
@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_parts_with_clocks_of_their_own_are_laid_end_to_end(suffix, second_part_at_s, tmp_path):
    coding = h264(gop=25, b_frames=0) if suffix == "ts" else MPEG2 | {"gop": 25, "sound": "mp2"}
    whole = encode(tmp_path / f"whole.{suffix}", times_s=LONG, **coding)
    with av.open(str(whole)) as container:
        begin_s = float(container.streams.video[0].start_time * container.streams.video[0].time_base)
    first = copy(whole, tmp_path / f"first.{suffix}", start_s=begin_s, seconds=5.0)
    second = copy(whole, tmp_path / f"second.{suffix}", start_s=begin_s + 5, seconds=5.0, move_s=second_part_at_s - begin_s - 5)
    path = join(tmp_path / f"joined.{suffix}", [first, second])
    assert len(probe(path).splices) >= 1
    assert probe(path).seconds == pytest.approx(10.0, abs=0.2)
    for start_s, end_s in ((0.0, 4.8), (5.3, 9.8)):  # between them a gap of some frames, where one stream of a part is the longer
        clip, _ = decode(path, request=ClipRequest(start_s=start_s, end_s=end_s))
        check_truth(clip, LONG, None, beeps=4)
        shown, _ = barcode.read(clip.frames[32])
        assert shown / barcode.FPS == pytest.approx((start_s + end_s) / 2, abs=0.25)


LACKING = {
    "no presentation times: MPEG-4 with B-frames in AVI": Case("avi", {"codec": "mpeg4", "b_frames": 2, "sound": "pcm_s16le"}),
    "no presentation times: H.264 with B-frames in AVI": Case("avi", h264(sound="pcm_s16le")),
    "no key frame at the start, Matroska": Case("mkv", h264(), ({"start_s": 3.3, "from_key": False},)),
    "no key frame at the start, MP4": Case("mp4", h264(), ({"start_s": 3.3, "from_key": False},)),
    "no key frame at the start, MPEG-TS": Case("ts", h264(), ({"start_s": 3.3, "from_key": False},)),
    "a hole of 2 s, Matroska": Case("mkv", h264(), ({"hole_s": (4.0, 6.0)},)),
    "a hole of 2 s, MPEG-TS": Case("ts", h264(), ({"hole_s": (4.0, 6.0)},)),
}
"""Kinds that lack frames, or do not say when they are shown: the judge is what ffmpeg decodes."""


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not at hand")
@pytest.mark.parametrize("use_decord", [True, False], ids=["default", "pyav"])
@pytest.mark.parametrize("name", LACKING)
def test_what_a_file_lacks_is_what_ffmpeg_finds_lacking(name, use_decord, tmp_path):
    path = make(LACKING[name], tmp_path, f"clip.{LACKING[name].suffix}")
    info = probe(path)
    times_s, numbers = ffmpeg_frames(path)
    clip, _ = decode(path, use_decord=use_decord)
    wanted = np.linspace(*clip.span_s, 2 * GEOMETRY.frames + 1)[1::2]
    place = np.searchsorted(times_s - info.zero_s, wanted + 1e-3, side="right") - 1
    shown = [barcode.read(frame)[0] for frame in clip.frames]
    there = np.isfinite(clip.frame_times_s)
    assert [shown[k] for k in np.flatnonzero(there)] == numbers[place[there]].tolist()
    assert (place[there] >= 0).all()
    missing = wanted[~there]
    assert all(time_s < times_s[0] - info.zero_s + 2e-3 or np.diff(times_s).max() > 1 for time_s in missing), "ffmpeg has a frame there"


def ffmpeg_frames(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Presentation time (s, as in the file) and number of every frame that the ffmpeg command decodes."""
    run = ["ffmpeg", "-v", "error", "-copyts", "-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    side = min(barcode.WIDTH, barcode.HEIGHT)
    crop = ["-vf", f"crop={side}:{side}", "-pix_fmt", "rgb24", "-enc_time_base", "1/90000"]
    raw = subprocess.run([*run, *crop, "-f", "rawvideo", "-"], capture_output=True, check=True).stdout
    listed = subprocess.run([*run, *crop, "-f", "framecrc", "-"], capture_output=True, check=True, text=True).stdout
    pictures = np.frombuffer(raw, np.uint8).reshape(-1, side, side, 3)
    base = next(Fraction(line.split()[-1]) for line in listed.splitlines() if line.startswith("#tb"))
    times = [float(int(line.split(",")[2]) * base) for line in listed.splitlines() if not line.startswith("#")]
    return np.array(times), np.array([barcode.read(picture)[0] for picture in pictures])
