"""The order of units: every text once an epoch, the same for everybody, in the proportions asked for."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirasol_cli.batches.order import LARGEST_BLOCK, ClipTexts, UnitOrder, interleave, permutation, texts_by_clip
from mirasol_cli.shards.columns import Texts
from mirasol_cli.shards.reader import ShardFolder
from tests.shards.samples import write_split

sources = st.dictionaries(st.integers(0, 500), st.lists(st.integers(0, 10_000), max_size=12, unique=True), min_size=1, max_size=20).filter(
    lambda source: any(source.values())
)


def ordered(sources: list[dict[int, list[int]]], *args: Any, **options: Any) -> UnitOrder:
    return UnitOrder([ClipTexts.of(source) for source in sources], *args, **options)


@settings(max_examples=100, deadline=None)
@given(source=sources, q=st.integers(1, 9), seed=st.integers(0, 2**63))
def test_an_epoch_sees_each_text_exactly_once(source: dict[int, list[int]], q: int, seed: int) -> None:
    order = ordered([source], questions_per_clip=q, seed=seed)
    for epoch in range(3):
        units = [order.unit(epoch * order.units_per_epoch + i) for i in range(order.units_per_epoch)]
        assert {unit.epoch for unit in units} == {epoch}
        assert all(1 <= len(unit.text_indices) <= q for unit in units)
        seen = Counter((unit.clip, text) for unit in units for text in unit.text_indices)
        assert seen == Counter((clip, text) for clip, texts in source.items() for text in texts)


@settings(max_examples=50, deadline=None)
@given(mixture=st.lists(sources, min_size=1, max_size=4), seed=st.integers(0, 1000), data=st.data())
def test_a_unit_is_a_function_of_its_number(mixture: list[dict[int, list[int]]], seed: int, data: st.DataObject) -> None:
    ratios = data.draw(st.lists(st.floats(0.01, 10), min_size=len(mixture), max_size=len(mixture)))
    first, second = (ordered(mixture, ratios, 4, seed) for _ in range(2))
    numbers = [*range(100), 10**9]
    expected = [first.unit(i) for i in numbers]
    shuffled = random.Random(seed).sample(numbers, len(numbers))
    assert {i: second.unit(i) for i in shuffled} == dict(zip(numbers, expected, strict=True))


@settings(max_examples=100, deadline=None)
@given(ratios=st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_sources_are_spread_evenly(ratios: list[float]) -> None:
    pattern = interleave(ratios)
    shares = np.array(ratios) / sum(ratios)
    counts = np.array([np.cumsum(pattern == number) for number in range(len(ratios))]).T
    drift = np.abs(counts - np.outer(np.arange(1, len(pattern) + 1), counts[-1] / len(pattern)))
    assert drift.max() < len(ratios)
    assert np.abs(counts[-1] / len(pattern) - shares).max() <= 1 / LARGEST_BLOCK
    assert (counts[-1] > 0).all()


def test_simple_ratios_are_exact() -> None:
    assert interleave([3, 1]).tolist() == [0, 0, 1, 0]
    assert interleave([0.5, 0.5]).tolist() == [0, 1]
    order = ordered([{0: [0], 1: [1]}, {5: [0, 1, 2]}], [2, 1], questions_per_clip=1)
    units = [order.unit(i) for i in range(order.units_per_epoch)]
    assert Counter(unit.source for unit in units) == {0: 6, 1: 3}
    assert [unit.epoch for unit in units if unit.source == 0] == [0, 0, 1, 1, 2, 2]  # each source has epochs of its own


@pytest.mark.parametrize("ratios", [[1, 999], [1, 600], [2, 3, 995], [1, 300, 7000]])
def test_a_rare_source_is_as_rare_as_asked(ratios: list[float]) -> None:
    pattern = interleave(ratios)
    found = np.bincount(pattern) / len(pattern)
    assert np.abs(found - np.array(ratios) / sum(ratios)).max() <= 1 / LARGEST_BLOCK


def test_patterns_of_common_mixtures_stay_as_they_are() -> None:
    """Changing them would silently change what a resumed run sees."""
    assert len(interleave([1])) == 1
    assert len(interleave([0.9, 0.1])) == 10
    assert len(interleave([1, 2, 3])) == 6
    assert interleave([1, 1, 2]).tolist() == [2, 0, 1, 2]
    assert len(interleave([0.7, 0.2, 0.1])) == 10
    assert len(interleave([1, 100])) == 101


def test_epochs_and_seeds_differ() -> None:
    source = {clip: [0, 1, 2] for clip in range(50)}
    orders = [[ordered([source], seed=seed).unit(i).clip for i in range(100)] for seed in (0, 1)]
    assert orders[0][:50] != orders[0][50:] != orders[1][50:]
    assert sorted(orders[0][:50]) == list(range(50))


def test_the_order_is_the_same_on_every_machine() -> None:
    """Changing it would silently change what a resumed run sees."""
    order = ordered([{clip: [2 * clip, 2 * clip + 1] for clip in range(6)}, {9: [0]}], [2, 1], questions_per_clip=1, seed=3)
    assert [(unit.source, unit.clip, unit.text_indices) for unit in map(order.unit, range(6))] == PINNED


PINNED = [(0, 2, (5,)), (1, 9, (0,)), (0, 4, (9,)), (0, 5, (10,)), (1, 9, (0,)), (0, 0, (1,))]


@settings(max_examples=50)
@given(n=st.integers(0, 300), key=st.lists(st.integers(-5, 2**70), min_size=1, max_size=4))
def test_permutation_is_one(n: int, key: list[int]) -> None:
    assert sorted(permutation(n, *key).tolist()) == list(range(n))


def test_large_groups_are_split_evenly() -> None:
    order = ordered([{0: list(range(9))}], questions_per_clip=8)
    assert sorted(len(order.unit(i).text_indices) for i in range(2)) == [4, 5]


def test_permutations_are_near_uniform() -> None:
    first = Counter(int(permutation(4, 0, seed)[0]) for seed in range(4000))
    assert all(900 < count < 1100 for count in first.values())


@pytest.mark.parametrize(("sources", "ratios"), [([], None), ([{0: []}], None), ([{0: [1]}], [0.0]), ([{0: [1]}], [1, 1])])
def test_what_cannot_be_ordered_is_refused(sources: list, ratios: list[float] | None) -> None:
    with pytest.raises(ValueError, match="source"):
        ordered(sources, ratios)


def test_only_kept_clips_with_answers_are_trained_on(tmp_path: Path) -> None:
    write_split(tmp_path / "train", 5, failed=(1,), missing=(2,))
    split = ShardFolder(tmp_path).split("train")
    texts = list(split.texts("qa"))
    texts[0]["answer"] = None
    of_clips = texts_by_clip(split, Texts.measured(texts))
    assert as_dict(of_clips) == {0: [1], 3: [6, 7], 4: [8, 9]}
    assert as_dict(texts_by_clip(split, Texts.measured(texts), limit=2)) == {0: [1], 3: [6, 7]}
    mixed_up = [texts[position] for position in (9, 0, 7, 8, 1, 6)]
    assert as_dict(texts_by_clip(split, Texts.measured(mixed_up))) == {0: [4], 3: [2, 5], 4: [0, 3]}


def as_dict(texts: ClipTexts) -> dict[int, list[int]]:
    return {int(clip): texts.texts(i).tolist() for i, clip in enumerate(texts.clips)}
