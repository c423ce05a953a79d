"""Tables and verdicts from the results of the ablations: pure functions of rows, so that no verdict is written by hand.

A row is one run: condition, seed, steps, exact_match, by_type {type: {n, exact_match}}, n, gflop, combiner_gflop, parameters,
seconds. Only runs of one length are compared; each length has tables of its own.
Intervals are Student's t over seeds. They cover what the seed of training changes, not which clips were drawn for the test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation_plan import BY_NAME, CONDITIONS

Row = Mapping[str, Any]
Value = Callable[[Row], float | None]

SEEN, NOT_SEEN, NOISE, NOT_RUN, ONE_SEED = "seen", "not seen", "within noise", "not run", "one seed only"
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `half` is half the width of its 95 % interval, None for a single seed."""

    mean: float
    half: float | None
    seeds: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond the table by its expansion about the normal."""
    if freedom < 1:
        raise ValueError("an interval needs at least two seeds")
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % interval of independent values, one per seed; None for no values."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)), len(values))


def paired(rows: Iterable[Row], condition: str, reference: str, value: Value) -> Estimate | None:
    """`condition` minus `reference` over the seeds that both have, seed by seed."""
    of: dict[str, dict[int, float]] = {condition: {}, reference: {}}
    for row in rows:
        if row["condition"] in of and (found := value(row)) is not None:
            of[row["condition"]][row["seed"]] = found
    seeds = sorted(of[condition].keys() & of[reference].keys())
    return estimate([of[condition][seed] - of[reference][seed] for seed in seeds])


def verdict(difference: Estimate | None, margin: float = 0.0) -> str:
    """`seen`: the interval of the difference lies above -`margin`; `not seen`: below it; else `within noise`. A single seed has no
    interval."""
    if difference is None:
        return NOT_RUN
    if difference.low is None or difference.high is None:
        return ONE_SEED
    return SEEN if difference.low > -margin else NOT_SEEN if difference.high < -margin else NOISE


def exact_match(row: Row) -> float | None:
    return row["exact_match"]


def of_type(name: str) -> Value:
    return lambda row: row["by_type"].get(name, {}).get("exact_match")


# --------------------------------------------------------------------------------------------------------------- claims

EQUAL = 0.02
"""OURS: two points of accuracy less still count as `at least equal`, where a claim says no more than that."""


@dataclass(frozen=True)
class Claim:
    """What the authors say in their blog, as `better` against `worse`."""

    text: str
    better: str
    worse: str
    margin: float = 0.0  # by so much `better` may be worse
    cheaper: bool = False  # and `better` takes less compute
    same_size: bool = False  # and has no parameter more


CLAIMS = (
    Claim("the Combiner helps", "full", "no-combiner"),
    Claim("autoregression helps", "full", "no-autoregression"),
    Claim("Combiner and autoregression help together", "full", "baseline"),
    Claim("pretraining helps", "pretrained", "full"),
    Claim("TTM is at least equal to the Transformer that sees the chunk, with less compute", "ttm", "full", EQUAL, cheaper=True),
    Claim("TTM is at least equal to the Transformer that sees all chunks so far, with less compute", "ttm", "history", EQUAL, cheaper=True),
    Claim("the same at 64 chunks", "long-64-ttm", "long-64-history", EQUAL, cheaper=True),
    *(
        Claim(f"longer input helps without more parameters: {chunks} chunks against 4, {kind}", f"long-{chunks}-{kind}", f"long-4-{kind}",
              same_size=True)
        for kind in ("transformer", "ttm")
        for chunks in (16, 64)
    ),
)  # fmt: skip


def judge(claim: Claim, rows: Sequence[Row]) -> tuple[str, str]:
    """(verdict, the figures it rests on), from the longest runs that decide it: two seeds of both sides. Accuracy by the rule of
    `verdict`; a claim about compute or size that does not hold makes the whole `not seen`."""
    compared = [(members, paired(members, claim.better, claim.worse, exact_match)) for _, members in by_length(rows)]
    rows, difference = max(compared, key=lambda found: min(found[1].seeds, 2) if found[1] else 0, default=([], None))
    if difference is None:
        return NOT_RUN, ""
    found = verdict(difference, claim.margin)
    reasons = [f"{points(difference)} after {rows[0]['steps']:,} steps"]
    for wanted, key, unit, factor, holds in (
        (claim.cheaper, "gflop", "GFLOP", 1.0, lambda a, b: a < b),
        (claim.same_size, "parameters", "M parameters", 1e-6, lambda a, b: a == b),
    ):
        a, b = (next((row[key] for row in rows if row["condition"] == name), None) for name in (claim.better, claim.worse))
        if not wanted or a is None or b is None:
            continue
        reasons.append(f"{a * factor:.4g} against {b * factor:.4g} {unit}")
        if found != ONE_SEED and not holds(a, b):
            found = NOT_SEEN
    return found, "; ".join(reasons)


# --------------------------------------------------------------------------------------------------------------- tables


def report(rows: Sequence[Row]) -> str:
    """The whole of `--report` as Markdown."""
    scored = [row for row in rows if row.get("exact_match") is not None]
    if not scored:
        return "Nothing has been run yet.\n"
    parts = []
    for series, title in (("parts", "Parts of the model: 32 frames, 4 chunks"), ("long", "Longer input: clips of a minute")):
        for steps, members in by_length([row for row in scored if BY_NAME[row["condition"]].series == series]):
            parts += [f"### {title}, {steps:,} steps", how(members), *tables(members)]
    parts += ["### What the authors say, and what is seen here", claims_table(scored), rule()]
    return "\n\n".join(parts) + "\n"


def by_length(rows: Iterable[Row]) -> list[tuple[int, list[Row]]]:
    """(steps, their rows), the longest first."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["steps"], []).append(row)
    return sorted(found.items(), reverse=True)


def how(rows: Sequence[Row]) -> str:
    """What the rows have in common, and a warning where they differ in what they must not."""
    questions = sorted({row["n"] for row in rows})
    text = f"{questions[0]:,} questions of the test split, exact match in percent. Mean over seeds ± half of its 95 % interval."
    return text if len(questions) == 1 else f"{text} **These runs cannot be compared**: questions {questions}."


def tables(rows: Sequence[Row]) -> list[str]:
    """Accuracy of every condition with its costs, then the differences to its reference, paired by seed."""
    types = sorted({name for row in rows for name in row["by_type"]})
    values: list[Value] = [exact_match, *(of_type(name) for name in types)]
    accuracy, differences = [], []
    for condition in (c for c in CONDITIONS if any(row["condition"] == c.name for row in rows)):
        own = [row for row in rows if row["condition"] == condition.name]
        cells = [percent(estimate([v for row in own if (v := value(row)) is not None])) for value in values]
        costs = [f"{own[0]['gflop']:.3f}", f"{own[0]['combiner_gflop']:.3f}", f"{own[0]['parameters'] / 1e6:.3f}"]
        accuracy.append([condition.name, str(len(own)), *cells, *costs])
        if condition.reference:
            found = [paired(rows, condition.name, condition.reference, value) for value in values]
            differences.append([condition.name, condition.reference, *map(points, found)])
    parts = [table(["", "seeds", "all", *types, "GFLOP a clip", "of it Combiner", "M parameters"], accuracy)]
    if differences:
        parts += ["Differences in points, paired by seed [95 % interval]:", table(["", "minus", "all", *types], differences)]
    return parts


def claims_table(rows: Sequence[Row]) -> str:
    return table(["the authors", "here", "difference", "figures"], [
        [claim.text, f"**{found}**", f"{claim.better} - {claim.worse}", reasons]
        for claim, (found, reasons) in ((claim, judge(claim, rows)) for claim in CLAIMS)
    ])  # fmt: skip


def rule() -> str:
    return (
        "By rule: `seen` where the 95 % interval of the paired difference lies above 0 (`at least equal`: above "
        f"-{100 * EQUAL:.0f} points); `not seen` where it lies below, or where compute or parameters speak against the claim; else "
        "`within noise`: neither shown nor refuted. Intervals are Student's t over "
        "seeds and cover the seed of training only: clips and questions are the same for all. The number of claims is not corrected for."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(value: Estimate | None) -> str:
    """`93.1 ± 1.2`."""
    if value is None:
        return ""
    return f"{100 * value.mean:.1f}" + ("" if value.half is None else f" ± {100 * value.half:.1f}")


def points(value: Estimate | None) -> str:
    """`+1.2 [-0.3, +2.7]`."""
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return f"{100 * value.mean:+.1f}"
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
