"""Contact sheets of prepared clips (`prepare --inspect`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mirasol_cli.media.preview import contact_sheet
from mirasol_cli.sample import AudioState
from mirasol_cli.shards.reader import ShardFolder, ShardSplit

TEXTS_SHOWN = 12


def write_contact_sheets(out: Path, splits: Sequence[str], number: int) -> list[Path]:
    """`<out>/inspect/<split>-<clip>.png` of `number` clips of each split, spread evenly over the kept ones."""
    paths = []
    for name in splits:
        split = ShardFolder(out).split(name)
        texts: dict[int, list[str]] = {}
        for task in split.tasks:
            for text in split.texts(task):
                context = f" [{text['context']}]" if text["context"] else ""
                texts.setdefault(text["clip"], []).append(f"{task}: {text['question']} -> {text['answer']}{context}")
        count = min(number, len(split.kept))
        for clip in (split.kept[k * len(split.kept) // count] for k in range(count)):
            path = out / "inspect" / f"{name}-{clip:06d}.png"
            path.parent.mkdir(exist_ok=True)
            sample = {field: tensor.numpy() for field, tensor in split.media(clip).items()}
            heading = [_what_it_is(split, clip, sample), *texts.get(clip, [])[:TEXTS_SHOWN]]
            contact_sheet(sample, split.geometry, heading).save(path)
            paths.append(path)
    return paths


def _what_it_is(split: ShardSplit, clip: int, sample: Mapping[str, np.ndarray]) -> str:
    start, end = sample["span"]
    state = AudioState(int(sample["audio_state"])).word
    real, frames = int(sample["frame_valid"].sum()), sample["frame_valid"].size
    return (
        f"{split.name} clip {clip}: {split.clips[clip]['key']}; {start:.2f} to {end:.2f} s; audio: {state}; "
        f"{real} of {frames} frames differ from the one before"
    )
