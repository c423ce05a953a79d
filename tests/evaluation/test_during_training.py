"""Validation during training: which split it uses, and that it stays away from the test split."""

from pathlib import Path

import pytest

from mirasol_cli.errors import ShardError
from mirasol_cli.evaluation import during_training
from mirasol_cli.evaluation.setting import Setting
from mirasol_cli.recipe import load_recipe
from mirasol_cli.recipe_schema import Recipe

HERE = ["train.evaluate_every=10", "train.evaluate_limit=3", "data.shards=here"]


@pytest.mark.parametrize(("name", "split"), [("msrvtt", "val"), ("memorise", "train"), ("demo", "val")])
def test_validates_on_val_or_on_what_is_memorised(name: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, Path]] = []
    monkeypatch.setattr(Setting, "open_split", lambda self: opened.append((self.split, self.shards)))
    seen: dict = {}

    def validate(model: object, vocabulary: object, split: object, recipe: Recipe, **options: object) -> dict[str, float]:
        seen.update(options)
        return {"n": 4, "exact_match": 3, "exact_match_normalised": 4}

    monkeypatch.setattr(during_training, "validate", validate)
    figures = during_training.validator(load_recipe(name, HERE), print)
    assert opened == [(split, Path("here"))]
    assert figures is not None

    import torch

    assert figures(torch.nn.Linear(1, 1), None) == {"n": 4, "exact_match": 0.75, "exact_match_normalised": 1.0}  # type: ignore[arg-type]
    assert (seen["task"], seen["limit"], seen["device"].type) == ("qa", 3, "cpu")


def test_without_a_val_split_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()

    def missing(self: Setting) -> None:
        raise ShardError("'here' has no split 'val'")

    monkeypatch.setattr(Setting, "open_split", missing)
    said: list[str] = []
    assert during_training.validator(load_recipe("msrvtt", HERE), said.append) is None
    assert said == ["no validation during training: 'here' has no split 'val'"]
    assert during_training.validator(load_recipe("msrvtt", ["train.evaluate_every=0"]), said.append) is None
    assert len(said) == 1
