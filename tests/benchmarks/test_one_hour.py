"""The hour of video: what it is made of, how memory is counted, and what its report says of given answers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import one_hour
from common import Report
from one_hour import QUESTIONS, Asked, background_scenes, event_scene, tree_mb, write_report
from tests.evaluation.tiny import tiny_recipe, write_tiny_checkpoint


def test_only_the_minute_of_the_event_holds_what_is_asked_about() -> None:
    assert all("bell" in question for question in QUESTIONS)
    event = event_scene()
    assert {thing.instrument for thing in (*event.sights, *event.sounds)} == {"bell"}
    assert [(thing.enter * 60, thing.leave * 60) for thing in event.sights] == [(28, 32)]
    others = {thing.instrument for scene in background_scenes().values() for thing in (*scene.sights, *scene.sounds)}
    assert others == {"drum", "flute", "horn"}


def test_every_minute_is_encoded_once_and_the_event_lies_at_its_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []

    def segment(folder: Path, name: str, scene: Any) -> Path:
        encoded.append(name)
        return folder / f"{name}.mp4"

    monkeypatch.setattr(one_hour, "segment", segment)
    monkeypatch.setattr(one_hour, "ffmpeg", lambda *words: Path(words[-1]).touch())
    videos = one_hour.make_videos(tmp_path, 60, 47)
    assert len(encoded) == len(set(encoded)) == 6
    for hour, with_others in (("quiet", 6), ("busy", 29)):
        for kind in ("with", "without"):
            lines = videos[f"{hour} hour, {kind}"].with_suffix(".txt").read_text().splitlines()
            assert len(lines) == 60
            assert [number for number, line in enumerate(lines) if "minute" in Path(line.strip("'")).name] == [47]
            assert f"/minute-{kind}.mp4'" in lines[47]
            assert sum("others" in line or "horn" in line for line in lines) == with_others
            assert any("others" in line or "horn" in line for line in lines[48:])


def test_another_minute_of_the_event_is_another_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_hour, "segment", lambda folder, name, _scene: folder / f"{name}.mp4")
    monkeypatch.setattr(one_hour, "ffmpeg", lambda *words: Path(words[-1]).touch())
    hours = [one_hour.make_videos(tmp_path, 60, minute)["quiet hour, with"] for minute in (47, 12, 47)]
    assert hours[0] == hours[2] != hours[1]
    for hour, minute in zip(hours, (47, 12, 47), strict=True):
        assert "minute-with.mp4" in hour.with_suffix(".txt").read_text().splitlines()[minute]


def test_a_checkpoint_without_a_ttm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path)
    ttm = write_tiny_checkpoint(tmp_path / "ttm", recipe, combiner="ttm")
    other = write_tiny_checkpoint(tmp_path / "other" / "checkpoints", recipe)
    assert one_hour.problem_of(ttm) is None
    for checkpoint, words in ((other.parent.parent, "is 'transformer', not 'ttm'"), (tmp_path / "none", "no run or checkpoint folder")):
        monkeypatch.setattr(sys, "argv", ["one_hour.py", "--checkpoint", str(checkpoint), "--folder", str(tmp_path / "videos")])
        with pytest.raises(SystemExit) as left:
            one_hour.main()
        assert left.value.code == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "videos").exists()


def test_memory_counts_the_processes_below() -> None:
    hold = "import time; held = bytearray(80_000_000); time.sleep(60)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    process = subprocess.Popen([sys.executable, "-c", start])
    child = ""
    try:
        deadline = time.monotonic() + 30
        while tree_mb(process.pid) < 90 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert 90 < tree_mb(process.pid) < 160
        (child,) = (Path(f"/proc/{process.pid}/task/{process.pid}") / "children").read_text().split()
        while tree_mb(int(child)) < 80 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert tree_mb(int(child)) > 80
    finally:
        subprocess.run(["kill", str(process.pid), *child.split()], check=False)
        process.wait()
    assert tree_mb(process.pid) == 0


def asked(answer: str, *, chunks: int, seconds: float, peak_mb: float) -> Asked:
    answers = [{"question": q, "answer": answer, "logprob": -0.1, "timings_s": {"decode": 1.0, "encode": 1.0}} for q in QUESTIONS]
    video = {"seconds": 60.0, "frames": 8 * chunks, "chunks": chunks, "audio": "audible"}
    return Asked({"answers": answers, "video": video}, seconds, peak_mb)


@pytest.mark.parametrize(
    ("peak_mb", "seconds", "answer", "words"),
    [
        (
            690.0,
            90.0,
            "yes",
            ["90 (goal <= 100, reached)", "40 (goal >= 30, reached)", "minute 47 of the busy hour changes", "60.0 times as many"],
        ),
        (
            710.0,
            200.0,
            "no",
            [
                "110 (goal <= 100, NOT reached)",
                "18 (goal >= 30, NOT reached)",
                "minute 47 of the quiet hour does NOT change",
                "NOT right both",
            ],
        ),
    ],
)
def test_the_report_says_what_was_found(peak_mb: float, seconds: float, answer: str, words: list[str]) -> None:
    report = Report("one_hour", "An hour", smoke=True)
    found = {
        "minute, with": asked("yes", chunks=16, seconds=5, peak_mb=600),
        "minute, without": asked("no", chunks=16, seconds=5, peak_mb=600),
    }
    for hour in one_hour.HOURS:
        found[f"{hour} hour, with"] = asked(answer, chunks=960, seconds=seconds, peak_mb=peak_mb)
        found[f"{hour} hour, without"] = asked("no", chunks=960, seconds=50, peak_mb=605)
    write_report(report, found, 60, 47)
    text = "\n".join(report.parts)
    assert [part for part in words if part not in text] == []
    assert "of a single minute changes the answer to `can you hear a bell?`; right both times" in text
    assert len(report.rows) == 6
