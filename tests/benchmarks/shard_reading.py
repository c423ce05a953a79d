"""Random reads of our shards against a WebDataset tar, one safetensors tensor per sample, and a plain memory-mapped copy.

    python tests/benchmarks/shard_reading.py [--clips 200]

The same clips in every layout (the fields of a shard: tubes, thumbnails, spectrogram, masks, times), warm page cache, every byte
copied, one thread. Ours checks every row against its CRC-32, as every read in training does; `ours, unchecked` is the same read
without that, to show what the check costs. The tar is read in order, as WebDataset does, and at random by an index of offsets.

Then a training run from these shards (preset `demo`): the share of its time that it waits for data.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
from pathlib import Path

from common import ROOT, Report, alternate, arguments, verdict

GEOMETRIES = {"short clips": (32, 4, 64), "long clips": (128, 16, 224)}


def write_all(folder: Path, clips: int, geometry):  # type: ignore[no-untyped-def]
    """Every layout in `folder`; returns our split."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from mirasol_cli.shards.reader import ShardFolder
    from tests import synthetic

    synthetic.write_split(folder / "shards" / "train", clips, geometry=geometry)
    split = ShardFolder(folder / "shards").split("train")
    tensors, stacked = {}, {}
    with tarfile.open(folder / "clips.tar", "w") as tar:
        for clip in split.kept:
            for name, value in split.media(clip).items():
                tensors[f"{clip:06d}.{name}"] = value
                stacked.setdefault(name, []).append(value)
                buffer = io.BytesIO()
                np.save(buffer, value.numpy())
                member = tarfile.TarInfo(f"{clip:06d}.{name}.npy")
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)
    save_file(tensors, folder / "each.safetensors")
    save_file({name: torch.stack(values) for name, values in stacked.items()}, folder / "stacked.safetensors")
    return split


def readers(folder: Path, split, order: list[int]):  # type: ignore[no-untyped-def]
    """Name -> function that reads all clips of `order`."""
    import numpy as np
    import torch
    from safetensors import safe_open

    fields = list(split.media(order[0]))

    def ours() -> None:
        for clip in order:
            split.media(clip)

    def unchecked() -> None:
        for clip in order:
            number, first = split._shard_of(clip)
            split._shard(number).row(clip - first)  # none is missing

    def each() -> None:
        with safe_open(folder / "each.safetensors", "pt") as file:
            for clip in order:
                for name in fields:
                    file.get_tensor(f"{clip:06d}.{name}").clone()

    mapped = safe_open(folder / "stacked.safetensors", "pt")
    rows = {name: mapped.get_tensor(name) for name in fields}

    def plain_copy() -> None:
        for clip in order:
            for name in fields:
                rows[name][clip].clone()

    def tar_in_order() -> None:
        with tarfile.open(folder / "clips.tar") as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                torch.from_numpy(np.load(io.BytesIO(content.read())))

    with tarfile.open(folder / "clips.tar") as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}

    def tar_at_random() -> None:
        with open(folder / "clips.tar", "rb") as file:
            for clip in order:
                for name in fields:
                    offset, size = places[f"{clip:06d}.{name}.npy"]
                    file.seek(offset)
                    torch.from_numpy(np.load(io.BytesIO(file.read(size))))

    return {
        "ours": ours, "ours, unchecked": unchecked, "plain mapped copy": plain_copy, "one tensor per sample": each,
        "tar, in order": tar_in_order, "tar, at random": tar_at_random,
    }  # fmt: skip


def data_wait(folder: Path, steps: int, threads: int) -> dict[str, float]:
    """Of a training run from synthetic shards; the second half of its log lines."""
    from mirasol_cli.config.reader import parse_recipe
    from mirasol_cli.training.loop import train

    text = f"""
schema: 1
name: reading
data: {{dataset: synthetic, shards: "{folder / "shards"}"}}
clip: {{frames: 32, chunks: 4, size: 64}}
model: {{preset: demo}}
init: {{vocab_size: 300}}
train: {{steps: {steps}, global_batch_size: 8, lr: 1e-4, checkpoint_every: {steps}, log_every: 5}}
run: {{dir: "{folder / "run"}"}}
"""
    train(parse_recipe(text, "reading.yaml"), stage="finetune", device="cpu", threads=threads)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    later = [line for line in lines if line["kind"] == "train"][len(lines) // 2 :]
    return {"data_wait": max(line["data_wait"] for line in later), "clips_per_s": min(line["clips_per_s"] for line in later)}


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--clips", type=int, default=0, help="default: 400 small ones, 60 large ones")
    args = parser.parse_args()
    import sys

    import torch

    from mirasol_cli.geometry import ClipGeometry
    from mirasol_cli.sample import bytes_per_clip

    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    report = Report("shard_reading", "Shards: random reads of whole clips, one thread, warm", smoke=args.smoke)
    with tempfile.TemporaryDirectory() as name:
        for number, (title, (frames, chunks, size)) in enumerate(GEOMETRIES.items()):
            if args.smoke and number:
                break
            folder, geometry = Path(name) / str(number), ClipGeometry(frames=frames, chunks=chunks, size=size)
            folder.mkdir()
            clips = 20 if args.smoke else args.clips or (400, 60)[number]
            split = write_all(folder, clips, geometry)
            order = list(split.kept)
            random.Random(0).shuffle(order)
            timings = alternate(readers(folder, split, order), 1 if args.smoke else args.rounds, patience=args.patience)
            rates = {what: clips / timing.median for what, timing in timings.items()}
            for what, timing in timings.items():
                report.row(
                    size=title, layout=what, clips_per_s=rates[what], bytes_per_s=rates[what] * bytes_per_clip(geometry), **timing.plain()
                )
            report.table(
                [title, "clips/s", "MB/s", "times tar in order", "seconds for all"],
                [
                    [what, rates[what], rates[what] * bytes_per_clip(geometry) / 1e6, rates[what] / rates["tar, in order"], timings[what]]
                    for what in rates
                ],
            )
            tar = verdict(rates["ours"] / rates["tar, in order"], 5.0, at_most=False)
            report.text(
                f"{title} ({bytes_per_clip(geometry):,} bytes). Against the tar: {tar}; "
                f"of the plain mapped copy: {verdict(rates['ours'] / rates['plain mapped copy'], 0.8, at_most=False)}, "
                f"without the checksum {rates['ours, unchecked'] / rates['plain mapped copy']:.2f}."
            )
        found = data_wait(Path(name) / "0", 10 if args.smoke else 60, args.threads)
    report.row(what="training", **found)
    report.text(f"Training (`demo`, 8 clips a step): share of time waiting for data {verdict(found['data_wait'], 0.02, at_most=True)}.")
    report.write()


if __name__ == "__main__":
    main()
