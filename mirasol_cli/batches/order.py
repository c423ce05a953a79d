"""The order of training: which clip with which of its texts is the i-th unit, as a pure function of (seed, i, mixture).

A unit is a clip with up to q of its texts, so that its media are encoded once for all of them. The order knows nothing of
processes: rank r of w takes whatever units of the global batch are its own, and another world size sees the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, lcm

import numpy as np

from mirasol_cli.shards.columns import Texts
from mirasol_cli.shards.reader import ShardSplit

LARGEST_BLOCK = 4096
"""Units after which a mixture repeats its pattern, at most; ratios are kept to 1 / LARGEST_BLOCK or better (of sources that are
rarer than that, each comes once in a block)."""


@dataclass(frozen=True)
class Unit:
    """One clip with some of its texts, in the `epoch`-th pass over its source."""

    source: int
    epoch: int
    clip: int
    text_indices: tuple[int, ...]


@dataclass(frozen=True)
class ClipTexts:
    """Which texts belong to which clip, as arrays: the texts of clip `clips[i]` are `positions[starts[i] : starts[i + 1]]`."""

    clips: np.ndarray  # numbers of the clips that have texts, ascending
    starts: np.ndarray  # [clips + 1]
    positions: np.ndarray  # of the texts in `ShardSplit.texts(task)`

    @staticmethod
    def of(texts: Mapping[int, Sequence[int]]) -> ClipTexts:
        """From clip number -> positions."""
        clips = [clip for clip in sorted(texts) if texts[clip]]
        positions = [position for clip in clips for position in texts[clip]]
        starts = np.cumsum([0, *(len(texts[clip]) for clip in clips)])
        return ClipTexts(_compact(np.array(clips, np.int64)), _compact(starts), _compact(np.array(positions, np.int64)))

    @staticmethod
    def gathered(clip: np.ndarray, positions: np.ndarray) -> ClipTexts:
        """From the clip of each text and the text's position."""
        if np.any(clip[1:] < clip[:-1]):
            by_clip = np.argsort(clip, kind="stable")
            clip, positions = clip[by_clip], positions[by_clip]
        first = np.flatnonzero(np.concatenate([[True], clip[1:] != clip[:-1]])) if len(clip) else np.zeros(0, np.int64)
        return ClipTexts(_compact(clip[first]), _compact(np.append(first, len(clip))), _compact(positions))

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.clips)

    def texts(self, i: int) -> np.ndarray:
        """Positions of the texts of the i-th clip."""
        return self.positions[int(self.starts[i]) : int(self.starts[i + 1])]


def _compact(numbers: np.ndarray) -> np.ndarray:
    """The same numbers, none of them negative, in four bytes each where that holds them."""
    return numbers.astype(np.uint32) if not len(numbers) or numbers.max() <= np.iinfo(np.uint32).max else numbers


def texts_by_clip(split: ShardSplit, texts: Texts, limit: int | None = None) -> ClipTexts:
    """The texts that can be trained on: with an answer, of the split's first `limit` kept clips."""
    wanted = np.zeros(len(split.columns.status), bool)
    wanted[split.kept[:limit]] = True
    positions = np.flatnonzero(texts.answered & wanted[texts.clip])
    return ClipTexts.gathered(texts.clip[positions], positions)


class UnitOrder:
    """The endless order of units over one or several sources.

    Every source runs through epochs of its own: in each, every text comes exactly once, its clip's texts newly grouped and all groups
    newly permuted. Sources are interleaved evenly in the proportion of `ratios`.

    Raises ValueError if a source has no text, or a ratio is not positive.
    """

    def __init__(self, sources: Sequence[ClipTexts], ratios: Sequence[float] | None = None, questions_per_clip: int = 8, seed: int = 0):
        ratios = [1.0] * len(sources) if ratios is None else ratios
        if not sources or len(sources) != len(ratios) or min(ratios) <= 0 or questions_per_clip < 1:
            raise ValueError("there must be at least one source, as many positive ratios as sources, and at least one question per clip")
        for number, source in enumerate(sources):
            if not len(source):
                raise ValueError(f"source {number} has no text to train on")
        self._sources = [_Source(source, questions_per_clip, seed, number) for number, source in enumerate(sources)]
        self._pattern = interleave(ratios)
        self._per_block = np.bincount(self._pattern, minlength=len(sources))
        self._rank = np.zeros(len(self._pattern), np.int64)  # how many of the same source come before it in the block
        for number in range(len(sources)):
            places = np.flatnonzero(self._pattern == number)
            self._rank[places] = np.arange(len(places))

    def unit(self, i: int) -> Unit:
        """The i-th unit of training, i >= 0. Constant time after the first unit of an epoch."""
        block, place = divmod(i, len(self._pattern))
        number = int(self._pattern[place])
        return self._sources[number].unit(block * int(self._per_block[number]) + int(self._rank[place]))

    @property
    def units_per_epoch(self) -> int:
        """Units until every text of every source has been seen at least once."""
        return max(ceil(source.units * len(self._pattern) / int(n)) for source, n in zip(self._sources, self._per_block, strict=True))


class _Source:
    """The units of one source, epoch by epoch."""

    def __init__(self, texts: ClipTexts, questions_per_clip: int, seed: int, number: int):
        self._texts, self._seed, self._number = texts, seed, number
        counts = np.diff(texts.starts.astype(np.int64))
        groups = -(-counts // questions_per_clip)
        self._first = _compact(np.concatenate([[0], np.cumsum(groups)]))  # the first unit of each clip
        self.units = int(self._first[-1])
        # Two epochs: the one that is running, and its neighbour when a loader reads ahead over the border.
        self._order, self._ordering = lru_cache(maxsize=2)(self._permutation), threading.Lock()

    def unit(self, i: int) -> Unit:
        epoch, place = divmod(i, self.units)
        with self._ordering:  # threads that ask at the same time must not each sort all units
            unit = int(self._order(epoch)[place])
        clip = int(np.searchsorted(self._first, self._first.dtype.type(unit), side="right")) - 1  # of the same type, or all are converted
        return Unit(self._number, epoch, int(self._texts.clips[clip]), self._share(epoch, clip, unit - int(self._first[clip])))

    def _permutation(self, epoch: int) -> np.ndarray:
        return _compact(permutation(self.units, self._seed, self._number, epoch))

    def _share(self, epoch: int, clip: int, group: int) -> tuple[int, ...]:
        """The texts of the `clip`-th clip, shuffled for this epoch, in groups as equal as can be. OURS: 9 texts at q = 8 are 5 + 4,
        not 8 + 1."""
        texts = self._texts.texts(clip)
        order = permutation(len(texts), self._seed, self._number, epoch, int(self._texts.clips[clip]) + 1)
        size, longer = divmod(len(texts), int(self._first[clip + 1]) - int(self._first[clip]))
        start = group * size + min(group, longer)
        return tuple(int(texts[order[j]]) for j in range(start, start + size + (group < longer)))


def interleave(ratios: Sequence[float]) -> np.ndarray:
    """Source numbers of one block, each source spread evenly over it; after k whole blocks the proportions are exact.

    The block is as short as the ratios allow: 3 : 1 gives [0, 0, 1, 0].
    """
    total = sum(ratios)
    wanted = [ratio / total for ratio in ratios]
    shares = [Fraction(share).limit_denominator(LARGEST_BLOCK // (4 * len(ratios)) or 1) for share in wanted]
    length = lcm(*(share.denominator for share in shares))
    close = all(abs(share - exact) <= 1 / LARGEST_BLOCK for share, exact in zip(shares, wanted, strict=True))
    if close and sum(shares) == 1 and length <= LARGEST_BLOCK and 0 not in shares:
        counts = [int(share * length) for share in shares]
    else:
        counts = _largest_remainders(wanted, LARGEST_BLOCK)
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    numbers = np.concatenate([np.full(count, number) for number, count in enumerate(counts)])
    return numbers[np.lexsort((numbers, places))]


def _largest_remainders(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` that add up to `total`, each at least 1."""
    counts = [max(1, int(share * total)) for share in shares]
    by_need = sorted(range(len(shares)), key=lambda n: (counts[n] - shares[n] * total, n))
    for k in range(total - sum(counts)):
        counts[by_need[k % len(counts)]] += 1
    while sum(counts) > total:
        counts[max(range(len(counts)), key=lambda n: counts[n])] -= 1
    return counts


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of n numbers that depends on `key` only: sorted by a 64-bit hash, so no library's generator can change it."""
    salt = np.uint64(0)
    with np.errstate(over="ignore"):
        for part in key:
            salt = _mix(np.array([salt ^ np.uint64(part & 0xFFFF_FFFF_FFFF_FFFF)]))[0]
        keys = np.arange(n, dtype=np.uint64)
        keys += salt
        return np.argsort(_mix(keys), kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), in place."""
    x += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x
