"""How the model is extended: a loss is one class, a Combiner one class and one line. Each is written into a copy of the package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from mirasol_cli.config.reader import dump_recipe
from tests import synthetic
from tests.test_architecture import PACKAGE

LOSS = '''
class Cosine(Objective):
    """The latent of a chunk, mapped, points where the last chunk's points."""

    name, help = "cosine", "cosine to the last chunk's latent"

    def build(self, config, geometry):
        from torch import nn

        return nn.Linear(config.latent.width, config.latent.width)

    def count(self, media, text, extra, geometry):
        return media.present_BT.sum()

    def forward(self, model, encoded, media, text, extra):
        from torch.nn.functional import cosine_similarity

        from mirasol_cli.model.losses import LossPart

        mapped = model.objectives["cosine"](encoded.latents_BTMD)
        error_BT = (1 - cosine_similarity(mapped, encoded.latents_BTMD[:, -1:].detach(), dim=-1)).mean(-1)
        return LossPart((error_BT * media.present_BT).sum(), media.present_BT.sum())


'''

COMBINER = '''
class First(Combiner):
    """The first M tokens of a chunk."""

    kind = "first"

    def forward(self, x_BTND, valid_BTN=None, state=None, *, whole_chunks=False):
        return self.input(x_BTND)[:, :, : self.outputs], None


'''


def trained(tmp_path: Path, module: str, before: str, added: str, *overrides: str, line: tuple[str, str] | None = None) -> dict:
    """The last line of a run of the extended copy, whose recipe the copy reads itself."""
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy / "mirasol_cli", ignore=shutil.ignore_patterns("__pycache__", "*.mp4"))
    for path, old, new in [(module, before, added.lstrip() + before), *([("model/config.py", *line)] if line else [])]:
        file = copy / "mirasol_cli" / path
        source = file.read_text(encoding="utf-8")
        assert source.count(old) == 1
        file.write_text(source.replace(old, new), encoding="utf-8")
    synthetic.write_split(tmp_path / "shards" / "train", 8)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.steps=12")), encoding="utf-8")
    command = [sys.executable, "-m", "mirasol_cli", "pretrain", str(recipe), *overrides, "--device", "cpu"]
    done = subprocess.run(
        command, cwd=copy, env={"PYTHONPATH": str(copy), "PATH": "", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return {"first": rows[0], "last": rows[-1]}


def test_a_loss_is_one_class(tmp_path: Path) -> None:
    rows = trained(tmp_path, "model/objectives.py", "OBJECTIVES = {", LOSS, "loss.cosine=5")
    assert rows["last"]["loss_cosine"] < 0.9 * rows["first"]["loss_cosine"]
    assert {"loss_text", "loss_latent", "loss_video"} <= rows["last"].keys()


def test_a_combiner_is_one_class_and_one_line(tmp_path: Path) -> None:
    line = ('choices=("transformer", ', 'choices=("first", "transformer", ')
    rows = trained(tmp_path, "model/combiner.py", "class LastValid:", COMBINER, "model.combiner.kind=first", line=line)
    assert rows["last"]["loss_text"] < rows["first"]["loss_text"]
