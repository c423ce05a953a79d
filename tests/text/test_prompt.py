"""The prompt's form, its limits, and answers that come back as they were given."""

from __future__ import annotations

import io

import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mirasol_cli.model.config import TextConfig
from mirasol_cli.text.prompt import encode_prompt, encode_target, vocabulary_lines
from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary

LIMITS = TextConfig(max_context=6, max_question=8, max_answer=5)
WIDE = TextConfig(max_answer=100_000)
LINES = [*vocabulary_lines("what plays last?", "the red guitar", "a title")] * 5
VOCABULARY = Vocabulary(train_vocabulary(LINES, 400))


def test_context_stands_before_the_question_and_the_answer_follows() -> None:
    prompt = encode_prompt(VOCABULARY, " what plays\n last? ", "a  title", LIMITS)
    assert prompt.cut == 0
    assert prompt.ids[0] == VOCABULARY.bos
    assert VOCABULARY.decode(prompt.ids) == "context: a title question: what plays last? answer:"
    target = encode_target(VOCABULARY, "the red guitar", LIMITS)
    assert target.ids[-1] == VOCABULARY.eos
    assert VOCABULARY.decode(prompt.ids + target.ids).endswith("last? answer: the red guitar")


def test_without_context_its_mark_is_left_out() -> None:
    assert VOCABULARY.decode(encode_prompt(VOCABULARY, "what plays last?", " \n", LIMITS).ids) == "question: what plays last? answer:"


def test_a_long_context_is_cut_with_a_report_and_the_question_stays_whole() -> None:
    context = "a title " * 10
    prompt = encode_prompt(VOCABULARY, "what plays last?", context, LIMITS)
    assert prompt.cut == len(VOCABULARY.encode(context.strip())) - 6 > 0
    assert VOCABULARY.decode(prompt.ids) == "context: " + "a title " * 3 + "question: what plays last? answer:"
    none = encode_prompt(VOCABULARY, "what plays last?", context, TextConfig(max_context=0))
    assert none.cut == len(VOCABULARY.encode(context.strip()))
    assert VOCABULARY.decode(none.ids) == "question: what plays last? answer:"


def test_a_long_question_is_cut_and_the_answer_mark_stays() -> None:
    question = "what plays last? " * 9
    prompt = encode_prompt(VOCABULARY, question, "", LIMITS)
    whole = VOCABULARY.encode(question.strip())
    assert prompt.cut == len(whole) - 8
    assert prompt.ids == [VOCABULARY.bos, *VOCABULARY.encode("question:"), *whole[:8], *VOCABULARY.encode("answer:")]


def test_a_cut_answer_has_no_end() -> None:
    target = encode_target(VOCABULARY, "the red guitar " * 9, LIMITS)
    assert len(target.ids) == 5
    assert VOCABULARY.eos not in target.ids
    assert target.cut == len(VOCABULARY.encode(("the red guitar " * 9).strip())) - 5
    exact = encode_target(VOCABULARY, VOCABULARY.decode(target.ids), LIMITS)
    assert (len(exact.ids), exact.cut) == (6, 0)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\u2581")))
@settings(max_examples=200, deadline=None)
def test_an_answer_comes_back_stripped_and_else_untouched(answer: str) -> None:
    target = encode_target(VOCABULARY, answer, WIDE)
    assert VOCABULARY.decode(target.ids) == answer.strip()
    prompt = encode_prompt(VOCABULARY, "what plays last?", "", WIDE).ids
    expected = "question: what plays last? answer:" + (" " + answer.strip() if answer.strip() else "")
    assert VOCABULARY.decode(prompt + target.ids) == expected


def test_a_model_without_a_start_token_gets_none() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    t5 = Vocabulary(model.getvalue())
    prompt = encode_prompt(t5, "what plays last?", "a title", LIMITS)
    assert t5.decode(prompt.ids).startswith("context: a title question: what")
    assert encode_target(t5, "red", LIMITS).ids[-1] == 1


def test_a_vocabulary_learns_the_marks() -> None:
    # A word and its colon: pieces never join letters and punctuation.
    assert all(len(VOCABULARY.encode(mark)) == 2 for mark in ("context:", "question:", "answer:"))
    assert list(vocabulary_lines("q?", None, "")) == ["question:", "q?", "answer:"]
