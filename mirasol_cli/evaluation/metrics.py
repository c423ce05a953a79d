"""Metrics on plain arrays: answers compared as text, and class scores ranked. Only numpy; all values are fractions."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

ARTICLES = frozenset({"a", "an", "the"})
MEANING = frozenset("%‰#&@")
"""Unicode counts these as punctuation, but they change what a word says: `c#`, `50%`."""
GLYPHS = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "−": "-", "‐": "-", "‑": "-"})
"""Apostrophes, minus signs and hyphens that are typed differently and mean the same."""
_NUMBER = re.compile(r"[-+]?\.?\d")


def canonical(text: str) -> str:
    """The text as answers are compared: without outer white space, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def exact(prediction: str, answers: Sequence[str]) -> bool:
    """Equality of the `canonical` texts with any accepted answer; nothing else is forgiven. An empty prediction equals none."""
    return bool(prediction.strip()) and canonical(prediction) in {canonical(answer) for answer in answers}


def normalise(text: str) -> str:
    """Lower case, without articles, superfluous blanks and punctuation at the edges of words.

    OURS: what changes the meaning stays: the sign and the point of a number (`-5`, `.5`, `3.5`), symbols (`c++`, `$`, emoji), marks
    inside words (`hip-hop`). A text of which nothing would be left keeps itself, so that "?" does not equal "!", nor "a" "the".
    """
    lowered = canonical(canonical(text).translate(GLYPHS).lower()).split()
    words = [bare for word in lowered if (bare := _bare(word))]
    return " ".join([word for word in words if word not in ARTICLES] or words or lowered)


def _bare(word: str) -> str:
    """The word without punctuation at its edges, but for what belongs to a number."""
    first, last = 0, len(word)
    while first < last and _is_punctuation(word[first]) and not _NUMBER.match(word, first):
        first += 1
    while last > first and _is_punctuation(word[last - 1]):
        last -= 1
    return word[first:last]


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" and character not in MEANING


def exact_normalised(prediction: str, answers: Sequence[str]) -> bool:
    """Equality of the `normalise`d texts with any accepted answer. An empty prediction equals none."""
    return bool(prediction.strip()) and normalise(prediction) in {normalise(answer) for answer in answers}


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 of shared words over the accepted answers, both sides normalised (the SQuAD measure)."""
    return max((_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers), default=0.0)


def set_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of two sets of names, in any order."""
    return _f1(list(set(predicted)), list(set(expected)))


def _f1(predicted: list[str], expected: list[str]) -> float:
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected)) if shared else 0.0


def top_k(scores_RC: np.ndarray, gold_R: np.ndarray, k: int) -> np.ndarray:
    """bool [R]: the gold class is among the k best. Equal scores rank in class order, as argmax takes the first."""
    gold_score = scores_RC[np.arange(len(gold_R)), gold_R][:, None]
    earlier = np.arange(scores_RC.shape[1])[None] < gold_R[:, None]
    better = (scores_RC > gold_score) | ((scores_RC == gold_score) & earlier)
    return better.sum(axis=1) < k


def mean_per_class(correct_R: np.ndarray, gold_R: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their rows that are correct (EPIC-SOUNDS' mPCA)."""
    return float(np.mean([correct_R[gold_R == c].mean() for c in np.unique(gold_R)]))


def average_precision(positive_R: np.ndarray, score_R: np.ndarray) -> float:
    """Sum over distinct thresholds of precision times the step in recall. NaN without a positive row."""
    total = int(positive_R.sum())
    if not total:
        return math.nan
    order = np.argsort(-score_R, kind="stable")
    hits = np.cumsum(positive_R[order])
    last_of_tie = np.append(np.diff(score_R[order]) != 0, True)  # rows of equal score enter together
    hits, rows = hits[last_of_tie], np.flatnonzero(last_of_tie) + 1
    return float(np.sum(np.diff(hits, prepend=0) / total * (hits / rows)))


def roc_auc(positive_R: np.ndarray, score_R: np.ndarray) -> float:
    """Probability that a positive row scores above a negative one, ties counting half. NaN if either kind is absent."""
    positives = int(positive_R.sum())
    negatives = len(positive_R) - positives
    if not positives or not negatives:
        return math.nan
    _, tie_group, tie_size = np.unique(score_R, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(tie_size) - (tie_size - 1) / 2  # ranks from 1, ties share their mean
    rank_sum = mean_rank[tie_group][positive_R.astype(bool)].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def mean_over_classes(measure: Callable[[np.ndarray, np.ndarray], float], positive_RC: np.ndarray, score_RC: np.ndarray) -> float:
    """Mean of `measure` (`average_precision` or `roc_auc`) over the classes for which it is defined; NaN if there is none."""
    values = [measure(positive_RC[:, c], score_RC[:, c]) for c in range(score_RC.shape[1])]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def softmax(logits_RC: np.ndarray) -> np.ndarray:
    """Rows as probabilities; a row of -inf (a clip that is missing) becomes uniform."""
    peak = logits_RC.max(axis=1, keepdims=True)
    weights = np.exp(logits_RC - np.where(np.isfinite(peak), peak, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1.0), 1.0 / logits_RC.shape[1])
