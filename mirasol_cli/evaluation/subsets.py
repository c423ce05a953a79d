"""Subsets with a purpose: small, always the same clips, so that figures of different days and models can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Subset:
    split: str  # what it is a part of
    clips: int  # at most so many
    purpose: str


SUBSETS = {
    "minitrain": Subset("train", 500, "to gauge memorization"),
    "minival": Subset("val", 500, "to monitor progress"),
}
"""OURS: names of `eval.split` beside the prepared splits. 500 clips tell a share near one half to 4 points or better."""


def choose(keys: Iterable[str], count: int) -> frozenset[str]:
    """The `count` clip keys of smallest hash: a sample that depends neither on the order of the clips nor on which are present,
    and that holds every smaller one."""
    return frozenset(sorted(keys, key=_rank)[:count])


def _rank(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
