"""From the published annotation files, through the readers, to the figures: perfect answers give 1 everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from mirasol_cli.datasets.example import DatasetOptions
from mirasol_cli.datasets.registry import open_dataset
from mirasol_cli.evaluation.protocols import protocol_of
from mirasol_cli.evaluation.scoring import score
from tests.datasets.excerpts import place

FILES = {
    ("activitynet", "qa"): {"activitynet-qa/test_q.head200.json": "test_q.json", "activitynet-qa/test_a.head200.json": "test_a.json"},
    ("msrvtt", "qa"): {"msrvtt-qa/test_qa.head200.json": "test_qa.json"},
    ("msvd", "qa"): {"msvd-qa/test_qa.head200.json": "test_qa.json"},
    ("nextqa", "mc"): {"nextqa/mc/val.head200.csv": "val.csv", "nextqa/map_vid_vidorID.excerpt.json": "map_vid_vidorID.json"},
    ("nextqa", "oe"): {"nextqa/oe/val.head200.csv": "val.csv", "nextqa/map_vid_vidorID.excerpt.json": "map_vid_vidorID.json"},
    ("vggsound", "label"): {"vggsound/test.head200.csv": "test.csv", "vggsound/stat.csv": "stat.csv"},
    ("epic-sounds", "label"): {"epic-sounds/EPIC_Sounds_validation.head200.csv": "EPIC_Sounds_validation.csv"},
    ("audioset", "label"): {
        "audioset/eval_segments.rebuilt_head200.csv": "eval_segments.csv",
        "audioset/class_labels_indices.csv": "class_labels_indices.csv",
    },
}


@pytest.mark.real
@pytest.mark.parametrize(("dataset", "task"), FILES, ids=["-".join(key) for key in FILES])
def test_perfect_answers(tmp_path, dataset, task):
    splits = open_dataset(dataset).read(place(tmp_path, FILES[dataset, task]), task, DatasetOptions())
    (split,) = [split for split in splits if split.texts]
    protocol = protocol_of(dataset, task)
    number = {label: c for c, label in enumerate(split.labels)}
    rows = []
    for clip, text in enumerate(split.texts):
        row = {**text.to_json(clip), "video": text.clip.video, "prediction": text.answer}
        if protocol.ranks_labels:
            gold = [number[answer] for answer in (text.answer, *text.references) if answer in number]
            assert gold
            row["scores"] = np.where(np.isin(np.arange(len(number)), gold), 0.0, -50.0).tolist()
        rows.append(row)
    scored = score(rows, protocol, split.labels)
    figures = dict(scored.metrics)
    assert figures.pop("empty") == 0.0
    assert figures == pytest.approx(dict.fromkeys(figures, 1.0))
    assert all(part["exact_match"] == 1.0 for part in (*scored.by_type.values(), *scored.groups.values()))
    wrong = score([{**row, "prediction": "surely not"} for row in rows], protocol, split.labels)
    assert wrong.metrics["exact_match"] == 0.0


@pytest.mark.real
def test_the_hidden_labels_of_epic_sounds_are_said_not_scored(tmp_path):
    files = {
        "epic-sounds/EPIC_Sounds_recognition_test_timestamps.head100.csv": "EPIC_Sounds_recognition_test_timestamps.csv",
        "epic-sounds/EPIC_Sounds_validation.head200.csv": "EPIC_Sounds_validation.csv",
    }
    splits = open_dataset("epic-sounds").read(place(tmp_path, files), "label", DatasetOptions())
    (test,) = [split for split in splits if split.name == "test"]
    rows = [{**text.to_json(clip), "video": text.clip.video, "prediction": "click"} for clip, text in enumerate(test.texts)]
    scored = score(rows, protocol_of("epic-sounds", "label"), test.labels)
    assert scored.metrics == scored.counts == {}
    assert scored.notes == ["100 of 100 questions have no gold answer; they are not scored",
                            "nothing to score: this split is published without labels"]  # fmt: skip


@pytest.mark.real
def test_the_added_references_of_nextqa_reach_the_scores(tmp_path):
    files = {
        "nextqa/oe/test.rows_for_add_reference.csv": "test.csv",
        "nextqa/oe/add_reference_answer_test.head20.json": "add_reference_answer_test.json",
    }
    (split,) = open_dataset("nextqa").read(place(tmp_path, files), "oe", DatasetOptions())
    added = [text for text in split.texts if text.references]
    assert added
    rows = [{**text.to_json(0), "video": text.clip.video, "prediction": text.references[0]} for text in added]
    assert score(rows, protocol_of("nextqa", "oe")).metrics["exact_match"] == 1.0
