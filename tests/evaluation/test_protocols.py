"""Each benchmark's figures against its official script's rules, restated here from their description."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from mirasol_cli.evaluation.protocols import ACTIVITYNET_TYPES, protocol_of, score_row
from mirasol_cli.evaluation.scoring import score
from tests.paths import SHARED


def row(number, answer, prediction, *, type="", video=None, question="what is it", **more):
    return {"id": f"q{number}", "clip": number, "video": video or f"v{number}", "question": question, "type": type,
            "answer": answer, "prediction": prediction, "logprob": -1.0, **more}  # fmt: skip


# ActivityNet-QA, test split: number of questions per type, and the order in which the types first appear.
ACTIVITYNET_TEST = {3: 2094, 8: 1499, 6: 386, 7: 606, 0: 800, 1: 800, 2: 800, 4: 697, 5: 318}


def official_activitynet(rows):
    """The arithmetic of the official script as it is described, but that Free is over its own types; the script divides by others."""
    count, right = {}, Counter()
    for entry in rows:
        count[entry["type"]] = count.get(entry["type"], 0) + 1
        right[entry["type"]] += entry["prediction"] == entry["answer"]
    free = sum(right[str(number)] for number in range(3, 9))
    return {
        "all": sum(right.values()) / sum(count.values()),
        "free": free / sum(count[str(number)] for number in range(3, 9) if str(number) in count),
        "types": {ACTIVITYNET_TYPES[int(number)]: right[number] / count[number] for number in count},
    }


def test_activitynet_free_is_over_its_own_questions():
    types = [str(number) for number, count in ACTIVITYNET_TEST.items() for _ in range(count)]
    rows = [row(i, "yes", "yes", type=number, video=f"v{i // 10}") for i, number in enumerate(types)]
    protocol = protocol_of("activitynet", "qa")
    scored = score(rows, protocol)
    assert scored.metrics["exact_match"] == 1.0
    assert scored.groups["free"] == {"n": 5600, "exact_match": 1.0, "exact_match_normalised": 1.0}
    assert {name: part["n"] for name, part in scored.by_type.items()} == {
        ACTIVITYNET_TYPES[number]: ACTIVITYNET_TEST[number] for number in range(9)
    }


def test_activitynet_equals_a_restatement_of_the_official_script_on_random_answers():
    rng = np.random.default_rng(0)
    rows = [row(i, str(rng.integers(3)), str(rng.integers(3)), type=str(rng.integers(9)), video=f"v{i // 4}") for i in range(900)]
    expected = official_activitynet(rows)
    scored = score(rows, protocol_of("activitynet", "qa"))
    assert scored.metrics["exact_match"] == pytest.approx(expected["all"])
    assert scored.groups["free"]["exact_match"] == pytest.approx(expected["free"])
    assert {name: part["exact_match"] for name, part in scored.by_type.items()} == pytest.approx(expected["types"])


@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "dataset", "question_file", "answer_file", "majority", "times"),
    [  # the commonest answer and how often it occurs, counted by hand in the excerpt of 200 rows
        ("activitynet-qa", "activitynet", "test_q.head200.json", "test_a.head200.json", "no", 104),
        ("msrvtt-qa", "msrvtt", "test_qa.head200.json", None, "man", 32),
        ("msvd-qa", "msvd", "test_qa.head200.json", None, "man", 55),
    ],
)
def test_perfect_and_majority_answers_on_the_published_excerpts(folder, dataset, question_file, answer_file, majority, times):
    base = SHARED / "annotations" / folder
    questions = json.loads((base / question_file).read_text())
    gold = {entry["question_id"]: entry for entry in json.loads((base / answer_file).read_text())} if answer_file else {}
    rows = []
    for number, entry in enumerate(questions):
        key = entry.get("question_id", entry.get("id"))
        answer = gold[key] if gold else entry
        video = str(entry.get("video_name", entry.get("video_id")))
        rows.append(row(number, answer["answer"], None, type=str(answer.get("type", "")), video=video, question=entry["question"]))
    protocol = protocol_of(dataset, "qa")
    perfect = score([{**r, "prediction": r["answer"]} for r in rows], protocol)
    assert set(perfect.metrics.values()) - {0.0} == {1.0}
    assert perfect.metrics["empty"] == 0.0
    assert all(part["exact_match"] == 1.0 for part in (*perfect.by_type.values(), *perfect.groups.values()))
    assert sum(part["n"] for part in perfect.by_type.values()) == len(rows) == 200

    assert score([{**r, "prediction": majority} for r in rows], protocol).metrics["exact_match"] == pytest.approx(times / 200)


def official_nextqa_accuracy(answers):
    """Accuracies as the official multiple-choice script reports them: per type with TP counted as TN, per first letter, overall."""
    by_type = defaultdict(list)
    for kind, right in answers:
        by_type["TN" if kind == "TP" else kind].append(right)
    letters = {letter: [r for kind, rights in by_type.items() if kind[0] == letter for r in rights] for letter in "CTD"}
    return {k: np.mean(v) for k, v in by_type.items()}, {k: np.mean(v) for k, v in letters.items() if v}, np.mean([r for _, r in answers])


@pytest.mark.real
def test_nextqa_multiple_choice_on_the_published_excerpt():
    with open(SHARED / "annotations/nextqa/mc/val.head200.csv", newline="") as file:
        published = list(csv.DictReader(file))
    rng = np.random.default_rng(0)
    rows, expected = [], []
    for entry in published:
        choices = [entry[f"a{k}"] for k in range(5)]
        chosen = int(rng.integers(5))
        gold = int(entry["answer"])
        rows.append(row(f"{entry['video']}_{entry['qid']}", choices[gold], choices[chosen], type=entry["type"], video=entry["video"],
                        question=entry["question"], choices=choices))  # fmt: skip
        expected.append((entry["type"], choices[chosen] == choices[gold]))
    types, letters, overall = official_nextqa_accuracy(expected)
    scored = score(rows, protocol_of("nextqa", "mc"))
    assert "TP" not in scored.by_type
    assert {name: part["exact_match"] for name, part in scored.by_type.items()} == pytest.approx(types)
    assert {name: part["exact_match"] for name, part in scored.groups.items()} == pytest.approx(letters)
    assert scored.metrics["exact_match"] == pytest.approx(overall)
    always_first = score([{**r, "prediction": r["choices"][0]} for r in rows], protocol_of("nextqa", "mc"))
    assert always_first.metrics["exact_match"] == pytest.approx(sum(entry["answer"] == "0" for entry in published) / 200)


def official_epic(scores, gold, classes):
    """Top-1, top-5, mean per class, mAP, mAUC over the classes that occur, by scikit-learn."""
    m = pytest.importorskip("sklearn.metrics")
    onehot = np.eye(classes)[gold]
    present = onehot.any(axis=0)
    order = np.argsort(-scores, axis=1)
    top1 = order[:, 0] == gold
    return {
        "closed_top1": top1.mean(),
        "closed_top5": np.mean([g in o for g, o in zip(gold, order[:, :5], strict=True)]),
        "closed_mean_per_class": np.mean([top1[gold == c].mean() for c in np.flatnonzero(present)]),
        "mAP": m.average_precision_score(onehot[:, present], scores[:, present], average="macro"),
        "mAUC": m.roc_auc_score(onehot[:, present], scores[:, present], average="macro"),
    }


@pytest.mark.parametrize("dataset", ["epic-sounds", "vggsound", "kinetics-sounds"])
def test_class_sets_equal_scikit_learn_over_the_classes_present(dataset):
    rng = np.random.default_rng(4)
    labels = [f"class {c}" for c in range(12)]
    gold = rng.integers(0, 9, 150)  # three classes never occur
    logits = rng.normal(size=(150, 12)) + 2 * np.eye(12)[gold] * (rng.random((150, 1)) < 0.5)
    rows = [row(i, labels[g], labels[int(rng.integers(12))], scores=logits[i].tolist()) for i, g in enumerate(gold)]
    scored = score(rows, protocol_of(dataset, "label"), labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = official_epic(probabilities, gold, 12)
    assert {name: scored.metrics[name] for name in expected} == pytest.approx(expected)
    assert scored.metrics["valid_class"] == 1.0


def test_perfect_class_answers_give_one_everywhere():
    labels = [f"class {c}" for c in range(5)]
    rows = [row(i, labels[i % 5], labels[i % 5], scores=(20 * np.eye(5)[i % 5]).tolist()) for i in range(40)]
    figures = score(rows, protocol_of("vggsound", "label"), labels).metrics
    assert figures.pop("empty") == 0.0
    assert set(figures.values()) == {1.0}
    assert {"valid_class", "closed_top1", "closed_top5", "mAP", "mAUC", "mean_per_class"} <= figures.keys()


def test_outputs_outside_the_closed_set_are_counted_and_prefixes_do_not_pass():
    labels = ["airplane", "airplane flyby"]
    rows = [row(0, "airplane flyby", "airplane"), row(1, "airplane", "an airplane"), row(2, "airplane", "airplane")]
    figures = score(rows, protocol_of("vggsound", "label"), labels).metrics
    assert figures["exact_match"] == pytest.approx(1 / 3)
    assert figures["valid_class"] == pytest.approx(2 / 3)


def test_audioset_counts_every_label_of_a_clip():
    m = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    labels = [f"sound {c}" for c in range(6)]
    positive = rng.random((80, 6)) < 0.3
    positive[:, 0] |= ~positive.any(axis=1)
    logits = rng.normal(size=(80, 6))
    rows = []
    for i in range(80):
        names = [labels[c] for c in np.flatnonzero(positive[i])]
        rows.append(row(i, "; ".join(names), names[0], references=names, scores=logits[i].tolist()))
    scored = score(rows, protocol_of("audioset", "label"), labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scored.metrics["mAP"] == pytest.approx(m.average_precision_score(positive, probabilities, average="macro"))
    single = positive.sum(axis=1) == 1
    assert 0 < single.mean() < 1
    assert scored.metrics["exact_match"] == pytest.approx(single.mean())  # one name of several is not the answer
    assert scored.metrics["label_f1"] == pytest.approx(np.mean(2 / (1 + positive.sum(axis=1))))
    turned = score([{**r, "prediction": " ;".join(reversed(r["references"]))} for r in rows], protocol_of("audioset", "label"), labels)
    assert turned.metrics["label_f1"] == turned.metrics["valid_class"] == 1.0
    assert turned.metrics["exact_match"] == pytest.approx(single.mean())
    invented = score([{**r, "prediction": r["answer"] + "; unheard-of"} for r in rows], protocol_of("audioset", "label"), labels)
    assert invented.metrics["valid_class"] == 0.0


def test_types_by_first_word():
    rows = [row(0, "a", "a", question="What is it"), row(1, "b", "x", question="who is it"), row(2, "b", "b", question="what else")]
    assert {k: v["n"] for k, v in score(rows, protocol_of("msvd", "qa")).by_type.items()} == {"what": 2, "who": 1}


def test_missing_clips_count_as_wrong_with_the_present_ones_beside():
    rows = [row(i, "yes", "yes", video=str(i)) for i in range(8)] + [row(9, "yes", "", missing=True), row(10, "yes", "", missing=True)]
    figures = score(rows, protocol_of("manifest", "qa")).metrics
    assert figures["exact_match"] == 0.8
    assert figures["exact_match_present"] == 1.0


def test_a_missing_clip_cannot_be_among_the_best_classes():
    rows = [row(0, "x", "", missing=True), row(1, "x", "x", scores=[0.0, -1.0])]
    figures = score(rows, protocol_of("vggsound", "label"), ["x", "y"]).metrics
    assert figures["closed_top1"] == 0.5
    assert figures["closed_top5"] == 0.5


def test_without_labels_nothing_is_scored_and_it_says_so():
    scored = score([row(0, None, "yes"), row(1, None, "no")], protocol_of("epic-sounds", "label"), ["yes", "no"])
    assert scored.metrics == {}
    assert "without labels" in scored.notes[-1]
    assert score_row(row(0, None, "yes"), protocol_of("epic-sounds", "label"))["correct"] is None


def test_an_added_reference_of_nextqa_counts_and_an_empty_answer_never_does():
    protocol = protocol_of("nextqa", "oe")
    assert score_row(row(0, "curious", "happy", references=["happy"]), protocol)["correct"] is True
    assert score_row(row(0, "curious", "sad", references=["happy"]), protocol)["correct"] is False
    assert score_row(row(0, "", "", references=[" "]), protocol)["correct"] is False


def test_captions_have_token_f1_and_manifest_choices_are_compared_as_text():
    figures = score([row(0, "a dog runs", "dog sits", references=["the dog"])], protocol_of("anything", "caption")).metrics
    assert figures["token_f1"] == pytest.approx(2 * 1 / (2 + 1))
    assert figures["exact_match"] == 0.0


def test_intervals_stand_beside_every_figure_and_need_ten_videos():
    few = score([row(i, "a", "a", type="t") for i in range(9)], protocol_of("m", "qa")).intervals
    assert few["exact_match"] is None
    assert few["by_type"] == {"t": None}
    assert "under 10 videos" in few["method"]
    many = score([row(i, "a", "ab"[i % 2], type="t") for i in range(40)], protocol_of("m", "qa")).intervals
    low, high = many["exact_match"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert many["by_type"]["t"] == (low, high)
