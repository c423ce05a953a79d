"""From the published annotation files, through the readers, to the figures: perfect answers give 1 everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from mirasol_cli.datasets.catalogue import open_dataset
from mirasol_cli.datasets.example import DatasetOptions
from mirasol_cli.evaluation.protocols import protocol_of, score
from tests.excerpts import place

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
