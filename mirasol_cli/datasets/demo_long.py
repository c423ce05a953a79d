"""The long form of the demo world as a data set: clips of a minute, rendered here."""

from __future__ import annotations

from mirasol_cli.datasets.rendered import LICENCE, TASKS, World, candidates
from mirasol_cli.demo.long_world import questions, scenes

__all__ = ["LICENCE", "NAME", "SOURCE", "TASKS", "TITLE", "WORLD", "candidates", "read"]

NAME, TITLE = "demo-long", "the demo world, long clips"
SOURCE = "`mirasol prepare demo-long`, which renders it"
WORLD = World(name=NAME, title=TITLE, scenes=scenes, questions=questions, clips=400, val_share=10, test_share=4)
read = WORLD.read
