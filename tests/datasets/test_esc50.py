"""ESC-50 and ESC-10 as they are published, and sets of sound alone through `prepare`."""

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from mirasol_cli.datasets.esc50 import candidates, read
from mirasol_cli.datasets.example import LABEL_PROMPT, ClipSpan, DatasetOptions, Split
from mirasol_cli.datasets.resolver import VideoIndex
from mirasol_cli.errors import DataError, TooManyFailures
from mirasol_cli.shards.reader import ShardFolder
from tests.datasets.excerpts import write
from tests.paths import SHARED
from tests.stand_ins import prepared

OPTIONS = DatasetOptions()
HEADER = "filename,fold,target,category,esc10,src_file,take\n"
TABLE = HEADER + (
    "1-100032-A-0.wav,1,0,dog,True,100032,A\n1-17367-A-10.wav,1,10,rain,True,17367,A\n"
    "2-5000-B-11.wav,2,11,sea_waves,True,5000,B\n5-9032-A-22.wav,5,22,clapping,False,9032,A\n"
)
ESC10 = SHARED / "benchmarks" / "esc10" if SHARED else Path()


def by_split(splits: list[Split]) -> dict[tuple[str, str], Split]:
    return {(split.task, split.name): split for split in splits}


def tone(path: Path, seconds: float = 1.0, *, loudness: float = 0.3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        track = loudness * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 16000)) / 16000)
        file.writeframes((track * 32767).astype("<i2").tobytes())
    return path


def test_the_table_of_esc50_and_the_ten_classes_in_it(tmp_path: Path) -> None:
    splits = by_split(read(write(tmp_path, {"meta/esc50.csv": TABLE}), None, OPTIONS))
    assert list(splits) == [("label", "fold1"), ("label", "fold2"), ("label", "fold5"), ("esc10", "fold1"), ("esc10", "fold2")]
    first = splits["label", "fold1"].texts[0]
    assert (first.id, first.clip, first.question, first.answer) == ("1-100032-A-0", ClipSpan(video="1-100032-A-0.wav"), LABEL_PROMPT, "dog")
    assert splits["label", "fold2"].labels == ("clapping", "dog", "rain", "sea waves")
    assert splits["esc10", "fold2"].labels == ("dog", "rain", "sea waves")
    assert splits["esc10", "fold1"].clips == splits["label", "fold1"].clips
    assert "4 clips for the task 'label'; published are 2000" in splits["label", "fold1"].notes


def test_class_folders_of_esc10(tmp_path: Path) -> None:
    names = ["001 - Dog bark/1-100032-A.ogg", "001 - Dog bark/2-114280-B.ogg", "10 - fire crackling/2-7-A-12.wav"]
    write(
        tmp_path / "root",
        dict.fromkeys([*names, "README.txt", "001 - Dog bark/6-1-A.ogg", "other/1-1-A.ogg", "001 - Dog bark/1-2-A.txt"], "x"),
    )
    splits = by_split(read(tmp_path / "root", None, OPTIONS))
    assert list(splits) == [("esc10", "fold1"), ("esc10", "fold2")]
    assert [(text.id, text.clip.video, text.answer) for split in splits.values() for text in split.texts] == [
        ("1-100032-A", names[0], "dog bark"), ("2-114280-B", names[1], "dog bark"), ("2-7-A-12", names[2], "fire crackling"),
    ]  # fmt: skip
    videos = VideoIndex(tmp_path / "root", audio=True)
    assert videos.find(candidates(splits["esc10", "fold2"].clips[1])) == tmp_path / "root" / names[2]


def test_a_file_in_another_format_is_found(tmp_path: Path) -> None:
    write(tmp_path, {"audio/1-100032-A-0.flac": "x"})
    assert VideoIndex(tmp_path, audio=True).find(candidates(ClipSpan(video="1-100032-A-0.wav"))) == tmp_path / "audio/1-100032-A-0.flac"


@pytest.mark.parametrize("row", ["2-100032-A-0.wav,1,0,dog,True,100032,A", "dog.wav,1,0,dog,True,1,A", "7-1-A-0.wav,7,0,dog,True,1,A"])
def test_a_fold_that_is_not_that_of_the_name_is_refused(row: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"esc50.csv' line 3: fold '\d' and file name '.*' do not agree"):
        read(write(tmp_path, {"esc50.csv": HEADER + "1-1-A-0.wav,1,0,dog,True,1,A\n" + row}), None, OPTIONS)


def test_a_set_without_video_is_prepared_as_it_is(tmp_path: Path) -> None:
    for number in range(1, 6):
        tone(tmp_path / "root/audio" / f"{number}-{number}-A-0.wav")
    rows = "".join(f"{number}-{number}-A-0.wav,{number},0,dog,True,{number},A\n" for number in range(1, 6))
    write(tmp_path / "root", {"meta/esc50.csv": HEADER + rows})
    summary, shards = prepared("esc50", tmp_path / "root", tmp_path / "out", overrides=["clip.audio.hop_length=160"])
    assert {name: (found["kept"], found["audio"]["audible"], found["without_video"]) for name, found in summary.items()} == {
        f"fold{number}": (1, 1, 1) for number in range(1, 6)
    }
    assert [text["answer"] for text in shards.split("fold3").texts("label")] == ["dog"]
    assert (tmp_path / "out/fold3/incomplete.jsonl").read_text() == ""  # nothing is missing of a clip that never had a picture


def test_damaged_files_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "root/001 - Dog bark"
    for number in range(4):
        tone(root / f"1-{number}-A.wav")
    (root / "1-1-A.wav").write_bytes(b"")
    (root / "1-2-A.wav").write_text("<html>not found</html>")
    (root / "1-3-A.wav").write_bytes((root / "1-3-A.wav").read_bytes()[:44])  # a header and no sound
    with pytest.raises(TooManyFailures, match="3 of 4 clips failed") as caught:
        prepared("esc50", tmp_path / "root", tmp_path / "out")
    found = caught.value.summary["splits"]["fold1"]
    assert (found["kept"], found["failed"]) == (1, 3)
    assert set(found["reasons"]) == {"empty file", "not a media file", "neither a frame nor audio can be read"}


def test_a_manifest_that_names_sound_files_needs_no_flag(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    manifest = write(tmp_path, {"my.jsonl": '{"video": "a.wav", "question": "what?", "answer": "a tone"}'}) / "my.jsonl"
    summary, _ = prepared(str(manifest), tmp_path, tmp_path / "out")
    assert (summary["train"]["kept"], summary["train"]["audio"]["audible"]) == (1, 1)


@pytest.mark.real
def test_the_400_clips_of_esc10() -> None:
    splits = read(ESC10, "esc10", OPTIONS)
    assert [(split.name, len(split.texts)) for split in splits] == [(f"fold{fold}", 80) for fold in range(1, 6)]
    for split in splits:
        assert len(split.labels) == 10
        assert {label: sum(text.answer == label for text in split.texts) for label in split.labels} == dict.fromkeys(split.labels, 8)
        assert split.notes == ()
    # Clips of one recording are in one fold.
    folds: dict[str, set[str]] = {}
    for split in splits:
        for text in split.texts:
            folds.setdefault(text.id.split("-")[1], set()).add(split.name)
    assert all(len(found) == 1 for found in folds.values())


@pytest.mark.real
def test_the_400_clips_with_damaged_ones_among_them(tmp_path: Path) -> None:
    """Four cannot be read, one is not there, one is cut short, one has a hole: 395 are kept, and every other one is named with why."""
    root = tmp_path / "root"
    for path in ESC10.glob("0*/*.ogg"):
        copy = root / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    files = sorted(root.glob("*/*.ogg"))
    empty, page, header, garbage, gone, cut, holed = (files[number] for number in (3, 50, 90, 120, 200, 250, 300))
    content = {path: path.read_bytes() for path in (header, cut, holed)}
    for path in (empty, page, header, garbage, gone, cut, holed):
        path.unlink()
    empty.write_bytes(b"")
    page.write_text("<html>404 not found</html>")
    header.write_bytes(content[header][:1000])
    garbage.write_bytes(np.random.default_rng(0).bytes(20_000))
    cut.write_bytes(content[cut][: len(content[cut]) // 2])
    third = len(content[holed]) // 3
    holed.write_bytes(content[holed][:third] + bytes(2000) + content[holed][third + 2000 :])
    with pytest.raises(TooManyFailures, match="4 of 399 clips failed") as caught:
        prepared("esc50", root, tmp_path / "out", max_failed=0.5)
    splits = caught.value.summary["splits"]
    assert sum(found["kept"] for found in splits.values()) == 395
    failures = [json.loads(line) for name in splits for line in (tmp_path / "out" / name / "failures.jsonl").read_text().splitlines()]
    assert {failure["video"] for failure in failures} == {str(path.relative_to(root)) for path in (empty, page, header, garbage)}
    assert all(failure["reason"] and failure["hint"] for failure in failures)
    for path in (cut, holed):
        split = ShardFolder(tmp_path / "out").split(f"fold{path.name[0]}")
        (clip,) = (number for number, row in enumerate(split.clips) if row["video"] == str(path.relative_to(root)))
        assert float(split.media(clip)["mel_valid"].float().mean()) > 0.3
    again = prepared("esc50", root, tmp_path / "out", max_failed=2)[0]
    assert {name: found["kept"] for name, found in again.items()} == {name: found["kept"] for name, found in splits.items()}


@pytest.mark.real
def test_real_clips_are_heard(tmp_path: Path) -> None:
    for path in sorted(ESC10.glob("00*/5-*-A.ogg"))[::20]:
        (tmp_path / "root" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "root" / path.parent.name)
    summary, shards = prepared("esc50", tmp_path / "root", tmp_path / "out")
    assert summary["fold5"]["kept"] == summary["fold5"]["audio"]["audible"] >= 3
    assert float(shards.split("fold5").media(0)["span"][1]) == pytest.approx(5.0, abs=0.01)
