"""How each benchmark is scored: what counts as right, which question types it reports, which figures belong beside.

A prediction row (one line of `predictions.jsonl`) is a dict with
    id, clip, video, question, type, answer (gold, None without labels), references, choices, prediction,
    correct, correct_normalised, logprob, scores (log-likelihood per choice or class, where asked for), missing.
Rows go in as they come from the model or from a file; the model itself is not needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mirasol_cli.datasets.audioset import JOINT
from mirasol_cli.evaluation import metrics

OPEN, CHOICE, LABEL, MULTILABEL, CAPTION = "open-ended", "multiple choice", "class name", "several labels", "caption"

ACTIVITYNET_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")
"""The names of ActivityNet-QA's types 0 to 8; 3 to 8 together are "free"."""
NEXTQA_GROUPS = {"C": ("CW", "CH"), "T": ("TN", "TP", "TC"), "D": ("DC", "DL", "DO", "DB")}

_MATCH = (
    "exact_match is equality after strip, of text in Unicode's form NFC; exact_match_normalised also ignores case, articles and "
    "punctuation at the edges of words, and keeps signs, numbers and symbols (-5 is not 5, c++ is not c); "
    "a missing clip or an empty answer counts as wrong"
)


def _given_type(row: Mapping) -> str:
    return str(row.get("type") or "")


def _first_word(row: Mapping) -> str:
    """The type the data set's reader gave, which is the question's first word; the word itself where none was given."""
    if _given_type(row):
        return _given_type(row)
    words = row["question"].lower().split()
    return words[0] if words else ""


def activitynet_type(row: Mapping) -> str:
    given = _given_type(row)
    return ACTIVITYNET_TYPES[int(given)] if given in {str(number) for number in range(9)} else given


def _nextqa_type(row: Mapping) -> str:
    """TP is merged into TN, as the official scripts do."""
    return "TN" if _given_type(row) == "TP" else _given_type(row)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    name: str
    kind: str  # OPEN, CHOICE, LABEL, MULTILABEL or CAPTION
    statement: str
    type_of: Callable[[Mapping], str] = _given_type
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # name -> the types it holds
    per_class: bool = False  # also the mean per class, mAP and mAUC over classes present
    sizes: Mapping[str, int] = field(default_factory=dict)  # split -> questions of the published annotation
    paper: str = ""  # the figure of the Mirasol3B paper, with how it is known

    @property
    def generates(self) -> bool:
        """An answer is written freely (and not only chosen)."""
        return self.kind != CHOICE

    @property
    def ranks_labels(self) -> bool:
        """Every class of a closed set gets a likelihood."""
        return self.kind in (LABEL, MULTILABEL)


_QUOTED_HIERARQ = "second-hand: quoted in the comparison table of HierarQ, not seen in the paper itself"
_QUOTED_MIRROR = "second-hand: quoted in a mirror of a leaderboard, not seen in the paper itself"

_OPEN = Protocol(name="open-ended question answering", kind=OPEN, statement=f"Free generation. {_MATCH}.")
_CAPTION = Protocol(
    name="captions", kind=CAPTION, statement=f"Free generation under one fixed prompt. {_MATCH}; token_f1 is the share of common words."
)
_CLASSES = (
    f"Free generation of the class name. {_MATCH}. valid_class is the share of outputs that are a name of the closed set. "
    "closed_* rank the names of the closed set by their likelihood"
)

PROTOCOLS: dict[tuple[str, str], Protocol] = {
    ("msrvtt", "qa"): Protocol(
        name="MSRVTT-QA", kind=OPEN, type_of=_first_word, paper=f"50.4 ({_QUOTED_HIERARQ})",
        sizes={"train": 158581, "val": 12278, "test": 72821},
        statement=f"Free generation, types by the first word of the question. {_MATCH}.",
    ),
    ("msvd", "qa"): Protocol(
        name="MSVD-QA", kind=OPEN, type_of=_first_word, sizes={"train": 30933, "val": 6415, "test": 13157},
        statement=f"Free generation, types by the first word of the question. {_MATCH}.",
    ),
    ("activitynet", "qa"): Protocol(
        name="ActivityNet-QA", kind=OPEN, type_of=activitynet_type, groups={"free": ACTIVITYNET_TYPES[3:]},
        paper=f"51.1 ({_QUOTED_HIERARQ})", sizes={"train": 32000, "val": 18000, "test": 8000},
        statement=f"Free generation; free is types 3 to 8 over their own number (the official script divides by a wrong one). {_MATCH}.",
    ),
    ("nextqa", "oe"): Protocol(
        name="NExT-QA open-ended", kind=OPEN, type_of=_nextqa_type, groups=NEXTQA_GROUPS,
        sizes={"train": 37523, "val": 5343, "test": 9178},
        statement=f"Free generation, TP merged into TN; the added reference answer counts as well. {_MATCH}.",
    ),
    ("nextqa", "mc"): Protocol(
        name="NExT-QA multiple choice", kind=CHOICE, type_of=_nextqa_type, groups=NEXTQA_GROUPS, sizes={"val": 4996, "test": 8564},
        statement="The choice of highest likelihood as answer, per token; TP merged into TN. A missing clip counts as wrong.",
    ),
    ("vggsound", "label"): Protocol(
        name="VGG-Sound", kind=LABEL, per_class=True, paper=f"69.8 ({_QUOTED_MIRROR})", sizes={"test": 15446},
        statement=f"{_CLASSES} (top-1, top-5, mAP).",
    ),
    ("kinetics-sounds", "label"): Protocol(
        name="Kinetics-Sounds", kind=LABEL, per_class=True, statement=f"{_CLASSES} (top-1, top-5, mAP).",
    ),
    ("epic-sounds", "label"): Protocol(
        name="EPIC-SOUNDS", kind=LABEL, per_class=True, sizes={"val": 8035, "test": 5131},
        statement=f"{_CLASSES} (top-1, top-5); the mean per class, mAP and mAUC go over the classes that occur.",
    ),
    ("esc50", "label"): Protocol(
        name="ESC-50", kind=LABEL, per_class=True, sizes={f"fold{fold}": 400 for fold in range(1, 6)},
        statement=f"One of five folds; the figure of this set is the mean of all five. {_CLASSES} (top-1, top-5, mAP).",
    ),
    ("esc50", "esc10"): Protocol(
        name="ESC-10", kind=LABEL, per_class=True, sizes={f"fold{fold}": 80 for fold in range(1, 6)},
        statement=f"One of five folds; the figure of this set is the mean of all five. {_CLASSES} (top-1, top-5, mAP).",
    ),
    ("audioset", "label"): Protocol(
        name="AudioSet", kind=MULTILABEL, per_class=True, sizes={"test": 20371},
        statement="The figure of this set is mAP: all names ranked by their likelihood, averaged over the classes that occur. Beside it "
        f"all names of a clip are generated, joined as '{JOINT.strip()}' joins them. {_MATCH}, and a part of the names is not the answer; "
        "label_f1 compares generated and true names as sets; valid_class is the share of outputs whose names are all in the closed set.",
    ),
}  # fmt: skip
_BY_TASK = {
    "qa": _OPEN,
    "oe": _OPEN,
    "caption": _CAPTION,
    "mc": Protocol(
        name="multiple choice", kind=CHOICE,
        statement="The choice of highest likelihood as answer, per token. A missing clip counts as wrong.",
    ),
    "label": Protocol(name="class names", kind=LABEL, per_class=True, statement=f"{_CLASSES} (top-1, top-5, mAP)."),
}  # fmt: skip


def protocol_of(dataset: str, task: str) -> Protocol:
    """The benchmark's own protocol, or that of the task for any other data (manifests, the demo, caption sets)."""
    return PROTOCOLS.get((dataset, task)) or _BY_TASK.get(task, _OPEN)


def gold_answers(row: Mapping, protocol: Protocol) -> tuple[str, ...]:
    """All answers that count as right; empty where the split has no labels.

    References are further right answers, but with several labels they are the single labels, none of which is the whole answer.
    """
    first = () if row.get("answer") is None else (row["answer"],)
    return first if protocol.kind == MULTILABEL else (*first, *(row.get("references") or ()))


def score_row(row: Mapping, protocol: Protocol) -> dict:
    """The row with `correct` and `correct_normalised` set from its prediction (None without a gold answer)."""
    answers, prediction = gold_answers(row, protocol), row.get("prediction") or ""
    if not answers:
        return {**row, "correct": None, "correct_normalised": None}
    return {
        **row,
        "correct": metrics.exact(prediction, answers),
        "correct_normalised": metrics.exact_normalised(prediction, answers),
    }
