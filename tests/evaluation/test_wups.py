"""WUPS on a toy taxonomy against a second, straight statement of the official rules."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mirasol_cli.errors import DataError, EnvironmentProblem
from mirasol_cli.evaluation import wups as module
from mirasol_cli.evaluation.wups import figures, wups, wups_figures

NEAR = {frozenset({"dog", "cat"}): 0.85, frozenset({"dog", "car"}): 0.4, frozenset({"run", "walk"}): 0.95, frozenset({"cat", "car"}): 0.3}


def similarity(first, second):
    return 1.0 if first == second else NEAR.get(frozenset({first, second}), 0.0)


def restated(prediction, truth, threshold):
    """The rules as the data set's description words them."""

    def direction(a, b):
        factors = []
        for x in a:
            best = 0.0
            for y in b:
                value = similarity(x, y)
                best = max(best, value * 0.1 if value < threshold else value)
            if best != 0:
                factors.append(best)
        return float(np.prod(factors)) if factors else 0.0

    return min(direction(prediction, truth), direction(truth, prediction))


def test_it_equals_the_restatement_on_random_answers():
    rng = np.random.default_rng(0)
    words = ["dog", "cat", "car", "run", "walk", "odd"]
    for _ in range(300):
        first, second = ([words[i] for i in rng.integers(0, 6, rng.integers(0, 4))] for _ in range(2))
        for threshold in (0.0, 0.9):
            assert wups(first, second, similarity, threshold) == pytest.approx(restated(first, second, threshold))


def test_cases_worked_by_hand():
    assert wups(["dog"], ["cat"], similarity, 0.0) == 0.85
    assert wups(["dog"], ["cat"], similarity, 0.9) == pytest.approx(0.085)
    assert wups(["dog", "odd"], ["dog"], similarity, 0.0) == 1.0  # a word that resembles none is skipped
    assert wups([], ["dog"], similarity, 0.0) == 0.0
    assert wups(["dog", "run"], ["cat", "walk"], similarity, 0.0) == pytest.approx(0.85 * 0.95)


def test_figures_by_group_with_the_better_reference_and_equality_for_counts():
    rows = [
        {"type": "CW", "prediction": "dog", "answer": "car", "references": ["cat"]},
        {"type": "TP", "prediction": "run", "answer": "walk"},
        {"type": "DC", "prediction": "cat", "answer": "dog"},
        {"type": "DB", "prediction": "dog", "answer": "dog"},
        {"type": "CH", "prediction": "dog", "answer": None},
    ]
    assert figures(rows, str.split, similarity) == {
        "wups": pytest.approx((0.85 + 0.95 + 0 + 1) / 4), "wups_0.9": pytest.approx((0.085 + 0.95 + 0 + 1) / 4),
        "wups_c": 0.85, "wups_t": 0.95, "wups_d": 0.5,
    }  # fmt: skip


def test_what_is_lacking_is_named(tmp_path, monkeypatch):
    rows = [{"type": "CW", "prediction": "dog", "answer": "dog"}]
    if module_there():
        with pytest.raises(DataError, match=r"corpora/wordnet.*stopwords\.txt"):
            wups_figures(rows, tmp_path)
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(EnvironmentProblem, match="not installed"):
        module._language(tmp_path)


def module_there():
    try:
        import nltk  # noqa: F401
    except ImportError:
        return False
    return True
