"""A split of ten million clips with 40-word contexts: what opening it, the first batch after that and a resume take, a process each.

    python tests/benchmarks/ten_million.py --folder DIR [--clips 10000000]

The index, its columns and the texts (about 6 GB) are made as `prepare` makes them, and stay in DIR for a second call; the media are one
shard of noise under the names of all. Every figure is of a fresh process: seconds, and its private memory, which are the pages that
no other process and no file can give it (RssAnon). A second process stands beside the first, as ranks of one machine do, and what is
its own by the kernel's account (Private_Clean + Private_Dirty, mapped pages of columns and libraries among them) is given too. The
files are in the page cache unless `--cold` empties it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common import ROOT, Report, environment, verdict
from mirasol_cli.config.reader import parse_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.geometry import ClipGeometry

CONTEXT_WORDS, CAPTION_WORDS = 40, 12
BATCH, PROCESSES = 1024, 64
"""The global batch of a run on so many GPUs, of which one process here reads its share."""
SMALL = "{frames: 8, chunks: 2, size: 32, tubes: [{kernel: [1, 16, 16], stride: [4, 16, 16]}], audio: {n_mels: 16, columns: 16}}"
REAL = "{frames: 32, chunks: 4, size: 224}"
WORDS = (
    *("a", "man", "plays", "the", "guitar", "on", "stage", "while", "people", "watch", "and", "clap", "along", "with", "music", "in"),
    *("dark", "room", "near", "window", "two", "dogs", "run", "over", "green", "field", "someone", "cuts", "onions", "red", "car"),
    *("engine", "starts", "rain", "falls", "birds", "sing", "trees", "train", "passes", "slowly", "through", "station", "at", "night"),
)


def recipe_of(folder: Path, clip: str) -> Recipe:
    text = f"""
schema: 1
name: ten-million
data: {{dataset: made, task: caption, shards: "{folder}", questions_per_clip: 1}}
clip: {clip}
model: {{preset: demo, text: {{max_context: 512}}}}
train: {{steps: 100000, global_batch_size: {BATCH}}}
"""
    return parse_recipe(text, "ten-million.yaml")


# --------------------------------------------------------------------------------------------------------------- making it


def make(folder: Path, clips: int, geometry: ClipGeometry) -> None:
    """A finished split `folder` of `clips` clips, each with one caption and a context of 40 words."""
    from mirasol_cli.sample import AudioState
    from mirasol_cli.shards.columns import ClipColumns, ClipStatus, write_texts
    from mirasol_cli.shards.index import (
        CLIP_COLUMNS,
        CLIPS,
        INDEX,
        ShardEntry,
        SplitIndex,
        TaskEntry,
        clips_per_shard,
        shard_name,
        text_columns_name,
        texts_name,
    )
    from mirasol_cli.shards.lines import write_lines

    n = clips_per_shard(geometry)
    clips = max(1, clips // n) * n  # whole shards, so that one can stand for all
    folder.mkdir(parents=True, exist_ok=True)
    record = noise_shard(folder, n, geometry)
    shards = clips // n
    first = folder / shard_name(0)
    for number in range(1, shards):
        (folder / shard_name(number)).symlink_to(first.name)
    draw = random.Random(0)
    lines = write_lines(folder / CLIPS, made_clips(clips, draw))
    sha256, text_columns = write_texts(folder / texts_name("caption"), made_texts(clips, draw))
    columns = ClipColumns(
        status=np.full(clips, ClipStatus.KEPT, np.uint8), audio=np.full(clips, AudioState.AUDIBLE, np.uint8),
        seconds=np.full(clips, 10.0), missing=np.zeros(clips, np.float32), short=np.zeros(clips, np.uint8),
        crc32=np.tile(np.array(record.crc32, np.uint32), shards).reshape(-1, 1), offset=lines.offset, line_crc32=lines.crc32,
    )  # fmt: skip
    written = text_columns.write(folder / text_columns_name("caption"))
    SplitIndex(
        split=folder.name, geometry=geometry, views=1, clips_per_shard=n, versions={}, counts={},
        tasks={"caption": TaskEntry(dataset="made", licence="none", texts=clips, sha256=sha256, columns=written)},
        files={CLIPS: lines.sha256, CLIP_COLUMNS: columns.write(folder / CLIP_COLUMNS)},
        shards=[
            ShardEntry(number=k, clips=n, clips_digest=f"{k:016x}", bytes=record.bytes, sha256=record.sha256) for k in range(shards)
        ],
    ).write(folder / INDEX)  # fmt: skip


def noise_shard(folder: Path, clips: int, geometry: ClipGeometry) -> Any:
    from mirasol_cli.datasets.example import ClipSpan
    from mirasol_cli.shards.writer import ShardDraft, ShardSlot
    from tests.shards.samples import made_up_sample

    spans = tuple(ClipSpan(video=f"{number}.mp4") for number in range(clips))
    draft = ShardDraft(ShardSlot(folder=folder, number=0, clips=spans, geometry=geometry, views=1))
    for position in range(clips):
        draft.add(position, [made_up_sample(spans[position % 8].key, geometry) | {"audio_state": np.array(2, np.uint8)}])
    record = draft.write()
    draft.slot.record_path.unlink()
    return record


def made_clips(clips: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(clips):
        video = f"videos/{number // 1000:05d}/{draw.getrandbits(44):011x}.mp4"
        yield {"key": f"{video}@0.000-10.000", "video": video, "start_s": 0.0, "end_s": 10.0}


def made_texts(clips: int, draw: random.Random) -> Iterator[dict[str, Any]]:
    some = [" ".join(draw.choices(WORDS, k=CONTEXT_WORDS)) for _ in range(5000)]
    captions = [" ".join(draw.choices(WORDS, k=CAPTION_WORDS)) for _ in range(5000)]
    for number in range(clips):
        yield {
            "id": str(number), "clip": number, "question": "describe the clip", "answer": draw.choice(captions), "references": [],
            "choices": [], "type": "", "context": draw.choice(some),
        }  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- one process


def measured(folder: Path, clip: str, step: int) -> dict[str, Any]:
    """What a rank does before and at `step`: opens, looks at the data, makes the batch. In a process that did nothing before."""
    from mirasol_cli.batches.sources import open_sources
    from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary
    from mirasol_cli.training.checks import cut_texts, empty_losses
    from mirasol_cli.training.data import TrainingData

    recipe = recipe_of(folder, clip)
    vocabulary = Vocabulary(train_vocabulary([" ".join(WORDS), "context: question: answer: describe the clip"] * 5, 300))
    before, start = anonymous_mb(), time.perf_counter()
    sources = open_sources(recipe)
    data = TrainingData(recipe, sources, vocabulary)
    digest, usual = data.fingerprint, data.usual_clip_s
    said = empty_losses(recipe, sources) + cut_texts(data)
    opened, opened_mb = time.perf_counter() - start, anonymous_mb()
    share = range(BATCH // PROCESSES)
    start = time.perf_counter()
    batches = data.micro_batches(step, share)
    first, first_mb = time.perf_counter() - start, anonymous_mb()
    start = time.perf_counter()
    for later in range(1, 5):
        data.micro_batches(step + later, share)
    each = (time.perf_counter() - start) / 4
    return {
        "clips": digest[0]["clips"], "texts": digest[0]["texts"], "usual_clip_s": usual, "said": said, "open_s": opened, "first_s": first,
        "later_s": each, "private_before_mb": before, "private_open_mb": opened_mb, "private_first_mb": first_mb, "own_mb": own_mb(),
        "batch": checksum(batches), "peak_private_mb": max(opened_mb, first_mb),
    }  # fmt: skip


def checksum(batches: Any) -> str:
    """Of all units and token ids of a batch, and a part of its media."""
    import hashlib

    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr(batch.units).encode())
        digest.update(batch.text.tokens_BQL.numpy().tobytes())
        digest.update(batch.media.thumbnails.numpy().tobytes())
    return digest.hexdigest()


def anonymous_mb() -> float:
    """Pages that only this process has: what it allocated and wrote."""
    return _kilobytes("/proc/self/status", "RssAnon") / 1e3


def own_mb() -> float:
    """Pages that no other process maps at this moment, pages of files among them."""
    return (_kilobytes("/proc/self/smaps_rollup", "Private_Clean") + _kilobytes("/proc/self/smaps_rollup", "Private_Dirty")) / 1e3


def _kilobytes(path: str, key: str) -> int:
    return next(int(line.split()[1]) * 1024 // 1000 for line in Path(path).read_text().splitlines() if line.startswith(f"{key}:"))


def in_process(folder: Path, clip: str, step: int, beside: int = 0) -> dict[str, Any]:
    """`measured` in a process of its own, with so many others at the same time, which hold what they have until all are done."""
    command = [sys.executable, __file__, "--folder", str(folder), "--clip", clip, "--step", str(step)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
    running = [subprocess.Popen(command, **pipes) for _ in range(1 + beside)]  # type: ignore[call-overload]
    found = []
    for process in running:
        found.append(json.loads(process.stdout.readline()))
    for process in running:
        process.stdin.write("\n")
        process.stdin.close()
        if process.wait():
            raise RuntimeError("a measuring process failed")
    return found[0]


# --------------------------------------------------------------------------------------------------------------- the whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the split is made; some 5 GB")
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--clip", default=REAL, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help="drop the page cache before the first figure (root only)")
    args = parser.parse_args()
    if args.step is not None:
        print(json.dumps(measured(args.folder, args.clip, args.step)), flush=True)
        sys.stdin.readline()
        return
    split, geometry, made = args.folder / "train", recipe_of(args.folder, args.clip).clip, 0.0
    if not (split / "index.json").is_file():
        start = time.perf_counter()
        make(split, args.clips, geometry)
        made = time.perf_counter() - start
    if args.cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    cold = in_process(args.folder, args.clip, 0)
    warm = in_process(args.folder, args.clip, 0, beside=1)
    step = int(1.6 * warm["clips"]) // BATCH  # in the second epoch
    resumed, again = (in_process(args.folder, args.clip, step) for _ in range(2))
    if resumed["batch"] != again["batch"]:
        raise RuntimeError("the same step gave another batch")
    report(args.folder, made, {"first process": cold, "beside another": warm, f"resume at step {step:,}": resumed}, args.cold)


def report(folder: Path, made: float, found: dict[str, dict[str, Any]], cold: bool) -> None:
    found_first = next(iter(found.values()))
    sizes = {path.name: path.stat().st_size for path in (folder / "train").iterdir() if not path.name.startswith("shard-")}
    title = f"A split of {found_first['clips']:,} clips with 40-word contexts: opening, first batch, resume"
    report = Report("ten_million", title)
    for name, row in found.items():
        report.row(what=name, **row)
    report.table(
        ["process", "open, s", "first batch, s", "later batches, s", "private before, MB", "open, MB", "with a batch, MB", "own pages, MB"],
        [
            [name, row["open_s"], row["first_s"], row["later_s"], row["private_before_mb"], row["private_open_mb"], row["private_first_mb"],
             row["own_mb"]]
            for name, row in found.items()
        ],
    )  # fmt: skip
    slowest, most = max(row["open_s"] for row in found.values()), max(row["peak_private_mb"] for row in found.values())
    files = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
    report.text(
        f"Opening, seconds: {verdict(slowest, 20, at_most=True)}. Private memory of a process, MB: {verdict(most, 1500, at_most=True)}. "
        f"A batch is a process's share of {BATCH:,} clips on {PROCESSES} GPUs, {BATCH // PROCESSES} clips of 1.9 MB, read by one process; "
        "the first one holds the permutation of its epoch. Private: RssAnon, torch's own part among it (before). Own pages: what no other "
        f"process maps, pages of files among them. The first process found the files {'on disk' if cold else 'in the page cache, or not'}. "
        f"Two processes gave the same batch at the step that is resumed. Files: {files}." + (f" Made in {made:,.0f} s." if made else "")
    )
    report.write()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
