"""All figures of a set of judged predictions: means with intervals, per type and group, and rankings over a closed set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mirasol_cli.datasets.audioset import JOINT
from mirasol_cli.evaluation import metrics
from mirasol_cli.evaluation.bootstrap import METHOD, bootstrap
from mirasol_cli.evaluation.protocols import (
    ACTIVITYNET_TYPES,
    CAPTION,
    LABEL,
    MULTILABEL,
    Protocol,
    gold_answers,
    score_row,
)


@dataclass(frozen=True)
class Scored:
    """All figures of one predictions file; fractions, NaN-free."""

    metrics: dict[str, float]
    counts: dict[str, int]  # how many questions each of them is about
    by_type: dict[str, dict]
    groups: dict[str, dict]
    intervals: dict
    notes: list[str]


def score(rows: Sequence[Mapping], protocol: Protocol, labels: Sequence[str] = (), *, seed: int = 0) -> Scored:
    """All figures of `rows`, which hold every expected question once: `missing` is true where the clip has no media, `unanswered`
    where a predictions file has no answer; both count as wrong."""
    judged = [score_row(row, protocol) for row in rows if gold_answers(row, protocol)]
    notes = []
    if len(judged) < len(rows):
        notes.append(f"{len(rows) - len(judged)} of {len(rows)} questions have no gold answer; they are not scored")
    if not judged:
        return Scored({}, {}, {}, {}, {"method": METHOD}, [*notes, "nothing to score: this split is published without labels"])

    columns = _columns(judged, protocol)
    overall = {name: float(np.mean(values)) for name, values in columns.items()}
    present = [i for i, row in enumerate(judged) if not row.get("missing")]
    answered = [i for i, row in enumerate(judged) if not row.get("missing") and not row.get("unanswered")]
    subsets = {"present": present} | ({"answered": answered} if any(row.get("unanswered") for row in judged) else {})
    for subset, numbers in subsets.items():
        if numbers and len(numbers) < len(judged):
            overall |= {f"{name}_{subset}": float(np.mean(np.asarray(values)[numbers])) for name, values in columns.items()}
    overall["empty"] = sum(not (row.get("prediction") or "").strip() for row in judged) / len(judged)
    if protocol.ranks_labels and labels:
        overall |= _label_figures(judged, protocol, list(labels))
    counts = {name: len(subsets.get(name.rpartition("_")[2], judged)) for name in overall}

    types = [protocol.type_of(row) for row in judged]
    videos = [str(row["video"]) for row in judged]
    by_type = {name: _part(columns, [i for i, t in enumerate(types) if t == name]) for name in _ordered(types)}
    groups = {
        name: _part(columns, [i for i, t in enumerate(types) if t in members])
        for name, members in protocol.groups.items()
        if any(t in members for t in types)
    }
    intervals: dict = {"method": METHOD, "videos": len(set(videos))}
    intervals |= {name: bootstrap(values, videos, seed) for name, values in columns.items()}
    members_of: dict[str, dict[str, tuple[str, ...]]] = {
        "by_type": {name: (name,) for name in by_type},
        "groups": {name: protocol.groups[name] for name in groups},
    }
    for section, parts in members_of.items():
        intervals[section] = {
            name: bootstrap([columns["exact_match"][i] for i in part], [videos[i] for i in part], seed)
            for name, members in parts.items()
            if (part := [i for i, t in enumerate(types) if t in members])
        }
    return Scored(overall, counts, by_type, groups, intervals, notes)


def _columns(rows: list[dict], protocol: Protocol) -> dict[str, list[float]]:
    """Per metric one value per row: those that are means over questions, and so have intervals and types."""
    columns = {
        "exact_match": [float(row["correct"]) for row in rows],
        "exact_match_normalised": [float(row["correct_normalised"]) for row in rows],
    }
    if protocol.kind == CAPTION:
        columns["token_f1"] = [metrics.token_f1(row.get("prediction") or "", gold_answers(row, protocol)) for row in rows]
    if protocol.kind == MULTILABEL:
        gold = [[metrics.canonical(label) for label in row.get("references") or [row["answer"]]] for row in rows]
        columns["label_f1"] = [metrics.set_f1(_generated_labels(row), labels) for row, labels in zip(rows, gold, strict=True)]
    return columns


def _generated_labels(row: Mapping) -> list[str]:
    """The names in a prediction of several labels."""
    return [name for part in (row.get("prediction") or "").split(JOINT.strip()) if (name := metrics.canonical(part))]


def _gold(row: Mapping) -> tuple[str, ...]:
    return (row["answer"], *(row.get("references") or ()))


def _part(columns: Mapping[str, Sequence[float]], indices: list[int]) -> dict:
    return {"n": len(indices)} | {name: float(np.mean([values[i] for i in indices])) for name, values in columns.items()}


def _ordered(types: Sequence[str]) -> list[str]:
    """Types in the benchmark's order where it has one, else the commonest first."""
    if set(types) <= set(ACTIVITYNET_TYPES):
        return [name for name in ACTIVITYNET_TYPES if name in set(types)]
    counts = Counter(types)
    return sorted(counts, key=lambda name: (-counts[name], name))


def _label_figures(rows: list[dict], protocol: Protocol, labels: list[str]) -> dict[str, float]:
    """Figures over the closed set: validity of what was generated, ranking by likelihood."""
    number = {metrics.canonical(label): c for c, label in enumerate(labels)}
    if protocol.kind == MULTILABEL:
        valid = [bool(names := _generated_labels(row)) and all(name in number for name in names) for row in rows]
    else:
        valid = [metrics.canonical(row.get("prediction") or "") in number for row in rows]
    figures = {"valid_class": sum(valid) / len(rows)}
    gold_sets = [[number[name] for name in map(metrics.canonical, _gold(row)) if name in number] for row in rows]
    scored = [i for i, gold in enumerate(gold_sets) if gold]
    if protocol.kind == LABEL and protocol.per_class and scored:
        gold = np.array([gold_sets[i][0] for i in scored])
        figures["mean_per_class"] = metrics.mean_per_class(np.array([float(rows[i]["correct"]) for i in scored]), gold)
    if not scored or not any(rows[i].get("scores") for i in scored):
        return figures

    absent = [-np.inf] * len(labels)  # a missing clip ranks nothing: it cannot be among the best
    probabilities = metrics.softmax(np.array([rows[i].get("scores") or absent for i in scored], float))
    positive = np.zeros(probabilities.shape, bool)
    for row, i in enumerate(scored):
        positive[row, gold_sets[i]] = True
    if protocol.kind == LABEL:
        gold = np.array([gold_sets[i][0] for i in scored])
        seen = np.array([bool(rows[i].get("scores")) for i in scored])
        best, among_five = (metrics.top_k(probabilities, gold, k) & seen for k in (1, 5))
        figures |= {"closed_top1": float(best.mean()), "closed_top5": float(among_five.mean())}
        figures["closed_mean_per_class"] = metrics.mean_per_class(best.astype(float), gold)
    for name, measure in (("mAP", metrics.average_precision), ("mAUC", metrics.roc_auc)):
        value = metrics.mean_over_classes(measure, positive, probabilities)
        if not np.isnan(value):
            figures[name] = value
    return figures
