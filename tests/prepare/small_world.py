"""A small world to prepare, with made-up decoding."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mirasol_cli.prepare.command import prepare
from tests.media.fake_decoding import FakePool, tree, write_recipe, write_world


class World:
    """A manifest with its videos, and `prepare` on it."""

    def __init__(self, folder: Path, **world: Any):
        self.folder, self.root, self.out = folder, folder / "videos", folder / "out"
        self.manifest = write_world(folder, **world)
        self.recipe = write_recipe(folder)
        self.said: list[str] = []

    def prepare(self, **options: Any) -> dict[str, Any]:
        FakePool.submitted = []
        self.said.clear()
        settings: dict[str, Any] = {
            "root": self.root,
            "out": self.out,
            "recipe": str(self.recipe),
            "workers": 2,
            "say": self.said.append,
        } | options
        return prepare(str(self.manifest), **settings)

    def undisturbed(self, **options: Any) -> dict[str, bytes]:
        """The files of one run into a fresh folder."""
        other = self.folder / "undisturbed"
        shutil.rmtree(other, ignore_errors=True)
        self.prepare(out=other, max_failed=100, **options)
        return tree(other)

    @property
    def decoded(self) -> list[str]:
        return sorted(name for name, requests in FakePool.submitted if requests is not None)
