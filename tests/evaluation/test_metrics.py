"""Ranking figures against scikit-learn, text figures against hand-worked cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mirasol_cli.evaluation import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("levels", [3, 10, 100000])  # few levels: many equal scores
def test_average_precision_and_auc_equal_scikit_learn(levels):
    rng = np.random.default_rng(levels)
    for _ in range(50):
        positive = rng.random(60) < 0.3
        score = rng.integers(0, levels, 60) / levels
        assert metrics.average_precision(positive, score) == pytest.approx(sklearn_metrics.average_precision_score(positive, score))
        assert metrics.roc_auc(positive, score) == pytest.approx(sklearn_metrics.roc_auc_score(positive, score))


def test_classes_without_a_positive_row_are_left_out_of_the_mean():
    positive = np.array([[1, 0, 0], [0, 1, 0]], bool)
    score = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5]])
    assert metrics.mean_over_classes(metrics.average_precision, positive, score) == 1.0
    assert math.isnan(metrics.mean_over_classes(metrics.average_precision, positive[:, 2:], score[:, 2:]))


def test_top_k_ranks_equal_scores_in_class_order_like_scikit_learn_without_ties():
    rng = np.random.default_rng(0)
    scores, gold = rng.random((80, 12)), rng.integers(0, 12, 80)
    for k in (1, 5):
        expected = sklearn_metrics.top_k_accuracy_score(gold, scores, k=k, labels=np.arange(12))
        assert metrics.top_k(scores, gold, k).mean() == pytest.approx(expected)
    assert metrics.top_k(np.zeros((3, 3)), np.array([0, 1, 2]), 1).tolist() == [True, False, False]


def test_mean_per_class_is_balanced_accuracy():
    rng = np.random.default_rng(1)
    gold, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    expected = sklearn_metrics.balanced_accuracy_score(gold, predicted)
    assert metrics.mean_per_class((gold == predicted).astype(float), gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answer", "strict", "loose"),
    [
        (" couch ", "couch", True, True),
        ("Couch", "couch", False, True),
        ("the couch.", "couch", False, True),
        ("couches", "couch", False, False),
        ("people eating noodle", "people eating", False, False),  # a prefix is not the class
        ("police car siren", "police car (siren)", False, True),
        ("", "the", False, False),
        ("a", "the", False, False),
        ("“yes”", "yes", False, True),
        ("the ?", "the", False, True),
        ("don’t", "don't", False, True),
        ("(siren)", "siren", False, True),
        ("5.", "5", False, True),
        ("(-5)", "-5", False, True),
        ("−5", "-5", False, True),
        # signs, points and symbols mean something
        ("-5", "5", False, False),
        ("3.5", "35", False, False),
        (".5", "5", False, False),
        ("c", "c++", False, False),
        ("c", "c#", False, False),
        ("50%", "50", False, False),
        ("hip-hop", "hip hop", False, False),
        # nothing but signs
        ("+", "-", False, False),
        ("?", "!", False, False),
        ("...", "-", False, False),
        ("🔥", "🌹", False, False),
        ("?", " ? ", True, True),
        # Unicode has two forms of many letters
        ("cafe\u0301", "caf\u00e9", True, True),
        ("Cafe\u0301", "caf\u00e9", False, True),
    ],
)
def test_exact_match(prediction, answer, strict, loose):
    assert metrics.exact(prediction, [answer]) is strict
    assert metrics.exact_normalised(prediction, [answer]) is loose


def test_token_f1_takes_the_best_reference():
    assert metrics.token_f1("a dog runs fast", ["the cat", "dog runs"]) == pytest.approx(2 * 2 / (3 + 2))
    assert metrics.token_f1("x", ["y"]) == 0.0


def test_softmax_gives_a_missing_clip_no_preference():
    probabilities = metrics.softmax(np.array([[0.0, np.log(3.0)], [-np.inf, -np.inf]]))
    assert probabilities == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
