"""Texts of like length come together, and nothing else changes."""

from collections import Counter

import numpy as np
import pytest

from mirasol_cli.batches.length_windows import LengthWindows
from mirasol_cli.batches.order import ClipTexts, UnitOrder
from mirasol_cli.shards.columns import Texts

BATCH, WINDOW = 6, 5


def texts(count: int, seed: int) -> Texts:
    lengths = np.random.default_rng(seed).integers(1, 300, count)
    return Texts.measured([{"clip": n // 3, "answer": "yes", "question": "?", "context": "x" * int(k)} for n, k in enumerate(lengths)])


SOURCES = [texts(90, 0), texts(45, 1)]
CLIPS = [ClipTexts.gathered(source.clip, np.arange(len(source))) for source in SOURCES]


def orders(seed: int = 3) -> tuple[UnitOrder, LengthWindows]:
    plain = UnitOrder(CLIPS, [3, 1], questions_per_clip=2, seed=seed)
    return plain, LengthWindows(plain, SOURCES, batch=BATCH, window=WINDOW, seed=seed)


def longest(unit) -> int:  # type: ignore[no-untyped-def]
    return int(SOURCES[unit.source].length[list(unit.text_indices)].sum(axis=1).max())


@pytest.mark.parametrize("number", [0, 1, 7])
def test_a_window_holds_the_same_units_and_every_place_the_same_source(number: int) -> None:
    plain, grouped = orders()
    size = BATCH * WINDOW
    before, after = ([order.unit(number * size + place) for place in range(size)] for order in (plain, grouped))
    assert Counter(before) == Counter(after)
    assert [unit.source for unit in before] == [unit.source for unit in after]
    assert before != after


def test_batches_are_padded_less() -> None:
    plain, grouped = orders()
    padding = {}
    for name, order in (("plain", plain), ("grouped", grouped)):
        batches = [[order.unit(k * BATCH + place) for place in range(BATCH)] for k in range(10 * WINDOW)]
        lengths = [[(longest(unit), len(unit.text_indices)) for unit in batch] for batch in batches]
        filled = sum(length * count for batch in lengths for length, count in batch)
        padded = sum(len(batch) * max(length for length, _ in batch) * max(count for _, count in batch) for batch in lengths)
        padding[name] = 1 - filled / padded
    assert padding["grouped"] < 0.7 * padding["plain"]


def test_which_batch_has_the_long_ones_is_drawn() -> None:
    _, grouped = orders()
    means = [np.mean([longest(grouped.unit(k * BATCH + place)) for place in range(BATCH)]) for k in range(20 * WINDOW)]
    where = Counter(int(np.argmax(means[w * WINDOW : (w + 1) * WINDOW])) for w in range(20))
    assert len(where) >= 3


def test_a_unit_is_a_function_of_its_number_so_that_a_resume_is_exact() -> None:
    expected = [orders()[1].unit(i) for i in range(200)]
    _, grouped = orders()
    for i in np.random.default_rng(0).permutation(200):
        assert grouped.unit(int(i)) == expected[i]
    assert [orders(seed=4)[1].unit(i) for i in range(200)] != expected
