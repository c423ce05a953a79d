"""What the model cannot see or say of a split's texts because they are longer than its limits, told before any answer is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mirasol_cli.evaluation.predict import Plan
from mirasol_cli.evaluation.protocols import gold_answers
from mirasol_cli.text.prompt import cut_tokens

if TYPE_CHECKING:
    from mirasol_cli.inference.answerer import Answerer


def cut_notes(plan: Plan, answerer: Answerer) -> list[str]:
    """One sentence per limit that cuts something of the plan's questions, contexts or answers."""
    return list(_notes(plan, answerer))


def _notes(plan: Plan, answerer: Answerer) -> Iterator[str]:
    limits, vocabulary, most = answerer.model.config.text, answerer.vocabulary, answerer.settings.max_tokens
    rows = plan.questions()
    cut = [cut_tokens(vocabulary, row["question"], row["context"], limits) for row in rows]
    for name, limit, count in (
        ("questions", f"model.text.max_question={limits.max_question}", sum(part.question > 0 for part in cut)),
        ("contexts", f"model.text.max_context={limits.max_context}", sum(part.context > 0 for part in cut)),
    ):
        if count:
            yield f"{count:,} of {len(rows):,} {name} are cut: they are longer than the model reads ({limit})"
    if not plan.protocol.generates:
        return
    lengths = [[len(vocabulary.encode(answer.strip(), follows=True)) for answer in gold_answers(row, plan.protocol)] for row in rows]
    untaught = sum(bool(answers) and min(answers) > limits.max_answer for answers in lengths)
    if untaught:
        yield f"{untaught:,} of {len(rows):,} answers exceed the training limit (model.text.max_answer={limits.max_answer})"
    too_long = [row for row, answers in zip(rows, lengths, strict=True) if answers and min(answers) > most]
    if too_long:
        yield (
            f"{len(too_long):,} of {len(rows):,} answers cannot be generated: they are longer than eval.max_tokens={most} "
            f"(the first is that to '{too_long[0]['id']}'); raise it to {max(min(a) for a in lengths if a)}"
        )
