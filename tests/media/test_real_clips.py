"""Nineteen real files of all kinds, against an independent reading of every frame."""

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from mirasol_cli.files import read_jsonl
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.clip import clip_sample
from mirasol_cli.media.decode import decode_clips, probe
from mirasol_cli.media.sampling import ClipRequest, framing
from mirasol_cli.sample import AudioState
from tests.paths import SHARED

pytestmark = pytest.mark.real
GEOMETRY = ClipGeometry(frames=32, chunks=4, size=64)
FOLDER = SHARED / "clips" if SHARED else Path()
ROWS = read_jsonl(FOLDER / "annotations.jsonl") if SHARED else []


def every_time(path, index):
    """Presentation times of all frames, the plain way."""
    with av.open(str(path)) as container:
        return np.array([float(frame.pts * frame.time_base) for frame in container.decode(container.streams[index])])


def frames_of(path, index, numbers):
    """{number: float [16, 16, 3]}: frames turned upright, their centre square averaged, the plain way."""
    frames = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(container.streams[index])):
            if number not in numbers:
                continue
            image = frame.reformat(format="rgb24").to_ndarray()
            turns = frame.rotation // 90 % 4 if frame.rotation % 90 == 0 else 0
            image = np.rot90(image, turns).astype(float)
            side = min(image.shape[:2])
            top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
            square = image[top : top + side, left : left + side]
            edges = np.linspace(0, side, 17).astype(int)
            sums = np.add.reduceat(np.add.reduceat(square, edges[:-1], axis=0), edges[:-1], axis=1)
            frames[number] = sums / np.outer(np.diff(edges), np.diff(edges))[..., None]
    return frames


@pytest.mark.parametrize("name", [row["video"] for row in ROWS])
def test_frames_agree_with_an_independent_reading(name):
    path = FOLDER / name
    info = probe(path)
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY)
    times = every_time(path, info.video_index)
    wanted = np.linspace(*clip.span_s, 65)[1::2]
    right = np.clip(np.searchsorted(times - times[0] + info.start_s, wanted + 1e-3, side="right") - 1, 0, None)
    np.testing.assert_allclose(clip.frame_times_s, (times - times[0] + info.start_s)[right], atol=1e-4)
    assert clip.frame_valid.tolist() == (np.diff(right, prepend=-1) != 0).tolist()
    assert clip.span_s[1] == pytest.approx(times[-1] - times[0] + info.start_s, abs=0.25)
    frames = frames_of(path, info.video_index, set(right[::4].tolist()))
    for frame, index in zip(clip.frames[::4], right[::4].tolist(), strict=True):
        small = frame.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - frames[index]).mean() < 6, "another picture, another crop or another rotation"


@pytest.mark.skipif(not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="ffmpeg is the judge here")
@pytest.mark.parametrize("name", [row["video"] for row in ROWS])
def test_no_frame_is_at_another_time_than_ffmpeg_shows_it(name):
    path = FOLDER / name
    info = probe(path)
    (clip,) = decode_clips(path, [ClipRequest()], GEOMETRY)
    show = ["ffprobe", "-v", "error", "-select_streams", str(info.video_index), "-show_entries", "frame=best_effort_timestamp_time"]
    listed = subprocess.run([*show, "-of", "csv=p=0", str(path)], capture_output=True, text=True, check=True).stdout.split()
    times = np.array([float(time.strip(",")) for time in listed if time.strip(",")])
    scaled = framing(info, ClipRequest(), GEOMETRY)
    chain = f"scale={scaled.width}:{scaled.height}:flags=bilinear,format=rgb24,crop=64:64"
    words = ["-map", f"0:{info.video_index}", "-vf", chain, "-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), *words], capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 64, 64, 3).astype(float)
    assert abs(len(times) - len(frames)) <= 1
    wanted = np.linspace(*clip.span_s, 65)[1::2]
    right = np.clip(np.searchsorted(times - info.zero_s, wanted + 1e-3, side="right") - 1, 0, len(frames) - 1)
    for frame, index in zip(clip.frames, right.tolist(), strict=True):
        differences = np.abs(frames - frame).mean(axis=(1, 2, 3))
        assert differences[index] <= differences.min() + 0.05, f"picture {differences.argmin()} is shown in place of {index}"
        assert differences[index] < 3


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["video"])
def test_the_state_of_the_sound(row):
    (clip,) = decode_clips(FOLDER / row["video"], [ClipRequest()], GEOMETRY)
    sample = clip_sample(clip, GEOMETRY)
    expected = AudioState.NONE if not row["has_audio"] else AudioState.SILENT if row["audio_silent"] else AudioState.AUDIBLE
    assert sample["audio_state"] == expected
    assert sample["mel_valid"].any() == row["has_audio"]


def test_the_counts():
    states = [("none" if not row["has_audio"] else "silent" if row["audio_silent"] else "audible") for row in ROWS]
    assert {state: states.count(state) for state in set(states)} == {"none": 3, "silent": 3, "audible": 13}


def test_the_sound_belongs_to_the_picture():
    info = probe(FOLDER / "nasa_13013.mp4")
    assert (info.width, info.height, info.video_index, info.audio_index) == (480, 270, 3, 4)
    assert info.seconds == pytest.approx(13.013)


@pytest.mark.parametrize(
    ("name", "display"), [("sideways_movie.mov", (480, 640)), ("portrait.MOV", (320, 568)), ("fire2.mp4", (1280, 720))]
)
def test_rotated_clips_are_probed_upright(name, display):
    info = probe(FOLDER / name)
    assert (info.width, info.height) == display


@pytest.mark.parametrize("name", ["sideways_movie.mov", "portrait.MOV", "fire2.mp4", "milk.mkv", "rails_video.webm", "seattle_test.avi"])
def test_both_readers_agree(name):
    first, second = (next(iter(decode_clips(FOLDER / name, [ClipRequest()], GEOMETRY, use_decord=use))) for use in (True, False))
    assert np.abs(first.frames.astype(int) - second.frames).mean() < 0.6
    np.testing.assert_allclose(first.frame_times_s, second.frame_times_s, atol=1e-4)


def test_sound_that_starts_late_is_masked():
    (clip,) = decode_clips(FOLDER / "awesome movie.mov", [ClipRequest()], GEOMETRY)
    first = next(clip.windows)
    assert int(np.argmax(first.valid)) == pytest.approx(0.0867 * 16000, abs=200)
