"""Validation during training: which split it uses, and that it stays away from the test split."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mirasol_cli.batches.collate import media_batch, text_batch
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.config.schema import TrainRecipe
from mirasol_cli.errors import ShardError
from mirasol_cli.evaluation import validation
from mirasol_cli.evaluation.job import EvaluationJob, Options
from mirasol_cli.evaluation.predict import Plan
from mirasol_cli.inference.answerer import Answerer
from mirasol_cli.runtime.distributed import World
from mirasol_cli.text.prompt import encode_prompt, encode_target
from tests.evaluation.tiny import tiny_model, tiny_recipe, tiny_vocabulary, write_texts_split

ALONE = World(0, 1, torch.device("cpu"))
HERE = ["train.eval_every=10", "train.val_clips=3", "data.shards=here"]


@pytest.mark.parametrize(("name", "split"), [("msrvtt", "val"), ("memorise", "train"), ("demo", "val")])
def test_validates_on_val_or_on_what_is_memorised(name: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, Path]] = []
    planned: list[tuple[str, int | None]] = []
    monkeypatch.setattr(EvaluationJob, "open_split", lambda self: opened.append((self.split, self.shards)))
    monkeypatch.setattr(Plan, "of", lambda split, task, protocol, *, sample, seed: planned.append((task, sample)))
    assert validation.validator(load_recipe(name, HERE), print) is not None
    assert (opened, planned) == ([(split, Path("here"))], [("qa", 3)])


def test_texts_are_read_once_and_every_validation_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(tiny_recipe(tmp_path), train=TrainRecipe(eval_every=1, val_clips=4))
    videos = [f"v{clip}" for clip in range(6)]
    texts = [{"id": f"{clip}", "clip": clip, "question": "what is it", "answer": "yes"} for clip in range(6)]
    write_texts_split(tmp_path / "shards" / "val", texts, videos)
    validate = validation.validator(recipe, print)
    assert validate is not None
    (tmp_path / "shards" / "val" / "qa.jsonl").unlink()
    model, vocabulary = tiny_model(), tiny_vocabulary()
    assert validate(model, vocabulary, ALONE) == validate(model, vocabulary, ALONE)
    assert validate(model, vocabulary, ALONE)["n"] == 4


def test_without_a_val_split_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()

    def missing(self: EvaluationJob) -> None:
        raise ShardError("'here' has no split 'val'")

    monkeypatch.setattr(EvaluationJob, "open_split", missing)
    said: list[str] = []
    assert validation.validator(load_recipe("msrvtt", HERE), said.append) is None
    assert said == ["no validation during training: 'here' has no split 'val'"]
    assert validation.validator(load_recipe("msrvtt", ["train.eval_every=0"]), said.append) is None
    assert len(said) == 1


def test_the_loss_is_that_of_training_on_the_same_texts(tmp_path: Path) -> None:
    """Token mean over all questions, whatever the batch, clips that are missing left out."""
    recipe = replace(tiny_recipe(tmp_path), train=TrainRecipe(eval_every=1, val_clips=10))
    answers = ["yes", "no it is a dog", None, "a cat"]
    texts = [{"id": f"{n}", "clip": n // 2, "question": "what is it", "answer": answer} for n, answer in enumerate(answers)]
    write_texts_split(tmp_path / "shards" / "val", texts, ["v0", "v1"])
    model, vocabulary = tiny_model(), tiny_vocabulary()
    found = []
    for size in (1, 2):
        validate = validation.validator(replace(recipe, eval=replace(recipe.eval, batch_size=size)), print)
        assert validate is not None
        found.append(validate(model, vocabulary, ALONE)["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)

    split = EvaluationJob.of(recipe, Options(split="val")).open_split()
    limits, total, tokens = model.config.text, 0.0, 0
    for text in texts:
        if text["answer"] is not None:
            ids = (encode_prompt(vocabulary, "what is it", "", limits).ids, encode_target(vocabulary, text["answer"], limits).ids)
            media = media_batch([split.media(text["clip"])], model.geometry, audio=recipe.data.audio)
            part = model(media, text_batch([[ids]]), {"text": 1.0}).parts["text"]
            total, tokens = total + float(part.sum.detach()), tokens + int(part.count)
    assert found[0] == pytest.approx(total / tokens, rel=1e-5)


def test_two_processes_divide_a_validation_and_find_the_figures_of_one(tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(tmp_path), train=TrainRecipe(eval_every=1, val_clips=10))
    texts = [{"id": f"{clip}", "clip": clip, "question": "what is it", "answer": "yes" if clip % 2 else "a cat"} for clip in range(5)]
    write_texts_split(tmp_path / "shards" / "val", texts, [f"v{clip}" for clip in range(5)])
    recipe = replace(recipe, eval=replace(recipe.eval, batch_size=2))
    plan = Plan.of(
        EvaluationJob.of(recipe, Options(split="val")).open_split(), "qa", EvaluationJob.of(recipe, Options(split="val")).protocol
    )
    model, vocabulary = tiny_model(), tiny_vocabulary()
    answerer = Answerer(model, vocabulary, recipe.eval, torch.device("cpu"), **recipe.data.modalities, precision="float32")
    whole = validation._sums(plan, answerer, 0, 1)
    parts = [validation._sums(plan, answerer, rank, 2) for rank in range(2)]
    assert [part[0] for part in parts] == [3, 2]
    assert [sum(both) for both in zip(*parts, strict=True)] == pytest.approx(whole)
