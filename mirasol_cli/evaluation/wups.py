"""WUPS of open-ended NExT-QA: how near an answer's words are in WordNet's taxonomy, by the rules of the official script.

The word data belong to NLTK and are read from a folder that the user names; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mirasol_cli.errors import DataError, EnvironmentProblem
from mirasol_cli.evaluation.protocols import NEXTQA_GROUPS, PROTOCOLS, accepted

Similarity = Callable[[str, str], float]
"""Wu-Palmer similarity of two words' first senses, in [0, 1]; 0 where a word is unknown or they share nothing."""

NEEDED = ("corpora/wordnet", "tokenizers/punkt_tab", "taggers/averaged_perceptron_tagger_eng")
STOP_WORDS = "stopwords.txt"
EQUALITY_TYPES = ("DC", "DB")
"""Counts and yes/no questions are compared for equality."""
PROTOCOL = PROTOCOLS["nextqa", "oe"]


def wups_figures(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, float]:
    """`wups`, `wups_c`, `wups_t`, `wups_d` (threshold 0) and `wups_0.9`, as fractions, over the questions with a gold answer.

    Args:
        folder: NLTK data, with the benchmark's `stopwords.txt` beside its `corpora`.

    Raises:
        EnvironmentProblem: NLTK is not installed.
        DataError: the folder lacks something; the message names it.
    """
    words_of, similarity = _language(folder)
    return figures(rows, words_of, similarity)


def figures(rows: Sequence[Mapping[str, Any]], words_of: Callable[[str], list[str]], similarity: Similarity) -> dict[str, float]:
    """The same with any way to get a text's words and any similarity."""
    labelled = [row for row in rows if accepted(row, PROTOCOL)]
    if not labelled:
        return {}
    plain, strict = ([_best(row, words_of, similarity, threshold) for row in labelled] for threshold in (0.0, 0.9))
    result = {"wups": sum(plain) / len(plain), "wups_0.9": sum(strict) / len(strict)}
    for group, types in NEXTQA_GROUPS.items():
        part = [value for row, value in zip(labelled, plain, strict=True) if row["type"] in types]
        if part:
            result[f"wups_{group.lower()}"] = sum(part) / len(part)
    return result


def _best(row: Mapping[str, Any], words_of: Callable[[str], list[str]], similarity: Similarity, threshold: float) -> float:
    """The better of the gold answer and the added reference answers; no answer, as of a missing clip, is worth nothing."""
    if not (row.get("prediction") or "").strip():
        return 0.0
    predicted = words_of(row["prediction"])
    expected = [words_of(answer) for answer in accepted(row, PROTOCOL)]
    if row["type"] in EQUALITY_TYPES:
        return float(any(predicted == words for words in expected))
    return max(wups(predicted, words, similarity, threshold) for words in expected)


def wups(first: Sequence[str], second: Sequence[str], similarity: Similarity, threshold: float) -> float:
    """The lesser of both directions."""
    return min(_one_way(first, second, similarity, threshold), _one_way(second, first, similarity, threshold))


def _one_way(words: Sequence[str], others: Sequence[str], similarity: Similarity, threshold: float) -> float:
    """Product over `words` of the best similarity to any of `others`; a word that resembles none is skipped, not a zero."""
    product, counted = 1.0, False
    for word in words:
        best = max((_scaled(1.0 if word == other else similarity(word, other), threshold) for other in others), default=0.0)
        if best > 0:
            product, counted = product * best, True
    return product if counted else 0.0


def _scaled(value: float, threshold: float) -> float:
    return value if value >= threshold else 0.1 * value


def _language(folder: Path) -> tuple[Callable[[str], list[str]], Similarity]:
    """Lemmas without stop words (as pywsd's `lemmatize_sentence` gives them), and WordNet's similarity."""
    try:
        import nltk
        from nltk.corpus import wordnet
        from nltk.stem import PorterStemmer, WordNetLemmatizer
    except ImportError:
        raise EnvironmentProblem("WUPS needs NLTK, which is not installed", "pip install 'mirasol[wups]'") from None
    missing = [name for name in NEEDED if not (folder / name).is_dir() and not (folder / f"{name}.zip").is_file()]
    if not (folder / STOP_WORDS).is_file():
        missing.append(STOP_WORDS)
    if missing:
        raise DataError(
            f"'{folder}' lacks {', '.join(missing)}",
            f"it must hold NLTK's {', '.join(NEEDED)} (nltk.download fetches them) and the {STOP_WORDS} of NExT-OE",
        )
    nltk.data.path.insert(0, str(folder))
    stop_words = set((folder / STOP_WORDS).read_text(encoding="utf-8").split())
    lemmatizer, stemmer = WordNetLemmatizer(), PorterStemmer()

    def lemma(word: str, tag: str) -> str:
        part = {"J": "a", "N": "n", "R": "r", "V": "v"}.get(tag[:1], "n")
        found = lemmatizer.lemmatize(word, pos=part)
        if wordnet.synsets(found):
            return found
        stem = stemmer.stem(word)
        return stem if wordnet.synsets(stem) else word

    def words_of(text: str) -> list[str]:
        tagged = nltk.pos_tag(nltk.word_tokenize(text))
        return [word for word in (lemma(token.lower(), tag) for token, tag in tagged) if word not in stop_words]

    @lru_cache(maxsize=1 << 20)
    def similarity(first: str, second: str) -> float:
        one, two = wordnet.synsets(first), wordnet.synsets(second)
        return float(one[0].wup_similarity(two[0]) or 0.0) if one and two else 0.0

    return words_of, similarity
