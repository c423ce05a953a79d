"""Figures on real recordings with published splits: ESC-10 in its five folds, and spoken digits through a manifest.

    MIRASOL_SHARED=DIR python tests/benchmarks/real.py [--only NAME ...] [--out DIR]
    python tests/benchmarks/real.py --report [--out DIR]

DIR/benchmarks of MIRASOL_SHARED holds `esc10/` (class folders) and `fsdd/recordings/`. Every run is prepared, trained and evaluated by
the commands that a user types, on one thread, one run at a time; results/real.jsonl gets a line when it is done. Called again, it
goes on: what has a line is skipped, a run that was cut goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_report import Estimate, estimate, table
from common import RESULTS, environment
from tests.paths import SHARED

HERE = Path(__file__).resolve().parent
FOLDS = (1, 2, 3, 4, 5)
TUNED_ON = 1
"""The fold on which the recipe was chosen: its own figure is no held-out one."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_SPEAKER = "theo"
OFF = {
    "no time shift": ("train.augment.time_shift=0",),
    "no gain": ("train.augment.gain_db=0",),
    "no mixup": ("train.augment.mixup=0",),
    "no SpecAugment": ("train.augment.mask_bins=0", "train.augment.mask_columns=0"),
}
NO_AUGMENTATION = tuple(word for words in OFF.values() for word in words)


@dataclass(frozen=True)
class Condition:
    """One row of a table: a recipe under overrides, on these splits of its data."""

    name: str
    recipe: str
    splits: tuple[str, ...]
    words: tuple[str, ...] = ()

    def runs(self) -> list[tuple[str, tuple[str, ...]]]:
        """(split to test, overrides) of each run."""
        return [(split, (*(f"data.fold={split[-1]}" for _ in [0] if split.startswith("fold")), *self.words)) for split in self.splits]


def folds(*numbers: int) -> tuple[str, ...]:
    return tuple(f"fold{number}" for number in numbers)


CONDITIONS = (
    Condition("esc10", "esc10", folds(*FOLDS)),
    Condition("digits", str(HERE / "digits.yaml"), ("test",)),
    *(Condition(name, "esc10", folds(1, 2), words) for name, words in OFF.items()),
    Condition("none of them", "esc10", folds(1, 2), NO_AUGMENTATION),
    Condition("digits, a new speaker", str(HERE / "digits.yaml"), ("speaker",), ("data.split=others",)),
)
BY_NAME = {condition.name: condition for condition in CONDITIONS}


class Runner:
    """Where things lie, and one command after the other."""

    def __init__(self, out: Path):
        self.out = out

    def mirasol(self, *words: str) -> float:
        """One command from DIR, on one thread; what it says goes to DIR/log. Returns the seconds of CPU that it took."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(self.out / "log", "a") as log:
            log.write(f"$ mirasol {' '.join(words)}\n")
            log.flush()
            line = [sys.executable, "-m", "mirasol_cli", *words]
            subprocess.run(line, cwd=self.out, stdout=log, stderr=log, check=True, env=environment(OMP_NUM_THREADS="1"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def prepare(self, condition: Condition) -> str:
        """The shards of a condition's data, of which what is there stays; their folder."""
        assert SHARED is not None, "MIRASOL_SHARED names no folder with the recordings"
        shards = self.out / "shards" / ("esc10" if condition.recipe == "esc10" else "digits")
        options = ["--out", str(shards), "--recipe", condition.recipe, "--workers", "1"]
        if condition.recipe == "esc10":
            self.mirasol("prepare", "esc50", "--root", str(SHARED / "benchmarks" / "esc10"), *options)
        else:
            for name in ("digits", "speakers"):
                write_manifest(self.out / f"{name}.jsonl", SHARED / "benchmarks" / "fsdd" / "recordings", by_speaker=name == "speakers")
            name = "speakers" if condition.splits == ("speaker",) else "digits"
            options[1] = str(shards := self.out / "shards" / name)
            self.mirasol("prepare", f"{name}.jsonl", "--root", str(SHARED / "benchmarks" / "fsdd" / "recordings"), *options)
        return str(shards)

    def perform(self, condition: Condition, split: str, words: Sequence[str]) -> dict[str, Any]:
        """Train and evaluate; the line of real.jsonl."""
        shards = self.prepare(condition)
        run = self.out / "runs" / f"{condition.name}-{split}".replace(" ", "-").replace(",", "")
        resumed = (run / "checkpoints").is_dir()
        options = ["--threads", "1", "--device", "cpu"]
        seconds = self.mirasol("finetune", condition.recipe, "--resume", *options, f"run.dir={run}", f"data.shards={shards}", *words)
        self.mirasol("eval", str(run), "--split", split, *options, "--control", "no-audio")
        results = json.loads((run / "eval" / split / "results.json").read_text())
        return {
            "condition": condition.name, "split": split, "recipe": Path(condition.recipe).name, "words": list(words),
            "seed": 0, "cpu_s": None if resumed else round(seconds, 1), "n": results["n"],
            "exact_match": results["metrics"]["exact_match"], "valid_class": results["metrics"].get("valid_class"),
            "no_audio": results["controls"]["no-audio"]["exact_match"],
        }  # fmt: skip


def write_manifest(path: Path, recordings: Path, *, by_speaker: bool) -> None:
    """The recordings `DIGIT_SPEAKER_INDEX.wav`: index 0 to 4 of every digit and speaker is the official test; or one speaker is."""
    lines = []
    for file in sorted(recordings.glob("*.wav")):
        digit, speaker, index = file.stem.split("_")
        if by_speaker:
            split = "speaker" if speaker == HELD_OUT_SPEAKER else "others"
        else:
            split = "test" if int(index) < 5 else "train"
        row = {
            "video": file.name,
            "question": "which digit is it?",
            "answer": DIGITS[int(digit)],
            "type": speaker,
            "split": split,
            "id": file.stem,
        }
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


# ------------------------------------------------------------------------------------------------ the report


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The tables of results/real.md that are made of figures."""
    return "\n\n".join([esc10_table(rows), augmentation_table(rows), digits_table(rows)]) + "\n"


def of(rows: Sequence[dict[str, Any]], condition: str) -> dict[str, dict[str, Any]]:
    return {row["split"]: row for row in rows if row["condition"] == condition}


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval(found: Estimate | None, scale: float = 100) -> str:
    if found is None or found.low is None or found.high is None:
        return "-"
    return f"{scale * found.mean:.1f} [{scale * found.low:.1f}, {scale * found.high:.1f}]"


def esc10_table(rows: Sequence[dict[str, Any]]) -> str:
    found = of(rows, "esc10")
    names = [split for split in folds(*FOLDS) if split in found]
    lines = [
        [
            "accuracy, %",
            *(percent(found[name]["exact_match"]) for name in names),
            interval(estimate([found[n]["exact_match"] for n in names])),
        ],
        [
            "without audio, %",
            *(percent(found[name]["no_audio"]) for name in names),
            interval(estimate([found[n]["no_audio"] for n in names])),
        ],
        ["CPU seconds of training", *(str(found[name]["cpu_s"] or "-") for name in names), ""],
    ]
    return table(["", *names, "mean [95 %]"], lines)


def augmentation_table(rows: Sequence[dict[str, Any]]) -> str:
    full, lines = of(rows, "esc10"), []
    for name in ("esc10", *OFF, "none of them"):
        found = of(rows, name)
        both = [split for split in folds(1, 2) if split in found]
        if len(both) < 2:
            continue
        mean = statistics.mean(found[split]["exact_match"] for split in both)
        differences = [100 * (found[split]["exact_match"] - full[split]["exact_match"]) for split in both]
        shown = "" if name == "esc10" else f"{statistics.mean(differences):+.1f} ({', '.join(f'{d:+.1f}' for d in differences)})"
        lines.append(
            ["all of them" if name == "esc10" else name, *(percent(found[split]["exact_match"]) for split in both), percent(mean), shown]
        )
    return table(["augmentation", "fold1", "fold2", "mean", "difference in points (by fold)"], lines)


def digits_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name, what in (
        ("digits", "official split: index 0 to 4 of each digit and speaker"),
        ("digits, a new speaker", f"one speaker held out ({HELD_OUT_SPEAKER})"),
    ):
        for row in of(rows, name).values():
            lines.append([what, str(row["n"]), percent(row["exact_match"]), percent(row["no_audio"]), str(row["cpu_s"] or "-")])
    return table(["test", "clips", "accuracy, %", "without audio, %", "CPU seconds of training"], lines)


# ------------------------------------------------------------------------------------------------ the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(BY_NAME), help="these rows of the tables")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), metavar="DIR")
    parser.add_argument("--results", type=Path, default=RESULTS / "real.jsonl", metavar="FILE", help="where the lines go")
    parser.add_argument("--report", action="store_true", help="print the tables, and run nothing")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.is_file() else []
    if args.report:
        print(report(rows), end="")
        return
    runner = Runner(args.out.resolve())
    runner.out.mkdir(parents=True, exist_ok=True)
    done = {(row["condition"], row["split"]) for row in rows}
    for condition in [BY_NAME[name] for name in args.only or BY_NAME]:
        for split, words in condition.runs():
            if (condition.name, split) in done:
                continue
            row = runner.perform(condition, split, words)
            with open(args.results, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{time.strftime('%H:%M:%S')} {condition.name}, {split}: {row['exact_match']:.1%} in {row['cpu_s']} CPU seconds", flush=True
            )


if __name__ == "__main__":
    main()
