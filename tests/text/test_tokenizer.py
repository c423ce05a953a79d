"""Round trips, foreign models, damaged files, streaming."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mirasol_cli.errors import DataError, UsageError
from mirasol_cli.text.tokenizer import StreamDecoder, Vocabulary, train_vocabulary

LINES = ["what is playing in the clip?", "the red guitar plays last", "is it a café or a naïve piano? yes, it is.", "3 of 12 drums"] * 5
OWN = Vocabulary(train_vocabulary(LINES, 500))
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581"))


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back_as_it_went_in(text: str) -> None:
    assert OWN.decode(OWN.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["red", "two  spaces", " outer ", "don't!?", "😀 é e\u0301", "Ａ①ﬁ…", "<0x41> </s> <s> <unk>", "line\nbreak\ttab", "a\0b", ""]
)
def test_difficult_texts_come_back(text: str) -> None:
    assert OWN.decode(OWN.encode(text)) == text


def test_layout_of_an_own_vocabulary() -> None:
    assert (OWN.bos, OWN.eos) == (1, 2)
    assert 259 < OWN.size <= 500
    assert len(OWN.encode("the red guitar")) < 6
    assert all(2 < token < OWN.size for token in OWN.encode("unseen 字 words"))
    assert OWN.decode([1, *OWN.encode("red"), 2]) == "red"


def test_equal_lines_give_equal_bytes_and_other_lines_do_not() -> None:
    assert train_vocabulary(iter(LINES), 500) == OWN.model_bytes
    assert train_vocabulary([*LINES, "saxophone saxophone"], 500) != OWN.model_bytes
    assert Vocabulary(OWN.model_bytes).encode("the red guitar") == OWN.encode("the red guitar")


@pytest.mark.parametrize("words", [2000, 500_000])
def test_a_long_line_is_not_left_out(words: int) -> None:
    vocabulary = Vocabulary(train_vocabulary(["xylophone " * words], 300))
    assert len(vocabulary.encode("xylophone")) == 1


def test_of_many_lines_a_fixed_share_is_taken_from_all_over() -> None:
    lines = [f"{word} {word}" for word in ("aaaa", "bbbb", "cccc", "dddd") for _ in range(50)]
    some = train_vocabulary(iter(lines), 300, most_lines=40)
    assert some == train_vocabulary(iter(lines), 300, most_lines=40)
    assert some != train_vocabulary(iter(lines[:40]), 300)
    assert all(len(Vocabulary(some).encode(word)) == 1 for word in ("aaaa", "bbbb", "cccc", "dddd"))


def test_half_a_surrogate_pair_does_no_harm() -> None:
    broken = "a \ud83d b \ud83d\ude00"
    assert OWN.decode(OWN.encode(broken)) == "a \ufffd b 😀"
    assert train_vocabulary([*LINES, broken], 500)


def test_no_text_and_too_small_a_size_are_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        train_vocabulary(["", "  "], 500)
    many = ["".join(chr(0x4E00 + i) for i in range(200))]
    with pytest.raises(UsageError, match="vocabulary of 300 pieces has no room") as refusal:
        train_vocabulary(many, 300)
    assert refusal.value.hint is not None
    enough = int(refusal.value.hint.split()[-3])
    assert Vocabulary(train_vocabulary(many, enough)).size <= enough


def foreign(**ids: int) -> Vocabulary:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2, **ids
    )
    return Vocabulary(model.getvalue())


def test_models_of_t5_and_llama() -> None:
    t5 = foreign(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    assert (t5.bos, t5.eos) == (None, 1)
    llama = foreign(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    assert (llama.bos, llama.eos) == (1, 2)
    for vocabulary in (t5, llama):
        assert 20 < vocabulary.size <= 60
        assert vocabulary.decode(vocabulary.encode("the red guitar")) == "the red guitar"


def test_a_thousand_texts_of_many_scripts_are_encoded_as_by_transformers(tmp_path: Path) -> None:
    """A model as Llama 2's and Mistral's: byte-pair pieces, bytes for what is in none."""
    from tests.checkpoints.pretrained import imported_transformers
    from tests.text.test_json_tokenizer import WORDS, thousand_texts

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(WORDS.values()) * 3), model_writer=model, model_type="bpe", vocab_size=900, hard_vocab_limit=False,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, unk_id=0, bos_id=1,
        eos_id=2, pad_id=-1, character_coverage=0.985, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    vocabulary = Vocabulary.from_file(tmp_path / "tokenizer.model")
    with imported_transformers() as hf:
        theirs = hf.AutoTokenizer.from_pretrained(tmp_path)
    in_bytes = 0
    for text in thousand_texts():
        text = text.lstrip(" ")  # transformers joins a space at the start with the mark that SentencePiece itself puts there
        ids = vocabulary.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert vocabulary.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        in_bytes += any(3 <= piece < 259 for piece in ids)
    assert in_bytes > 300
    assert (vocabulary.size, vocabulary.bos, vocabulary.eos) == (len(theirs), theirs.bos_token_id, theirs.eos_token_id)


def test_a_model_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match="no end token"):
        foreign(unk_id=0, bos_id=1, eos_id=-1, pad_id=-1)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\0" * 100, OWN.model_bytes[: len(OWN.model_bytes) // 2], b"\x0a\xff\xff\xff"])
def test_a_damaged_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.model' is damaged"):
        Vocabulary.from_file(path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        Vocabulary.from_file(tmp_path / "none.model")
    with pytest.raises(DataError, match="cannot be read"):
        Vocabulary.from_file(tmp_path)
    (tmp_path / "good.model").write_bytes(OWN.model_bytes)
    assert Vocabulary.from_file(tmp_path / "good.model").size == OWN.size


@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_stream_adds_up_to_the_text(text: str) -> None:
    stream = StreamDecoder(OWN)
    parts = [stream.push(token) for token in OWN.encode(text)]
    assert "".join(parts) + stream.finish() == text


@given(st.lists(st.integers(0, OWN.size - 1), max_size=30))
@settings(max_examples=300, deadline=None)
def test_a_stream_of_any_tokens_adds_up_to_their_text(ids: list[int]) -> None:
    stream = StreamDecoder(OWN)
    assert "".join(stream.push(token) for token in ids) + stream.finish() == OWN.decode(ids)


def test_a_stream_whose_text_changes_begins_again_on_a_new_line() -> None:
    class Changing:
        """A tokenizer that joins what it had shown apart, as those with rules of their own do."""

        def decode(self, ids: list[int]) -> str:
            return {1: "a", 2: "a b", 3: "ab c"}[len(ids)]

    stream = StreamDecoder(Changing())  # type: ignore[arg-type]
    assert [stream.push(token) for token in (1, 2, 3)] == ["a", " b", "\nab c"]
    assert stream.finish() == ""


def test_a_stream_holds_back_half_a_character() -> None:
    stream = StreamDecoder(OWN)
    parts = [stream.push(token) for token in OWN.encode("a😀b")]
    assert "\ufffd" not in "".join(parts)
    assert any(part.startswith("😀") for part in parts)
    cut = StreamDecoder(OWN)
    assert [cut.push(token) for token in OWN.encode("😀")[:-1]][-1] == ""
    assert "\ufffd" in cut.finish()
