"""The data sets by the names of the command line; a reader is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from mirasol_cli.errors import UsageError

DATASETS = {
    "vggsound": "mirasol_cli.datasets.vggsound",
    "activitynet": "mirasol_cli.datasets.activitynet",
    "msrvtt": "mirasol_cli.datasets.msrvtt",
    "msvd": "mirasol_cli.datasets.msvd",
    "nextqa": "mirasol_cli.datasets.nextqa",
    "kinetics-sounds": "mirasol_cli.datasets.kinetics_sounds",
    "epic-sounds": "mirasol_cli.datasets.epic_sounds",
    "audioset": "mirasol_cli.datasets.audioset",
    "esc50": "mirasol_cli.datasets.esc50",
    "captions": "mirasol_cli.datasets.captions",
    "demo": "mirasol_cli.datasets.demo",
    "demo-long": "mirasol_cli.datasets.demo_long",
}
RENDERED = ("demo", "demo-long")
"""Worlds of our own: `prepare` renders their videos; each module has its `WORLD`."""


def open_dataset(name: str) -> ModuleType:
    """The reader's module: NAME, TITLE, LICENCE, TASKS, SOURCE, candidates(clip), read(root, task, options), and HAS_VIDEO = False where
    the set is of sound alone.

    Raises:
        UsageError: no data set has this name; the nearest one is named.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        raise UsageError(
            f"unknown data set '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""),
            f"known data sets: {', '.join(DATASETS)}; or pass a JSONL or CSV manifest",
        )
    return importlib.import_module(DATASETS[name])


def licences() -> dict[str, str]:
    """Data set -> its licence in one line, for `prepare --help` (the rendered ones are our own)."""
    return {name: open_dataset(name).LICENCE for name in DATASETS if name not in RENDERED}
