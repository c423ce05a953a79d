"""Clips cut by stream copy, as download scripts cut them, through the commands: what `prepare` stores and `ask` looks at."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mirasol_cli.config.schema import EvalRecipe
from mirasol_cli.datasets.example import DatasetOptions
from mirasol_cli.geometry import THUMBNAIL_SIZE
from mirasol_cli.inference.answerer import Answerer
from mirasol_cli.inference.video import open_clip
from mirasol_cli.prepare.command import prepare
from mirasol_cli.shards.reader import ShardFolder
from tests.evaluation.tiny import tiny_model, tiny_vocabulary
from tests.media.clock import FPS, Clock, copy_span, read_frame, write_clock
from tests.media.fake_decoding import write_recipe

CUT_S, SECONDS = 7.3, 10.0


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cut")
    whole = write_clock(folder / "whole.mp4", Clock(options={"preset": "ultrafast", "bf": "2"}, seconds=20))
    path = folder / "cut.mp4"
    if shutil.which("ffmpeg") is None:
        return copy_span(whole, path, CUT_S, CUT_S + SECONDS)
    command = ["ffmpeg", "-v", "error", "-ss", str(CUT_S), "-i", str(whole), "-t", str(SECONDS), "-c", "copy", str(path)]
    subprocess.run(command, check=True)
    return path


def check(sample) -> None:
    """Each thumbnail shows the content of its frame's time."""
    assert np.asarray(sample["frame_valid"]).all()
    frames, times_TF = np.asarray(sample["thumbnails"])[:, 0], np.asarray(sample["frame_times"])
    assert frames.shape[1] == THUMBNAIL_SIZE
    shown = [read_frame(image) for image in frames]
    right = CUT_S + times_TF[:, 0]
    assert all(upright for _, upright in shown)
    assert np.abs(np.array([number for number, _ in shown]) / FPS - right).max() <= 0.5 / FPS + 1e-3


def test_prepare_of_a_manifest(cut, tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"video": str(cut.name), "caption": "a clock"}) + "\n")
    shutil.copy(cut, tmp_path)
    small = str(write_recipe(tmp_path))
    summary = prepare(str(tmp_path / "m.jsonl"), out=tmp_path / "out", recipe=small, workers=1, say=lambda line: None)
    assert [counts["kept"] for counts in summary["splits"].values()] == [1]
    check(ShardFolder(tmp_path / "out").split("train").media(0))


def test_prepare_of_a_vggsound_folder(cut, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    rows = [("aaaaaaaaaaa", 30, "train"), ("bbbbbbbbbbb", 7, "test")]
    for name, start, _ in rows:
        shutil.copy(cut, videos / f"{name}_{start:06d}.mp4")
    (tmp_path / "vggsound.csv").write_text("".join(f"{name},{start},people clapping,{split}\n" for name, start, split in rows))
    small = str(write_recipe(tmp_path))
    out = tmp_path / "out"
    summary = prepare(
        "vggsound", root=tmp_path, out=out, recipe=small, workers=1, say=lambda line: None, options=DatasetOptions(held_out=0)
    )
    assert {name: counts["kept"] for name, counts in summary["splits"].items()}["test"] == 1
    check(ShardFolder(out).split("train").media(0))
    check(ShardFolder(out).split("test").media(0))


def test_ask(cut):
    answerer = Answerer(tiny_model(0), tiny_vocabulary(), EvalRecipe(max_tokens=6))
    check(open_clip(answerer, cut, usual_s=20.0).sample)
