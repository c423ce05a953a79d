"""The demo world as a data set: clips of 4 to 10 seconds, rendered here."""

from __future__ import annotations

from mirasol_cli.datasets.rendered import LICENCE, TASKS, World, candidates
from mirasol_cli.demo.world import questions, scenes

__all__ = ["LICENCE", "NAME", "SOURCE", "TASKS", "TITLE", "WORLD", "candidates", "read"]

NAME, TITLE = "demo", "the demo world"
SOURCE = "`mirasol prepare demo`, which renders it"
WORLD = World(name=NAME, title=TITLE, scenes=scenes, questions=questions, clips=2000, val_share=20, test_share=5)
read = WORLD.read
