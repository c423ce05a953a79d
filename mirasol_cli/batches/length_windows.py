"""Texts of like length in the same batch: less padding, and processes that wait less for one another.

Within windows of some global batches, each source's units are sorted by their texts and dealt to the batches, and which batch gets the
short ones is drawn. What is trained on stays as it was: the units of a window, and the source at every place of the order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mirasol_cli.batches.order import Unit, UnitOrder, permutation
from mirasol_cli.shards.columns import Texts


class LengthWindows:
    """An order of units as a pure function of (seed, number of the unit, batch size, window), as `UnitOrder` is.

    Args:
        texts: of every source.
        batch: units of a global batch.
        window: global batches whose units are put together by length.
    """

    def __init__(self, order: UnitOrder, texts: Sequence[Texts], *, batch: int, window: int, seed: int):
        self._order, self._texts, self._batch, self._window, self._seed = order, texts, batch, window, seed
        # The window that is trained on, and its neighbour when a loader reads ahead over the border.
        self._arranged, self._arranging = lru_cache(maxsize=2)(self._arrange), threading.Lock()

    @property
    def units_per_epoch(self) -> int:
        return self._order.units_per_epoch

    def unit(self, i: int) -> Unit:
        """The i-th unit of training, i >= 0."""
        number, place = divmod(i, self._batch * self._window)
        with self._arranging:
            return self._arranged(number)[place]

    def _arrange(self, number: int) -> list[Unit]:
        size = self._batch * self._window
        units = [self._order.unit(number * size + place) for place in range(size)]
        source = np.array([unit.source for unit in units])
        by_size = np.lexsort(np.array([self._size(unit) for unit in units]).T)  # the last key first; stable, so pure
        drawn = permutation(self._window, self._seed, -1, number)
        by_batch = np.argsort(drawn[np.arange(size) // self._batch], kind="stable")
        arranged = units.copy()
        for one in np.unique(source):
            places, chosen = by_batch[source[by_batch] == one], by_size[source[by_size] == one]
            for place, unit in zip(places, chosen, strict=True):
                arranged[place] = units[unit]
        return arranged

    def _size(self, unit: Unit) -> tuple[int, int]:
        """Bytes of the longest text, and how many texts there are: a batch is padded to the most of both."""
        length = self._texts[unit.source].length[list(unit.text_indices)]
        return int(length.sum(axis=1).max()), len(unit.text_indices)
