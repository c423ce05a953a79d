"""The small form of `caption_lists.py`."""

import pytest

import caption_lists
from common import in_child


@pytest.mark.parametrize("kind", ["internvid", "panda70m", "webvid"])
def test_memory_does_not_grow_with_the_rows_of_a_list(kind: str) -> None:
    """With a small cache for the tables, so that a short list is longer than it."""
    short, long = (in_child(caption_lists.__file__, "--one", "read", kind, str(rows), "--cache-kb", "500") for rows in (4_000, 24_000))
    assert (short["texts"], long["texts"]) == (short["clips"], long["clips"]) == (4_000, 24_000)
    assert (long["peak_mb"] - short["peak_mb"]) * 1e6 / 20_000 < 150  # bytes a row; a text alone takes several hundred as an object
