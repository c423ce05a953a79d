"""Tables and verdicts from the results of the ablations: pure functions of rows, so that no verdict is written by hand.

A row is one run: condition, seed, steps, exact_match, by_type {type: {n, exact_match}}, n, cuts {cut: the same}, curve [[step, validation
loss]], gflop, gflop_behind_encoder, combiner_gflop, parameters.
Intervals are Student's t over seeds. They cover what the seed of training changes, not which clips were drawn for the test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablation_plan import FRONTIER, PARTS, SAME_AS, Condition

Row = Mapping[str, Any]
Value = Callable[[Row], float | None]

SEEN, NOT_SEEN, NOISE, NOT_RUN, ONE_SEED = "seen", "not seen", "within noise", "not run", "one seed only"
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# 80 % quantiles of the same, for 1 to 9 degrees of freedom, then of the normal distribution.
POWER_QUANTILES = (1.376, 1.061, 0.978, 0.941, 0.920, 0.906, 0.896, 0.889, 0.883, 0.842)


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


def smallest_effect(found: Estimate) -> float | None:
    """The smallest true difference that a paired comparison with this spread would have told from 0 in four of five tries (at 5 %,
    two-sided)."""
    if found.half is None:
        return None
    freedom = found.seeds - 1
    power = POWER_QUANTILES[min(freedom, len(POWER_QUANTILES)) - 1]
    return found.half * (1 + power / t_quantile(freedom))


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


CLAIMS = (
    Claim("the Combiner helps: against all tokens", "full", "none"),
    Claim("the Combiner is at least equal to all tokens, with less compute", "full", "none", EQUAL, cheaper=True),
    Claim("a learned Combiner helps: against means", "full", "mean"),
    Claim("autoregression helps, the text seeing all latents", "full", "no-autoregression"),
    Claim("autoregression carries history: the text seeing the last latents", "last", "last-alone"),
    Claim("prediction of the next chunk helps", "full", "no-latent-loss"),
    Claim("pretraining helps, at equal totals of steps", "pretrained", "twice"),
    Claim("TTM is at least equal to the Transformer that sees the chunk, with less compute", "ttm", "full", EQUAL, cheaper=True),
    Claim("TTM is at least equal to the Transformer that sees all chunks so far, with less compute", "ttm", "history", EQUAL, cheaper=True),
)


def judge(claim: Claim, rows: Sequence[Row]) -> tuple[str, str]:
    """(verdict, the figures it rests on). Accuracy by the rule of `verdict`; more compute makes a claim of less `not seen`."""
    difference = paired(rows, claim.better, claim.worse, exact_match)
    if difference is None:
        return NOT_RUN, ""
    found, reasons = verdict(difference, claim.margin), [points(difference)]
    if claim.cheaper:
        a, b = (next(row["gflop_behind_encoder"] for row in rows if row["condition"] == name) for name in (claim.better, claim.worse))
        reasons.append(f"{a:.3g} against {b:.3g} GFLOP behind the encoder")
        if found != ONE_SEED and a >= b:
            found = NOT_SEEN
    return found, "; ".join(reasons)


# --------------------------------------------------------------------------------------------------------------- tables

PLATEAU = 0.01


def report(rows: Sequence[Row]) -> str:
    """The whole of `--report` as Markdown."""
    scored = [row for row in rows if row.get("exact_match") is not None]
    if not scored:
        return "Nothing has been run yet.\n"
    parts = ["### Parts of the model: clips of a minute, 128 frames, 16 chunks", how(scored), *tables(scored), cuts_table(scored)]
    if any(row["condition"] in {point.name for point in FRONTIER} for row in scored):
        parts += ["### Quality against compute", frontier_table(scored)]
    parts += ["### What the authors say, and what is seen here", claims_table(scored), rule()]
    return "\n\n".join(parts) + "\n"


def how(rows: Sequence[Row]) -> str:
    """What the rows have in common."""
    questions = sorted({row["n"] for row in rows})
    return (
        f"{', '.join(f'{n:,}' for n in questions)} questions of the test split, exact match in percent. Mean over seeds ± half of its "
        "95 % interval. GFLOP are those of a forward pass for one clip with six questions, without the encoder. Plateau: how much the "
        f"validation loss fell over the last tenth of the steps at a constant rate, on average; a run counts as done below {PLATEAU:.0%}."
    )


def tables(rows: Sequence[Row]) -> list[str]:
    """Accuracy of every row with its costs, then the differences to its reference, paired by seed."""
    types = sorted({name for row in rows for name in row["by_type"]})
    values: list[Value] = [exact_match, *(of_type(name) for name in types)]
    accuracy, differences = [], []
    for condition in (c for c in PARTS if any(row["condition"] == c.name for row in rows)):
        own = [row for row in rows if row["condition"] == condition.name]
        cells = [percent(over_seeds(own, value)) for value in values]
        costs = [f"{own[0]['gflop_behind_encoder']:.3f}", f"{own[0]['combiner_gflop']:.3f}", f"{own[0]['parameters'] / 1e6:.2f}"]
        fell = statistics.fmean(plateau(row) for row in own)
        accuracy.append([condition.name, condition.what, str(len(own)), *cells, *costs, f"{100 * fell:.1f} %"])
        if condition.reference:
            found = [paired(rows, condition.name, condition.reference, value) for value in values]
            least = None if found[0] is None else smallest_effect(found[0])
            differences.append(
                [
                    condition.name,
                    condition.reference,
                    *map(points, found[:1]),
                    "" if least is None else f"{100 * least:.1f}",
                    *map(points, found[1:]),
                ]
            )
    parts = [table(["", "", "seeds", "all", *types, "GFLOP", "of it Combiner", "M parameters", "plateau"], accuracy)]
    if differences:
        parts += [
            "Differences in points, paired by seed [95 % interval]; `least`: the smallest difference that would have been seen in four of "
            "five tries:",
            table(["", "minus", "all", "least", *types], differences),
        ]
    return parts


def plateau(row: Row) -> float:
    """By which share the validation loss fell over the last tenth of the steps before the rate falls."""
    before, after = (min(row["curve"], key=lambda point: abs(point[0] - share * row["steps"]))[1] for share in (0.7, 0.8))
    return 1 - after / before


def over_seeds(rows: Iterable[Row], value: Value) -> Estimate | None:
    return estimate([found for row in rows if (found := value(row)) is not None])


def cuts_table(rows: Sequence[Row]) -> str:
    """What trained models lose when a part is taken from them at evaluation."""
    lines = []
    for condition in PARTS:
        own = [row for row in rows if row["condition"] == condition.name]
        for cut in own[0].get("cuts", {}) if own else {}:
            lost = estimate([row["cuts"][cut]["exact_match"] - row["exact_match"] for row in own])
            order = estimate([row["cuts"][cut]["by_type"]["order"]["exact_match"] - row["by_type"]["order"]["exact_match"] for row in own])
            lines.append([condition.name, cut, points(lost), points(order)])
    return "Taken away at evaluation, in points:\n\n" + table(["", "control", "all", "order"], lines)


def frontier_table(rows: Sequence[Row]) -> str:
    found = []
    for point in FRONTIER:
        found.append((point, [row for row in rows if row["condition"] == point.name]))
    for name, same in SAME_AS.items():
        point = Condition(name, next(c.what for c in PARTS if c.name == same), reference=None)
        found.append((point, [row for row in rows if row["condition"] == same]))
    found = sorted((pair for pair in found if pair[1]), key=lambda pair: (pair[0].chunks, pair[1][0]["gflop_behind_encoder"]))
    lines = [
        [str(point.chunks), point.what, str(len(own)), percent(over_seeds(own, exact_match)), f"{own[0]['gflop_behind_encoder']:.3f}",
         f"{own[0]['gflop']:.3f}"]
        for point, own in found
    ]  # fmt: skip
    return table(["chunks", "Combiner", "seeds", "all", "GFLOP behind the encoder", "GFLOP in all"], lines)


def claims_table(rows: Sequence[Row]) -> str:
    return table(["the authors", "here", "difference", "figures"], [
        [claim.text, f"**{found}**", f"{claim.better} - {claim.worse}", reasons]
        for claim, (found, reasons) in ((claim, judge(claim, rows)) for claim in CLAIMS)
    ])  # fmt: skip


def rule() -> str:
    return (
        "By rule: `seen` where the 95 % interval of the paired difference lies above 0 (`at least equal`: above "
        f"-{100 * EQUAL:.0f} points); `not seen` where it lies below, or where compute speaks against the claim; else "
        "`within noise`: neither shown nor refuted. Intervals are Student's t over "
        "seeds and cover the seed of training only: clips and questions are the same for all. The number of claims is not corrected for. "
        "All rows train behind one encoder, which was trained with a Token Turing Machine as Combiner on short clips."
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
