from collections import Counter
from pathlib import Path

import pytest

from mirasol_cli.datasets.epic_sounds import candidates, read
from mirasol_cli.datasets.example import ClipSpan, DatasetOptions
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError
from tests.datasets.excerpts import place, write

OPTIONS = DatasetOptions()
PLAIN = "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample"
HEADER = PLAIN + ",description,class,class_id\n"
ROW = "P01_11_0,P01,P01_11,00:00:02.069,01:00:02.993,{samples},clang / clatter,ceramic / wood collision,34\n"


@pytest.mark.parametrize("samples", ["49656,71832", "2.069,2.993", "496560,718320"])
def test_timestamps_count_and_samples_do_not(tmp_path: Path, samples: str) -> None:
    write(tmp_path, {"EPIC_Sounds_train.csv": HEADER + ROW.format(samples=samples)})
    (split,) = read(tmp_path, None, OPTIONS)
    (text,) = split.texts
    assert (text.id, text.clip, text.answer) == (
        "P01_11_0", ClipSpan(video="P01_11", start_s=2.069, end_s=3602.993), "ceramic / wood collision"
    )  # fmt: skip


@pytest.mark.parametrize("on_disk", ["EPIC-KITCHENS/P01/videos/P01_11.MP4", "videos/train/P01/P01_11.MP4", "videos/test/P01/P01_11.mp4"])
def test_layouts_on_disk(tmp_path: Path, on_disk: str) -> None:
    write(tmp_path, {on_disk: "", "P01_1.MP4": "", "P01_110.MP4": ""})
    found = VideoIndex(tmp_path).locate(candidates(ClipSpan(video="P01_11", start_s=2.0, end_s=3.0)))
    assert found is not None
    assert (found.path, found.whole) == (tmp_path / on_disk, False)


def test_test_has_no_labels_but_the_class_list(tmp_path: Path) -> None:
    row = "P02_1_0,P02,P02_1,00:00:03.855,00:00:04.142,9,9\n"
    write(
        tmp_path,
        {
            "EPIC_Sounds_recognition_test_timestamps.csv": PLAIN + "\n" + row,
            "EPIC_Sounds_validation.csv": HEADER + ROW.format(samples="1,2"),
        },
    )
    splits = {split.name: split for split in read(tmp_path, "label", OPTIONS)}
    assert splits["test"].texts[0].answer is None
    assert splits["test"].labels == splits["val"].labels == ("ceramic / wood collision",)
    assert any("no labels" in note for note in splits["test"].notes)
    assert any("use 1 of the 44 classes" in note for note in splits["val"].notes)


def test_a_class_with_two_numbers_is_damage(tmp_path: Path) -> None:
    rows = ROW.format(samples="1,2") + ROW.format(samples="1,2").replace("ceramic / wood collision", "zip")
    write(tmp_path, {"EPIC_Sounds_train.csv": HEADER + rows})
    with pytest.raises(DataError, match="line 3: class_id '34' and class 'zip' do not agree"):
        read(tmp_path, None, OPTIONS)


@pytest.mark.real
def test_real_excerpts(tmp_path: Path) -> None:
    place(tmp_path, {
        "epic-sounds/EPIC_Sounds_train.row1_from_readme.csv": "EPIC_Sounds_train.csv",
        "epic-sounds/EPIC_Sounds_validation.head200.csv": "EPIC_Sounds_validation.csv",
        "epic-sounds/EPIC_Sounds_recognition_test_timestamps.head100.csv": "EPIC_Sounds_recognition_test_timestamps.csv",
        "epic-sounds/classes_44.csv": "classes_44.csv",
        "epic-sounds/EPIC_Sounds_detection_test_videos.csv": "EPIC_Sounds_detection_test_videos.csv",
        "epic-sounds/sound_events_not_categorised.head50.csv": "sound_events_not_categorised.csv",
    })  # fmt: skip
    splits = {split.name: split for split in read(tmp_path, None, OPTIONS)}
    assert {name: len(split.texts) for name, split in splits.items()} == {"train": 1, "val": 200, "test": 100}
    labels = splits["val"].labels
    assert (len(labels), labels[0], labels[34], labels[43]) == (44, "metal-only collision", "ceramic / wood collision", "drink / eat")
    assert {text.answer for text in splits["val"].texts} <= set(labels)
    rows = [line.split(",") for line in (tmp_path / "EPIC_Sounds_validation.csv").read_text().splitlines()[1:]]
    assert Counter(text.clip.video for text in splits["val"].texts) == Counter(row[2] for row in rows)
    # stamps and samples (24 kHz) of this release agree, which checks the reading of the stamps
    for text, row in zip(splits["val"].texts, rows, strict=True):
        assert text.clip.start_s == pytest.approx(int(row[5]) / 24000, abs=1e-3)
        assert text.clip.end_s == pytest.approx(int(row[6]) / 24000, abs=1e-3)
    assert all(text.answer is None for text in splits["test"].texts)
