"""The one form in which text is put before the model:

    [start] context: ... question: ... answer:  ->  target [end]

Context (title, description, subtitles) comes before the question, and loss is only on the target and the end. The
paper does not say how question and answer share the sequence, so the form is OURS.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from mirasol_cli.text.tokenizer import Vocabulary

CONTEXT, QUESTION, ANSWER = "context:", "question:", "answer:"


class Limits(Protocol):
    """The most tokens of each part (a model's `TextConfig` has them)."""

    @property
    def max_context(self) -> int: ...
    @property
    def max_question(self) -> int: ...
    @property
    def max_answer(self) -> int: ...


class Encoded(NamedTuple):
    """Token ids, and how many tokens of the text were cut off to keep within the limits."""

    ids: list[int]
    cut: int


class Cut(NamedTuple):
    """Tokens of a text that are left out to keep within the limits."""

    question: int
    context: int


def encode_prompt(vocabulary: Vocabulary, question: str, context: str, limits: Limits) -> Encoded:
    """Ids of everything before the answer.

    Runs of white space count as one space. Context ends after `max_context` tokens, the question after `max_question`, each for
    itself; the marks are not counted. Without context its mark is left out too.
    """
    context_ids = vocabulary.encode(_one_line(context), follows=True)
    question_ids = vocabulary.encode(_one_line(question), follows=True)
    ids = [] if vocabulary.bos is None else [vocabulary.bos]
    has_context = bool(context_ids and limits.max_context)
    if has_context:
        ids += vocabulary.encode(CONTEXT) + context_ids[: limits.max_context]
    ids += vocabulary.encode(QUESTION, follows=has_context) + question_ids[: limits.max_question]
    ids += vocabulary.encode(ANSWER, follows=True)
    return Encoded(ids, sum(_cut(len(question_ids), len(context_ids), limits)))


def cut_tokens(vocabulary: Vocabulary, question: str, context: str, limits: Limits) -> Cut:
    """What `encode_prompt` leaves out of each."""
    lengths = [len(vocabulary.encode(_one_line(text), follows=True)) for text in (question, context)]
    return _cut(lengths[0], lengths[1], limits)


def _cut(question: int, context: int, limits: Limits) -> Cut:
    return Cut(max(question - limits.max_question, 0), max(context - limits.max_context, 0))


def encode_target(vocabulary: Vocabulary, answer: str, limits: Limits) -> Encoded:
    """Ids of the answer without outer white space, and the end token.

    An answer above `max_answer` tokens is cut and then has no end token: the model shall not learn to stop there.
    """
    ids = vocabulary.encode(answer.strip(), follows=True)
    cut = len(ids) - limits.max_answer
    return Encoded(ids[: limits.max_answer], cut) if cut > 0 else Encoded([*ids, vocabulary.eos], 0)


def vocabulary_lines(question: str, answer: str | None, context: str) -> Iterator[str]:
    """The strings that `encode_prompt` and `encode_target` encode: what a vocabulary has to be trained on."""
    yield from (CONTEXT, _one_line(context)) if context.strip() else ()
    yield from (QUESTION, _one_line(question), ANSWER)
    if answer is not None:
        yield answer.strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
