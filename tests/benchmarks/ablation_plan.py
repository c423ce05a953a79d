"""The rows of the ablations, one change each, and the runs that they consist of: pure functions, no process and no file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

STEPS = 2500
"""Of finetuning, from nothing but the encoder."""
FULL = (
    "model.combiner.kind=transformer", "model.combiner.num_outputs=4", "data.clips=1600", "train.warmup_steps=50",
    "train.augment.memory_only=0", "train.augment.max_chunk_repeats=1",
)  # fmt: skip
"""What the model that is compared has, over recipe `demo-long`: 16 chunks, 31 tokens a chunk, of which the Combiner makes 4."""
CAPTIONS = ("data.task=caption", "data.questions_per_clip=1")


@dataclass(frozen=True)
class Condition:
    """One row: what is changed in FULL."""

    name: str
    what: str  # in the table
    words: tuple[str, ...] = ()
    reference: str | None = "full"  # what it is compared with
    after: str | None = None  # starts from this condition's run of the same seed
    length: float = 1.0  # of STEPS
    chunks: int = 16
    scored: bool = True  # False: it only pretrains

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*FULL, f"clip.frames={8 * self.chunks}", f"clip.chunks={self.chunks}", *self.words)

    def steps(self, steps_of_a_row: int = STEPS) -> int:
        return round(steps_of_a_row * self.length)


TTM = ("model.combiner.kind=ttm", "model.combiner.write=gated")
PARTS = (
    Condition("full", "the whole model", reference=None),
    Condition("none", "no Combiner: all tokens go on", ("model.combiner.kind=none",)),
    Condition("mean", "Combiner: means of groups of tokens", ("model.combiner.kind=mean",)),
    Condition("ttm", "Combiner: Token Turing Machine", TTM),
    Condition("history", "Combiner: Transformer over all chunks so far", ("model.combiner.context=history",)),
    Condition("no-autoregression", "no latent layers, same losses", ("model.latent.layers=0",)),
    Condition("no-latent-loss", "no prediction of the next chunk", ("loss.latent=0",)),
    Condition("no-reconstruction", "no reconstruction of the picture", ("loss.video=0",)),
    Condition("no-audio", "no audio", ("data.audio=false",)),
    Condition("last", "the text sees the last chunk's latents alone", ("model.text.sees=last",)),
    Condition("last-alone", "the same without latent layers", ("model.text.sees=last", "model.latent.layers=0"), reference="last"),
    Condition("memory", "the text sees the machine's memory alone", (*TTM, "model.text.sees=memory"), reference="ttm"),
    Condition("twice", "the whole model, twice the steps", length=2),
    Condition("captions", "pretraining on captions, all losses", CAPTIONS, scored=False),
    Condition("pretrained", "after as many steps of pretraining", after="captions", reference="twice"),
    Condition("captions-text", "pretraining on captions, text loss alone", (*CAPTIONS, "loss.latent=0", "loss.video=0"), scored=False),
    Condition("pretrained-text", "after pretraining with the text loss alone", after="captions-text", reference="twice"),
    Condition("captions-latent", "pretraining on captions, text and latent loss", (*CAPTIONS, "loss.video=0"), scored=False),
    Condition("pretrained-latent", "after pretraining with text and latent loss", after="captions-latent", reference="twice"),
)
TRANSFORMER_M = {2: ("model.combiner.num_outputs=2",), 4: (), 8: ("model.combiner.num_outputs=8",)}
FRONTIER = tuple(
    Condition(f"{name}-{chunks}", what, words, chunks=chunks, reference=None)
    for chunks in (4, 16)
    for name, what, words in (
        ("frontier-none", "no Combiner", ("model.combiner.kind=none",)),
        ("frontier-mean", "means of groups, M = 4", ("model.combiner.kind=mean",)),
        *((f"frontier-M{m}", f"Transformer, M = {m}", words) for m, words in TRANSFORMER_M.items()),
        ("frontier-ttm", "Token Turing Machine, M = 4", TTM),
    )
    if (name, chunks) not in {("frontier-none", 16), ("frontier-mean", 16), ("frontier-M4", 16), ("frontier-ttm", 16)}  # rows of PARTS
)
SAME_AS = {"frontier-none-16": "none", "frontier-mean-16": "mean", "frontier-M4-16": "full", "frontier-ttm-16": "ttm"}
"""Points of the frontier that are rows of the parts."""
CONDITIONS = (*PARTS, *FRONTIER)
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
    """What can still be run when `failed` has no weights: all but what starts from it, directly or by another run."""
    lost, kept = {failed}, []
    for job in waiting:  # in plan order a predecessor stands before what starts from it
        if job.before in lost:
            lost.add(job.key)
        else:
            kept.append(job)
    return kept
