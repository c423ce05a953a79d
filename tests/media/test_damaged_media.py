"""Byte-mutated files of four containers through the real workers: each is kept as what was decoded, or listed with its reason."""

import random

import numpy as np
import pytest

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.decode_pool import DecodePool
from tests.media.made_clips import clicks, regular, write_clip

GEOMETRY = ClipGeometry(frames=16, chunks=2, size=64)
SOURCES = {
    "mp4": dict(codec="libx264", audio_codec="aac", mux_options={"movflags": "faststart"}),
    "mkv": dict(codec="libx264", audio_codec="libopus"),
    "webm": dict(codec="libvpx", audio_codec="libopus", options={"deadline": "realtime", "cpu-used": "8"}),
    "avi": dict(codec="mpeg4", audio_codec="libmp3lame"),
}


def mutate(content: bytes, kind: int, draw: random.Random) -> bytes:
    """Cut off; bytes changed anywhere; bytes changed in the first kilobytes; a piece taken out."""
    changed = bytearray(content)
    if kind == 0:
        return bytes(changed[: draw.randrange(1, len(changed))])
    if kind in (1, 2):
        reach = len(changed) if kind == 1 else min(len(changed), 6000)
        for _ in range(draw.choice([1, 10, 100, 1000] if kind == 1 else [1, 5, 20])):
            changed[draw.randrange(reach)] = draw.randrange(256)
        return bytes(changed)
    at = draw.randrange(len(changed))
    del changed[at : at + draw.choice([1, 100, 10000])]
    return bytes(changed)


def check(sample) -> None:
    assert np.isfinite(sample["mel"].astype(np.float32)).all()
    assert not sample["mel"].transpose(0, 2, 1)[sample["mel_valid"] == 0].any()
    assert sample["frame_valid"].any() or sample["mel_valid"].any()
    start, end = sample["span"]
    assert start < end
    times, valid = sample["frame_times"].ravel(), sample["frame_valid"].ravel().astype(bool)
    assert np.isfinite(times[valid]).all(), "a frame that is missing has no time, and only that one"
    assert (np.diff(times[np.isfinite(times)]) >= 0).all()
    assert len(np.unique(times[valid])) == valid.sum(), "a frame that counts as real is shown once"


def run(folder, per_source: int, time_limit_s: float) -> dict[str, int]:
    draw = random.Random(0)
    outcome: dict[str, int] = {}
    with DecodePool(2, GEOMETRY, time_limit_s, 2 << 30) as pool:
        for suffix, source in SOURCES.items():
            whole = write_clip(folder / f"whole.{suffix}", regular(75, 25), keyframe_every=25, audio=clicks([0.5, 1.5, 2.5], 3.0), **source)
            content = whole.read_bytes()
            pool.submit(f"whole.{suffix}", whole)
            for k in range(per_source):
                path = folder / f"{k}.{suffix}"
                path.write_bytes(mutate(content, k % 4, draw))
                pool.submit(path.name, path)
        seen = set()
        for job, (sample,) in pool.results():
            seen.add(job)
            reason = sample.reason if isinstance(sample, MediaError) else "kept"
            if not isinstance(sample, MediaError):
                check(sample)
            if job.startswith("whole"):
                assert reason == "kept"
                assert sample["frame_valid"].all()
            words = reason.split(":")[0].split(" of ")[0]
            outcome[words] = outcome.get(words, 0) + 1
            assert len(reason) < 320
    assert len(seen) == len(SOURCES) * (per_source + 1)
    return outcome


def test_forty_damaged_files(tmp_path):
    outcome = run(tmp_path, 10, time_limit_s=30.0)
    assert outcome["kept"] >= 8
    assert len(outcome) >= 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_damaged_files(tmp_path):
    outcome = run(tmp_path, 250, time_limit_s=30.0)
    print(outcome)
    assert outcome["kept"] >= 100
