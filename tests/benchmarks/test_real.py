"""The tables of the figures on real recordings, from lines as a run writes them, and the manifest of the digits."""

import json
from pathlib import Path

import pytest
import torch

import real

FULL = [0.8, 0.85, 0.9, 0.85, 0.85]


def row(condition: str, split: str, exact_match: float, *, again: bool = False) -> dict:
    controls = {"no-audio": 0.1, "swap-media": 0.125, "shuffle-chunks": 0.8}
    return {
        "condition": condition, "split": split, "again": again, "n": 80, "exact_match": exact_match, "controls": controls, "cpu_s": 150.0
    }  # fmt: skip


def test_the_mean_of_the_folds_has_an_interval_and_the_folds_that_chose_nothing_a_mean_of_their_own() -> None:
    rows = [row("esc10", f"fold{k + 1}", value) for k, value in enumerate(FULL)]
    rows += [row("esc10", f"fold{k + 1}", value, again=True) for k, value in enumerate(reversed(FULL))]
    rows += [row("after the digits", f"fold{k}", 0.5) for k in (1, 4)]
    text = real.report(rows)
    # mean 85, standard deviation 3.54 over five folds, t = 2.776: half of the interval is 4.4 points; folds 1, 4 and 5 chose nothing
    assert "| from nothing | 80.0 | 85.0 | 90.0 | 85.0 | 85.0 | 85.0 [80.6, 89.4] | 83.3 |" in text
    assert "| the same, run again | 85.0 | 85.0 | 90.0 | 85.0 | 80.0 | 85.0 [80.6, 89.4] | 83.3 |" in text
    assert "| control: shuffle-chunks | 80.0 |" in text
    assert "| after training on the digits | 50.0 | - | - | 50.0 | - | - | 50.0 |" in text


def test_differences_are_paired_by_fold() -> None:
    first, second = (f"fold{fold}" for fold in real.TUNED_ON)
    rows = [row("all of them", first, 0.8), row("all of them", second, 0.9)]
    rows += [row("no mixup", first, 0.75), row("no mixup", second, 0.9), row("no gain", first, 0.5)]
    rows += [row("digits", "test", 0.97), row("digits", "test", 0.98, again=True)]
    text = real.report(rows)
    assert "| no mixup | 75.0 | 90.0 | 82.5 | -2.5 (-5.0, +0.0) |" in text
    assert "no gain" not in text  # on one fold only
    assert "| official split: index 0 to 4 of each digit and speaker | 80 | 97.0 | 98.0 | 10.0 | 12.5 | 150.0 |" in text


def test_every_fold_is_a_run_of_its_own() -> None:
    assert real.BY_NAME["esc10"].runs()[2] == ("fold3", ("data.fold=3",))
    expected = [(f"fold{fold}", (f"data.fold={fold}", "train.steps=800", "train.augment.gain_db=0")) for fold in real.TUNED_ON]
    assert real.BY_NAME["no gain"].runs() == expected


class TwoSounds:
    """Shards whose clips are hiss or hum, with padding after the sound that must not be listened to."""

    def __init__(self, path: Path):
        self.path = path

    def split(self, name: str) -> "TwoSounds":
        return TwoSounds(self.path / name)

    def texts(self, task: str) -> list[dict]:
        assert task == "esc10"
        return [{"answer": ("hiss", "hum")[clip % 2], "clip": clip} for clip in range(6)]

    def media(self, clip: int) -> dict[str, torch.Tensor]:
        mel = torch.randn(2, 24, 16) * 0.1 + (torch.linspace(-1, 1, 24)[:, None] * (-1) ** clip)
        valid = (torch.arange(16) < 10).expand(2, 16).to(torch.uint8)
        return {"mel": torch.where(valid[:, None] > 0, mel, 100 * torch.randn(mel.shape)).half(), "mel_valid": valid}


def test_the_forest_is_trained_on_the_other_folds_and_hears_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(real, "ShardFolder", TwoSounds)
    lines = real.forest(Path("shards"))
    assert [(line["split"], line["n"], line["exact_match"]) for line in lines] == [(f"fold{fold}", 6, 1.0) for fold in range(1, 6)]


@pytest.mark.parametrize(("by_speaker", "splits"), [(False, ["test", "train", "test"]), (True, ["others", "others", "speaker"])])
def test_the_manifest_of_the_digits(by_speaker: bool, splits: list[str], tmp_path: Path) -> None:
    for name in ("0_george_4.wav", "7_george_5.wav", f"9_{real.HELD_OUT_SPEAKER}_0.wav"):
        (tmp_path / name).touch()
    real.write_manifest(tmp_path / "digits.jsonl", tmp_path, by_speaker=by_speaker)
    rows = [json.loads(line) for line in (tmp_path / "digits.jsonl").read_text().splitlines()]
    assert [(line["answer"], line["split"]) for line in rows] == list(zip(("zero", "seven", "nine"), splits, strict=True))
