"""Which runs the ablations consist of, and in which order: pure functions, no process and no file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """One recipe of recipes/ablations."""

    name: str
    stage: str = "finetune"
    after: str | None = None  # this condition's run of the same seed comes first
    takes: str | None = None  # what of it: `checkpoint` (its weights) or `tokenizer` (only its vocabulary)
    reference: str | None = "full"  # what differences are taken to; None: it is a reference itself, or has no score
    series: str = "parts"  # parts, or long: clips of a minute

    @property
    def recipe(self) -> str:
        return f"recipes/ablations/{self.name}.yaml"

    @property
    def scored(self) -> bool:
        """Whether it answers questions; what was only pretrained does not."""
        return self.stage == "finetune"


def long(chunks: int, kind: str, start: str) -> Condition:
    """A run on clips of a minute, from the weights of `start`; compared with 4 chunks of its kind, `history` with the TTM."""
    reference = None if chunks == 4 else "long-64-ttm" if kind == "history" else f"long-4-{kind}"
    return Condition(f"long-{chunks}-{kind}", after=start, takes="checkpoint", reference=reference, series="long")


CONDITIONS = (
    Condition("full", reference=None),
    *(Condition(name) for name in ("baseline", "no-combiner", "no-autoregression", "no-reconstruction", "no-latent-loss", "no-audio")),
    *(Condition(name) for name in ("history", "ttm", "perceiver", "mean")),
    # Of `full` it takes the vocabulary alone: one made of captions would spell the questions in bytes.
    Condition("pretrain", stage="pretrain", after="full", takes="tokenizer", reference=None),
    Condition("pretrained", after="pretrain", takes="checkpoint"),
    *(long(chunks, kind, start) for chunks in (4, 16, 64) for kind, start in (("transformer", "full"), ("ttm", "ttm"))),
    long(64, "history", "history"),
)
BY_NAME = {condition.name: condition for condition in CONDITIONS}


@dataclass(frozen=True)
class Job:
    """One condition with one seed."""

    condition: Condition
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        return self.condition.name, self.seed

    @property
    def before(self) -> tuple[str, int] | None:
        """The job that must be done first."""
        return (self.condition.after, self.seed) if self.condition.after else None

    def __str__(self) -> str:
        return f"{self.condition.name}, seed {self.seed}"


def plan(names: Iterable[str], seeds: int) -> list[Job]:
    """All runs of these conditions and of those they start from: seed 0 of all, then seed 1 of all, so that a cut leaves
    a balanced table."""
    wanted: set[str] = set()
    for name in names:
        condition: Condition | None = BY_NAME[name]
        while condition is not None:
            wanted.add(condition.name)
            condition = BY_NAME[condition.after] if condition.after else None
    return [Job(condition, seed) for seed in range(seeds) for condition in CONDITIONS if condition.name in wanted]


def next_job(waiting: Sequence[Job], done: Collection[tuple[str, int]]) -> Job | None:
    """The first in order whose predecessor is done; None where all have to wait."""
    return next((job for job in waiting if job.before is None or job.before in done), None)


def without_dependents(waiting: Iterable[Job], failed: tuple[str, int]) -> list[Job]:
    """What can still be run when `failed` has no checkpoint: all but what starts from it, directly or by another run."""
    lost, kept = {failed}, []
    for job in waiting:  # in plan order a predecessor stands before what starts from it
        if job.before in lost:
            lost.add(job.key)
        else:
            kept.append(job)
    return kept
