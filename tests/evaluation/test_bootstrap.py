from __future__ import annotations

import numpy as np
import pytest

from mirasol_cli.evaluation.bootstrap import bootstrap, compare


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    videos = [f"v{i // 8}" for i in range(240)]
    covered = 0
    for trial in range(60):
        per_video = rng.beta(2, 2, 30)  # questions of a video share its difficulty; the mean is 0.5
        values = (rng.random(240) < np.repeat(per_video, 8)).astype(float)
        low, high = bootstrap(values, videos, seed=trial)
        covered += low <= 0.5 <= high
    assert covered >= 52


def test_it_is_wider_by_video_than_by_question_and_repeats_exactly():
    values = np.repeat([0.0, 1.0] * 10, 10)
    by_video = bootstrap(values, [str(i // 10) for i in range(200)], seed=3)
    by_question = bootstrap(values, [str(i) for i in range(200)], seed=3)
    assert by_video[1] - by_video[0] > 2 * (by_question[1] - by_question[0])
    assert by_video == bootstrap(values, [str(i // 10) for i in range(200)], seed=3)


def test_under_ten_videos_there_is_none():
    assert bootstrap([1.0, 0.0] * 30, [str(i % 9) for i in range(60)], seed=0) is None
    assert compare([1.0] * 9, [0.0] * 9, [str(i) for i in range(9)], seed=0).interval is None


def test_paired_comparison():
    rng = np.random.default_rng(0)
    videos = [str(i // 2) for i in range(200)]
    base = (rng.random(200) < 0.5).astype(float)
    same = compare(base, base, videos, seed=0)
    assert same.difference == 0
    assert same.interval == (0, 0)
    assert same.p == 1.0
    better = np.where(np.arange(200) % 5 == 0, 1.0, base)
    result = compare(better, base, videos, seed=0)
    assert result.won == int(((better - base) > 0).sum())
    assert result.lost == 0
    assert result.difference == pytest.approx(better.mean() - base.mean())
    assert result.interval[0] > 0
    assert result.p < 0.01
