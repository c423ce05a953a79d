"""Uncertainty of a mean over questions whose videos, not whose questions, were drawn independently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEAST_VIDEOS = 10
"""Under this many videos the bootstrap collapses to intervals that are far too narrow, so none is given."""
METHOD = f"95 % percentile bootstrap over videos, {RESAMPLES} resamples; not available under {LEAST_VIDEOS} videos"


def bootstrap(values: Sequence[float], videos: Sequence[str], seed: int) -> tuple[float, float] | None:
    """95 % interval of the mean of `values` when whole videos are drawn with replacement; None under 10 videos."""
    sums, counts = _per_video(values, videos)
    if len(sums) < LEAST_VIDEOS:
        return None
    means = _resampled_means(sums, counts, seed)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same questions."""

    n: int
    difference: float  # mean of this minus mean of the baseline
    interval: tuple[float, float] | None  # of the difference; None under 10 videos
    p: float | None  # two-sided, by flipping the sign of whole videos; None under 10 videos
    won: int  # questions only this system answers rightly
    lost: int


def compare(values: Sequence[float], baseline: Sequence[float], videos: Sequence[str], seed: int) -> Comparison:
    """Paired comparison; the i-th value of both is about the same question."""
    differences = np.asarray(values, float) - np.asarray(baseline, float)
    sums, counts = _per_video(differences, videos)
    interval, p = None, None
    if len(sums) >= LEAST_VIDEOS:
        means = _resampled_means(sums, counts, seed)
        low, high = np.percentile(means, [2.5, 97.5])
        interval = (float(low), float(high))
        rng = np.random.default_rng([seed, 1])
        flipped = np.array([np.abs((sums * rng.choice((-1.0, 1.0), len(sums))).sum()) for _ in range(RESAMPLES)])
        p = float((np.sum(flipped >= abs(sums.sum()) - 1e-9) + 1) / (RESAMPLES + 1))
    mean = float(differences.mean()) if len(differences) else 0.0
    return Comparison(len(differences), mean, interval, p, int((differences > 0).sum()), int((differences < 0).sum()))


def _per_video(values: Sequence[float] | np.ndarray, videos: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    _, group = np.unique(np.asarray(videos, dtype=object).astype(str), return_inverse=True) if len(videos) else (None, np.zeros(0, int))
    return np.bincount(group, weights=np.asarray(values, float)), np.bincount(group).astype(float)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 0])
    draws = (rng.integers(0, len(sums), len(sums)) for _ in range(RESAMPLES))
    return np.array([sums[draw].sum() / counts[draw].sum() for draw in draws])
