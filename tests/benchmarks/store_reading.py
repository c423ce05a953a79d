"""Clips a second that a training process reads and makes batches of, by the number of readers, from a warm, a cold and a slow store.

    python tests/benchmarks/store_reading.py [--folder DIR] [--delay-ms 5]

Clips of 32 frames at 224 pixels (1.9 MB), 8 to a batch, in the order of training, through all that a run does but the model: reading,
checksums, texts, augmentation. Warm: the shards are in the page cache. Cold: the kernel is asked to forget them before each figure.
Slow: warm, and every read waits so many milliseconds first, as on a shared store under load. `data.readers=1` is one thread for all.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, Report, arguments, short
from ten_million import REAL, SMALL

READERS = (1, 4, 16)
SHARE = 8


def make(folder: Path, clips: int, clip: str) -> None:
    from mirasol_cli.datasets.example import ClipSpan
    from tests.shards.samples import made_up_sample, write_finished_split

    geometry = recipe_of(folder, clip, 1).clip
    samples = [made_up_sample(str(number), geometry) for number in range(8)]
    spans = [ClipSpan(video=f"{number}.mp4") for number in range(clips)]
    texts = [
        {"id": str(n), "clip": n, "question": "what is it?", "answer": "a dog", "references": [], "choices": [], "type": "", "context": ""}
        for n in range(clips)
    ]
    write_finished_split(
        folder / "train", spans, lambda draft, position, number: draft.add(position, [samples[number % 8]]), texts, geometry=geometry
    )


def recipe_of(folder: Path, clip: str, readers: int) -> Any:
    from mirasol_cli.config.reader import parse_recipe

    return parse_recipe(
        f'schema: 1\nname: reading\ndata: {{dataset: made, shards: "{folder}", readers: {readers}}}\nclip: {clip}\n'
        f"model: {{preset: demo}}\ntrain: {{global_batch_size: {SHARE}, augment: {{flip: 0.5, mask_bins: 24}}}}\n",
        "reading.yaml",
    )


def clips_per_s(folder: Path, clip: str, readers: int, steps: int) -> float:
    import torch

    from mirasol_cli.batches.sources import open_sources
    from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary
    from mirasol_cli.training.data import TrainingData

    recipe = recipe_of(folder, clip, readers)
    vocabulary = Vocabulary(train_vocabulary(["what is it? a dog context: question: answer:"] * 20, 300))
    data = TrainingData(recipe, open_sources(recipe), vocabulary)
    start = time.perf_counter()
    with data.ahead(range(steps), range(SHARE), torch.device("cpu")) as ahead:
        for _ in ahead:
            pass
    return steps * SHARE / (time.perf_counter() - start)


def forget(folder: Path) -> None:
    """Ask the kernel to drop the shards from its cache."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class SlowReads:
    """Every read of a file by place waits first."""

    def __init__(self, seconds: float):
        self._seconds, self._reads = seconds, {name: getattr(os, name) for name in ("pread", "preadv")}

    def __enter__(self) -> None:
        for name, read in self._reads.items():
            setattr(os, name, lambda *args, read=read: (time.sleep(self._seconds), read(*args))[1])

    def __exit__(self, *exception: object) -> None:
        for name, read in self._reads.items():
            setattr(os, name, read)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--folder", type=Path, help="where the shards are made, and stay; default: a temporary folder")
    parser.add_argument("--clips", type=int, default=548)
    parser.add_argument("--delay-ms", type=float, default=5.0)
    args = parser.parse_args()
    clip, clips = (SMALL, 32) if args.smoke else (REAL, args.clips)
    rounds = 1 if args.smoke else args.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        if not (folder / "train" / "index.json").is_file():
            make(folder, clips, clip)
        steps = clips // SHARE
        found: dict[str, dict[int, float]] = {"warm": {}, "cold": {}, "slow": {}}
        for readers in READERS:
            for _ in range(rounds):
                best = found["warm"].get(readers, 0.0)
                found["warm"][readers] = max(best, clips_per_s(folder, clip, readers, steps))
                forget(folder)
                best = found["cold"].get(readers, 0.0)
                found["cold"][readers] = max(best, clips_per_s(folder, clip, readers, steps))
            with SlowReads(args.delay_ms / 1e3):
                found["slow"][readers] = clips_per_s(folder, clip, readers, max(2, min(steps, 4 * readers)))
    report = Report("store_reading", "Reading for training: clips a second by `data.readers`", smoke=args.smoke)
    for store, rates in found.items():
        report.row(store=store, delay_ms=args.delay_ms if store == "slow" else 0, **{f"readers_{n}": rate for n, rate in rates.items()})
    report.table(
        ["store", *(f"{n} reader{'s' * (n > 1)}" for n in READERS)],
        [
            [store if store != "slow" else f"slow: {short(args.delay_ms)} ms a read", *(rates[n] for n in READERS)]
            for store, rates in found.items()
        ],
    )
    report.text(f"The best of {rounds} rounds, on whatever else the machine was doing (slow: one round). A clip is {len(fields())} reads.")
    report.write()


def fields() -> dict[str, Any]:
    from mirasol_cli.geometry import ClipGeometry
    from mirasol_cli.sample import field_shapes

    return field_shapes(ClipGeometry(frames=32, chunks=4))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
