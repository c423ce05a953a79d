"""What a fresh start refuses before any work."""

from pathlib import Path

import pytest

from mirasol_cli.config.reader import parse_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import DataError, UsageError
from mirasol_cli.training.setup import given_tokenizer, initialise
from tests import synthetic
from tests.small_model import model


def recipe(*overrides: str) -> Recipe:
    return parse_recipe("schema: 1\nname: start", "start.yaml", list(overrides))


def test_two_encoders_need_two_trunks() -> None:
    both = recipe("init.video_encoder=vit", "init.audio_encoder=ast", "model.encoder.share=true")
    with pytest.raises(UsageError, match="share") as caught:
        initialise(model(), both, synthetic.vocabulary())
    assert "model.encoder.share=false" in str(caught.value.hint)


def test_another_vocabulary_than_the_decoders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "tokenizer.model").write_bytes(b"theirs")
    (tmp_path / "mine.model").write_bytes(b"mine")
    decoder = f"init.text_decoder={tmp_path / 'llama'}"
    with pytest.raises(UsageError, match=r"init\.tokenizer leads to .*mine\.model"):
        given_tokenizer(recipe(decoder, f"init.tokenizer={tmp_path / 'mine.model'}"))
    (tmp_path / "mine.model").write_bytes(b"theirs")
    assert given_tokenizer(recipe(decoder, f"init.tokenizer={tmp_path / 'mine.model'}")) == tmp_path / "mine.model"
    assert given_tokenizer(recipe(decoder)) == tmp_path / "llama" / "tokenizer.model"


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"init\.tokenizer: there is no tokenizer '.*none\.model'"):
        given_tokenizer(recipe(f"init.tokenizer={tmp_path / 'none.model'}"))
