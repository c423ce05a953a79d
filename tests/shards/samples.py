"""Made-up samples of a small geometry, for tests of everything that comes after decoding."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mirasol_cli.datasets.example import ClipSpan
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.shards.format import INDEX, SplitIndex, TaskEntry, clips_per_shard, field_shapes, texts_name, views_of, write_lines
from mirasol_cli.shards.writer import ShardDraft, ShardSlot

SMALL = ClipGeometry(
    frames=8,
    chunks=2,
    size=32,
    tubes=(Tube(kernel=(2, 8, 8), stride=(4, 16, 16), space_to_depth=(2, 1, 1)), Tube(kernel=(1, 16, 16), stride=(4, 16, 16))),
    audio=AudioGeometry(bins=16, columns=16),
)


def made_up_sample(key: str, geometry: ClipGeometry = SMALL, view: int = 0) -> dict[str, np.ndarray]:
    """All fields of a clip, drawn from its key."""
    generator = np.random.default_rng(zlib.crc32(f"{key}/{view}".encode("utf-8", "surrogatepass")))
    sample: dict[str, Any] = {}
    for name, (dtype, shape) in field_shapes(geometry).items():
        if name in ("mel_valid", "frame_valid"):
            sample[name] = np.ones(shape, dtype)
        elif name == "audio_state":
            sample[name] = np.array(generator.integers(0, 3), dtype)
        elif name == "span":
            sample[name] = np.array([0.0, 10.0])
        elif dtype == "uint8":
            sample[name] = generator.integers(0, 256, shape, dtype="uint8")
        else:
            sample[name] = generator.standard_normal(shape).astype(dtype)
    return sample


def write_split(
    folder: Path, clips: int, *, geometry: ClipGeometry = SMALL, failed: tuple[int, ...] = (), missing: tuple[int, ...] = ()
) -> None:
    """A finished split of made-up clips, two texts each for task `qa`, written as `prepare` would."""
    folder.mkdir(parents=True)
    spans = [ClipSpan(video=f"clip{number}.mp4") for number in range(clips)]
    n, views, records = clips_per_shard(geometry), views_of(folder.name, geometry), []
    for shard in range(-(-clips // n)):
        slot = ShardSlot(folder=folder, number=shard, clips=tuple(spans[shard * n : (shard + 1) * n]), geometry=geometry, views=views)
        draft = ShardDraft(slot)
        for position, clip in enumerate(slot.clips):
            number = shard * n + position
            if number in missing:
                draft.miss(position)
            elif number in failed:
                draft.fail(position, "probe", "no video stream", "use --allow-audio-only")
            else:
                draft.add(position, [made_up_sample(clip.key, geometry, view) for view in range(views)])
        records.append(draft.write())
        slot.record_path.unlink()
    texts = [
        {"id": f"{clip}-{k}", "clip": clip, "question": f"what is {k}?", "answer": f"{clip}", "references": [], "choices": [],
         "type": "", "context": ""}
        for clip in range(clips) for k in range(2)
    ]  # fmt: skip
    rows = [{"key": clip.key, "video": clip.video, "start_s": None, "end_s": None} for clip in spans]
    files = {"clips.jsonl": write_lines(folder / "clips.jsonl", rows)}
    entry = TaskEntry(dataset="made-up", licence="none", texts=len(texts), sha256=write_lines(folder / texts_name("qa"), texts))
    SplitIndex(
        split=folder.name, geometry=geometry, views=views, clips_per_shard=n, versions={}, counts={}, tasks={"qa": entry},
        files=files, shards=records,
    ).write(folder / INDEX)  # fmt: skip
