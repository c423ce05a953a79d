"""The demo world in clips of a minute as a data set."""

from __future__ import annotations

from mirasol_cli.datasets.demo import LICENCE, TASKS, World, candidates
from mirasol_cli.demo.world import long_questions, long_scenes

__all__ = ["LICENCE", "NAME", "SOURCE", "TASKS", "TITLE", "WORLD", "candidates", "read"]

NAME, TITLE = "demo-long", "the demo world, long clips"
SOURCE = "`mirasol prepare demo-long`, which renders it"
WORLD = World(name=NAME, title=TITLE, scenes=long_scenes, questions=long_questions, clips=400, val_share=10, test_share=4)
read = WORLD.read
