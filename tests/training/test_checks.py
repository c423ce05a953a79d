"""What is said about the data before the first step."""

import dataclasses
from pathlib import Path

import pytest

from mirasol_cli.batches.sources import OpenSource, open_sources
from mirasol_cli.errors import DataError, ShardError
from mirasol_cli.shards.columns import Texts
from mirasol_cli.training import checks
from mirasol_cli.training.checks import cut_texts, empty_losses
from mirasol_cli.training.data import TrainingData
from mirasol_cli.training.loop import train
from tests import synthetic


def opened(tmp_path: Path, *words: str, silent: tuple[int, ...] = ()) -> TrainingData:
    if not (tmp_path / "shards").exists():
        synthetic.write_split(tmp_path / "shards" / "train", 6, silent_clips=silent)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", *words)
    return TrainingData(recipe, open_sources(recipe), synthetic.vocabulary())


def with_texts(data: TrainingData, *changes: dict[str, str]) -> TrainingData:
    """The data with its first texts changed."""
    (source,) = data.sources
    texts = [{**text, **change} for text, change in zip(source.texts, changes, strict=False)] + source.texts[len(changes) :]
    return TrainingData(data.recipe, [OpenSource(source.recipe, source.split, Texts.measured(texts), source.by_clip)], data.vocabulary)


def test_texts_within_the_limits_are_not_spoken_of(tmp_path: Path) -> None:
    assert cut_texts(opened(tmp_path)) == []


def test_every_kind_of_cut_text_is_counted(tmp_path: Path) -> None:
    words = ("model.text.max_answer=8", "model.text.max_question=64", "model.text.max_context=20")
    long = "quiet loud " * 400
    data = with_texts(opened(tmp_path, *words), {"answer": long}, {"answer": long, "context": long}, {"question": long})
    assert cut_texts(data) == [
        "of 12 texts, these are longer than the model reads and are cut: 2 answers (model.text.max_answer=8), "
        "1 questions (model.text.max_question=64), 1 contexts (model.text.max_context=20)"
    ]


def test_of_very_many_texts_a_part_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_texts(opened(tmp_path), *[{"answer": "loud " * 400}] * 12)
    monkeypatch.setattr(checks, "MOST_TEXTS", 4)
    (line,) = cut_texts(data)
    assert line.startswith("of 4 texts, sampled from 12, these")
    assert "4 answers" in line


def test_cut_texts_are_said_when_training_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 4)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "train.steps=1", "model.text.max_question=2")
    train(recipe, stage="finetune", device="cpu")
    assert "8 questions (model.text.max_question=2)" in capsys.readouterr().err


def test_a_loss_without_anything_to_learn_from_is_named(tmp_path: Path) -> None:
    data = opened(tmp_path, "loss.audio=1", silent=tuple(range(6)))
    assert empty_losses(data.recipe, data.sources) == ["loss.audio has nothing to learn from: none of the 6 clips has audio"]
    assert empty_losses(opened(tmp_path).recipe, data.sources) == []
    deaf = opened(tmp_path, "loss.audio=1", "data.audio=false")
    assert empty_losses(deaf.recipe, deaf.sources) == ["loss.audio has nothing to learn from: data.audio is false"]
    one_chunk = dataclasses.replace(data.recipe, clip=dataclasses.replace(data.recipe.clip, frames=4, chunks=1))
    assert len(empty_losses(one_chunk, data.sources)) == 3  # all but the text


def test_where_it_is_the_only_loss_training_is_refused(tmp_path: Path) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 4, silent_clips=range(4))
    only = ["loss.text=0", "loss.latent=0", "loss.video=0", "loss.audio=1"]
    with pytest.raises(DataError, match=r"loss\.audio has nothing to learn from") as caught:
        train(synthetic.recipe(tmp_path / "run", tmp_path / "shards", *only), stage="pretrain", device="cpu")
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_what_only_the_batches_can_tell_is_told_after_the_first_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of clips that have sound by the index, but none that a mask lets through."""
    synthetic.write_split(tmp_path / "shards" / "train", 4, silent_clips=range(4))
    monkeypatch.setattr(OpenSource, "audible", 4)
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", "loss.audio=1", "train.steps=3")
    result = train(recipe, stage="finetune", device="cpu")
    assert capsys.readouterr().err.count("loss.audio had nothing to learn from") == 1
    assert "loss_audio" not in result["metrics"]
    only = ["loss.text=0", "loss.latent=0", "loss.video=0", "loss.audio=1"]
    with pytest.raises(DataError, match=r"no loss \(loss\.audio\) had anything"):
        train(synthetic.recipe(tmp_path / "only", tmp_path / "shards", *only), stage="pretrain", device="cpu")


def test_clips_that_could_not_be_read_are_not_called_texts_without_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mirasol_cli.shards.reader import ShardSplit

    synthetic.write_split(tmp_path / "shards" / "train", 2)
    monkeypatch.setattr(ShardSplit, "kept", [])
    with pytest.raises(ShardError, match=r"no clip of .* could be read: 0 failed, 0 are missing"):
        open_sources(synthetic.recipe(tmp_path / "run", tmp_path / "shards"))
