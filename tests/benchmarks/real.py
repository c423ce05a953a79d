"""Figures on real recordings with published splits: ESC-10 in its five folds, and spoken digits through a manifest.

    MIRASOL_SHARED=DIR python tests/benchmarks/real.py [--only NAME ...] [--splits SPLIT ...] [--again] [--out DIR]
    python tests/benchmarks/real.py --report

DIR/benchmarks of MIRASOL_SHARED holds `esc10/` (class folders) and `fsdd/recordings/`. Every run is prepared, trained and evaluated by
the commands that a user types, on one thread, one run at a time; results/real.jsonl gets a line when it is done. Called again, it
goes on: what has a line is skipped, a run that was cut goes on from its checkpoint. `--again` runs each command a second time.
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
from mirasol_cli.shards.reader import ShardFolder
from tests.paths import SHARED

HERE = Path(__file__).resolve().parent
FOLDS = (1, 2, 3, 4, 5)
TUNED_ON = (2, 3)
"""The folds on which the recipe was chosen: their figures are no held-out ones."""
FOREST = "a random forest on MFCC"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_SPEAKER = "theo"
OFF = {
    "no time shift": ("train.augment.time_shift=0",),
    "no gain": ("train.augment.gain_db=0",),
    "no mixup": ("train.augment.mixup=0",),
    "no SpecAugment": ("train.augment.mask_bins=0", "train.augment.mask_columns=0"),
}
OFF["none of them"] = tuple(word for words in OFF.values() for word in words)
ALL_OF_THEM = "all of them"
SHORTER = ("train.steps=800",)
"""What each augmentation gives is measured at half of the recipe's steps."""


@dataclass(frozen=True)
class Condition:
    """One row of a table: a recipe under overrides, on these splits of its data."""

    name: str
    recipe: str
    splits: tuple[str, ...]
    words: tuple[str, ...] = ()
    pretrained: bool = False  # on the digits

    @property
    def controls(self) -> tuple[str, ...]:
        return ("no-audio", "swap-media", *(["shuffle-chunks"] if self.recipe == "esc10" else []))  # a digit is one chunk

    def runs(self) -> list[tuple[str, tuple[str, ...]]]:
        """(split to test, overrides) of each run."""
        return [(split, (*(f"data.fold={split[-1]}" for _ in [0] if split.startswith("fold")), *self.words)) for split in self.splits]


def folds(*numbers: int) -> tuple[str, ...]:
    return tuple(f"fold{number}" for number in numbers)


CONDITIONS = (
    Condition("esc10", "esc10", folds(*FOLDS)),
    Condition("digits", str(HERE / "digits.yaml"), ("test",)),
    Condition("digits, a new speaker", str(HERE / "digits.yaml"), ("speaker",), ("data.split=others",)),
    *(Condition(name, "esc10", folds(*TUNED_ON), (*SHORTER, *words)) for name, words in {ALL_OF_THEM: (), **OFF}.items()),
    Condition("after the digits", "esc10", folds(*FOLDS), pretrained=True),
)
BY_NAME = {condition.name: condition for condition in CONDITIONS}


ESC10_SHARDS = "shards/esc10"
DIGITS_IN_ESC10 = ("clip.frames=4", "clip.chunks=1")
"""A digit in ESC-10's geometry: one chunk of a second, of which the recording is a part."""

ON_THE_DIGITS = ("loss.latent=0", "train.steps=1000", "train.global_batch_size=32", "train.augment.mixup=0")


class Runner:
    """Where things lie, and one command after the other."""

    def __init__(self, out: Path, *, again: bool = False):
        self.out, self.again = out, again

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
        if condition.recipe == "esc10":
            root = str(SHARED / "benchmarks" / "esc10")
            self.mirasol("prepare", "esc50", "--root", root, "--out", ESC10_SHARDS, "--recipe", "esc10", "--workers", "1")
            return ESC10_SHARDS
        name = "speakers" if condition.splits == ("speaker",) else "digits"
        return self.prepare_digits(name, f"shards/{name}", "--recipe", condition.recipe)

    def prepare_digits(self, name: str, shards: str, *options: str) -> str:
        assert SHARED is not None
        recordings = SHARED / "benchmarks" / "fsdd" / "recordings"
        write_manifest(self.out / f"{name}.jsonl", recordings, by_speaker=name == "speakers")
        self.mirasol("prepare", f"{name}.jsonl", "--root", str(recordings), "--out", shards, "--workers", "1", *options)
        return shards

    def pretrain(self) -> str:
        """The run of ESC-10's model on the digits' training split, with the vocabulary of ESC-10; trained once."""
        run = "runs/on-the-digits"
        if not (self.out / run / "checkpoints" / "latest").exists():
            shards = self.prepare_digits("digits", "shards/digits-in-esc10", "--recipe", "esc10", *DIGITS_IN_ESC10)
            (tokenizer,) = sorted((self.out / "runs/esc10-fold1/checkpoints").glob("*/tokenizer.model"))[-1:]
            words = [f"run.dir={run}", "data.dataset=digits", "data.task=qa", "data.fold=null", f"data.shards={shards}"]
            words += [*DIGITS_IN_ESC10, f"init.tokenizer={tokenizer}", *ON_THE_DIGITS]
            self.mirasol("pretrain", "esc10", "--threads", "1", "--device", "cpu", *words)
        return run

    def perform(self, condition: Condition, split: str, words: Sequence[str]) -> dict[str, Any]:
        """Train and evaluate; the line of real.jsonl."""
        shards = self.prepare(condition)
        name = f"{condition.name}-{split}{'-again' if self.again else ''}"
        run = Path("runs") / name.replace(" ", "-").replace(",", "")
        resumed = (self.out / run / "checkpoints").is_dir()
        if condition.pretrained:
            words = [*words, f"init.checkpoint={self.pretrain()}"]
        options = ["--threads", "1", "--device", "cpu"]
        seconds = self.mirasol("finetune", condition.recipe, "--resume", *options, f"run.dir={run}", f"data.shards={shards}", *words)
        controls = [word for control in condition.controls for word in ("--control", control)]
        self.mirasol("eval", str(run), "--split", split, *options, *controls)
        results = json.loads((self.out / run / "eval" / split / "results.json").read_text())
        return {
            "condition": condition.name, "split": split, "again": self.again, "recipe": Path(condition.recipe).name, "words": list(words),
            "seed": 0, "cpu_s": None if resumed else round(seconds, 1), "n": results["n"],
            "exact_match": results["metrics"]["exact_match"], "valid_class": results["metrics"].get("valid_class"),
            "controls": {control: found["exact_match"] for control, found in results["controls"].items()},
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


def forest(shards: Path) -> list[dict[str, Any]]:
    """What needs no network: a random forest on the mean and spread of 20 MFCC over the clip, on the same spectrograms and folds."""
    import numpy as np
    from scipy.fft import dct
    from sklearn.ensemble import RandomForestClassifier

    features, labels = {}, {}
    for split in folds(*FOLDS):
        stored = ShardFolder(shards).split(split)
        texts = stored.texts("esc10")
        labels[split] = [text["answer"] for text in texts]
        rows = []
        for text in texts:
            media = stored.media(text["clip"])
            heard_TS = media["mel_valid"].numpy().astype(bool)
            mel_CZ = media["mel"].float().numpy().transpose(0, 2, 1)[heard_TS]
            mfcc = dct(mel_CZ, norm="ortho")[:, :20]
            rows.append(np.concatenate([mfcc.mean(0), mfcc.std(0)]))
        features[split] = np.stack(rows)
    lines = []
    for split in features:
        others = [name for name in features if name != split]
        model = RandomForestClassifier(500, random_state=0, n_jobs=1)
        model.fit(np.concatenate([features[name] for name in others]), np.concatenate([labels[name] for name in others]))
        right = model.predict(features[split]) == np.array(labels[split])
        lines.append({"condition": FOREST, "split": split, "seed": 0, "n": len(right), "exact_match": float(right.mean())})
    return lines


# ------------------------------------------------------------------------------------------------ the report


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The tables of results/real.md that are made of figures."""
    return "\n\n".join([esc10_table(rows), augmentation_table(rows), digits_table(rows)]) + "\n"


def of(rows: Sequence[dict[str, Any]], condition: str, *, again: bool = False) -> dict[str, dict[str, Any]]:
    return {row["split"]: row for row in rows if row["condition"] == condition and row.get("again", False) == again}


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval(found: Estimate | None) -> str:
    if found is None or found.low is None or found.high is None:
        return "-"
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def esc10_table(rows: Sequence[dict[str, Any]]) -> str:
    full = of(rows, "esc10")
    shown = {
        "from nothing": {split: row["exact_match"] for split, row in full.items()},
        "the same, run again": {split: row["exact_match"] for split, row in of(rows, "esc10", again=True).items()},
        **{f"control: {name}": {split: row["controls"][name] for split, row in full.items()} for name in BY_NAME["esc10"].controls},
        "after training on the digits": {split: row["exact_match"] for split, row in of(rows, "after the digits").items()},
        FOREST: {split: row["exact_match"] for split, row in of(rows, FOREST).items()},
    }
    names, lines = folds(*FOLDS), []
    for what, found in shown.items():
        if not found:
            continue
        unseen = [found[name] for name in names if name in found and name not in folds(*TUNED_ON)]
        values = [percent(found[name]) if name in found else "-" for name in names]
        whole = interval(estimate(list(found.values()))) if len(found) == len(names) else "-"
        lines.append([what, *values, whole, percent(statistics.mean(unseen)) if unseen else "-"])
    lines.append(["CPU seconds of training", *(str(full[name]["cpu_s"] or "-") if name in full else "-" for name in names), "", ""])
    unseen_folds = ", ".join(str(fold) for fold in FOLDS if fold not in TUNED_ON)
    return table(["accuracy, %", *names, "mean [95 %]", f"mean of folds {unseen_folds}"], lines)


def augmentation_table(rows: Sequence[dict[str, Any]]) -> str:
    full, both, lines = of(rows, ALL_OF_THEM), folds(*TUNED_ON), []
    for name in (ALL_OF_THEM, *OFF):
        found = of(rows, name)
        if not (found.keys() >= set(both) <= full.keys()):
            continue
        values = [found[split]["exact_match"] for split in both]
        differences = [100 * (found[split]["exact_match"] - full[split]["exact_match"]) for split in both]
        shown = "" if name == ALL_OF_THEM else f"{statistics.mean(differences):+.1f} ({', '.join(f'{d:+.1f}' for d in differences)})"
        lines.append([name, *(percent(value) for value in values), percent(statistics.mean(values)), shown])
    return table(["augmentation", *both, "mean", "difference in points (by fold)"], lines)


def digits_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name, what in (
        ("digits", "official split: index 0 to 4 of each digit and speaker"),
        ("digits, a new speaker", f"one speaker held out ({HELD_OUT_SPEAKER})"),
    ):
        repeated = of(rows, name, again=True)
        for split, row in of(rows, name).items():
            again = percent(repeated[split]["exact_match"]) if split in repeated else "-"
            controls = [percent(row["controls"][control]) for control in BY_NAME[name].controls]
            lines.append([what, str(row["n"]), percent(row["exact_match"]), again, *controls, str(row["cpu_s"] or "-")])
    heads = ["test", "clips", "accuracy, %", "run again", *(f"control: {name}" for name in BY_NAME["digits"].controls)]
    return table([*heads, "CPU seconds of training"], lines)


# ------------------------------------------------------------------------------------------------ the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*BY_NAME, FOREST], help="these rows of the tables")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="these splits of them (fold1, test, ...)")
    parser.add_argument("--again", action="store_true", help="a second time, into runs of their own")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), metavar="DIR")
    parser.add_argument("--results", type=Path, default=RESULTS / "real.jsonl", metavar="FILE", help="where the lines go")
    parser.add_argument("--report", action="store_true", help="print the tables, and run nothing")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.is_file() else []
    if args.report:
        print(report(rows), end="")
        return

    def write(*lines: dict[str, Any]) -> None:
        with open(args.results, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        for line in lines:
            print(f"{time.strftime('%H:%M:%S')} {line['condition']}, {line['split']}: {line['exact_match']:.1%}", flush=True)

    runner = Runner(args.out.resolve(), again=args.again)
    runner.out.mkdir(parents=True, exist_ok=True)
    done = {(row["condition"], row["split"]) for row in rows if row.get("again", False) == args.again}
    for condition in [condition for condition in CONDITIONS if condition.name in (args.only or BY_NAME)]:
        for split, words in condition.runs():
            if (condition.name, split) not in done and split in (args.splits or condition.splits):
                write(runner.perform(condition, split, words))
    if FOREST in (args.only or [FOREST]) and (FOREST, "fold1") not in done and not args.again:
        write(*forest(Path(runner.out, runner.prepare(BY_NAME["esc10"]))))


if __name__ == "__main__":
    main()
