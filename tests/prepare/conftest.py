"""Made-up decoding, and the world that most tests prepare with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirasol_cli.prepare import engines
from mirasol_cli.shards import index as shard_format
from tests.media.fake_decoding import FakePool
from tests.prepare.small_world import World


@pytest.fixture
def made_up_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text files stand for videos, and a shard holds four clips."""
    monkeypatch.setattr(engines, "open_pool", lambda options, geometry: FakePool(geometry))
    monkeypatch.setattr(shard_format, "LARGEST_SHARD", 4)


@pytest.fixture
def world(tmp_path: Path, made_up_decoding: None) -> World:
    """Ten training clips, of which one is broken and two are missing, and three test clips."""
    return World(tmp_path, clips=10, bad=(2,), missing=(5, 6), test_clips=3)
