"""Settings that must hold before torch is imported."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # two threads on busy cores make tiny operations up to a thousand times slower

import pytest

from tests.paths import SHARED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the long forms")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="long form: run with --slow"))
        if "real" in item.keywords and SHARED is None:
            item.add_marker(pytest.mark.skip(reason="the real clips are not at hand"))
