"""Made-up samples of a small geometry, for tests of everything that comes after decoding."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mirasol_cli.datasets.example import ClipSpan
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.sample import field_shapes
from mirasol_cli.shards.index import INDEX, SplitIndex, TaskEntry, clips_per_shard, texts_name, views_of, write_lines
from mirasol_cli.shards.writer import ShardDraft, ShardSlot

SMALL = ClipGeometry(
    frames=8,
    chunks=2,
    size=32,
    tubes=(Tube(kernel=(2, 8, 8), stride=(4, 16, 16), space_to_depth=(2, 1, 1)), Tube(kernel=(1, 16, 16), stride=(4, 16, 16))),
    audio=AudioGeometry(n_mels=16, columns=16),
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


def made_up_views(clip: ClipSpan, geometry: ClipGeometry, views: int) -> list[dict[str, np.ndarray]]:
    return [made_up_sample(clip.key, geometry, view) for view in range(views)]


def write_finished_split(
    folder: Path, clips: Sequence[ClipSpan], fill: Callable[[ShardDraft, int, int], None], texts: Sequence[Mapping[str, Any]], *,
    geometry: ClipGeometry, task: str = "qa", labels: Sequence[str] = (),
) -> None:  # fmt: skip
    """The files of one split, as `prepare` leaves them.

    Args:
        fill: called with a draft, a clip's position in it and its number; adds the clip's media, or says that they are missing.
        texts: lines of the task, read after `fill` was called for every clip.
    """
    folder.mkdir(parents=True)
    n, views, records = clips_per_shard(geometry), views_of(folder.name, geometry), []
    for shard in range(-(-len(clips) // n)):
        slot = ShardSlot(folder=folder, number=shard, clips=tuple(clips[shard * n : (shard + 1) * n]), geometry=geometry, views=views)
        draft = ShardDraft(slot)
        for position in range(len(slot.clips)):
            fill(draft, position, shard * n + position)
        records.append(draft.write())
        slot.record_path.unlink()
    rows = [{"key": clip.key, "video": clip.video, "start_s": clip.start_s, "end_s": clip.end_s} for clip in clips]
    files = {"clips.jsonl": write_lines(folder / "clips.jsonl", rows)}
    sha256 = write_lines(folder / texts_name(task), list(texts))
    entry = TaskEntry(dataset="made-up", licence="none", texts=len(texts), sha256=sha256, labels=list(labels))
    SplitIndex(
        split=folder.name, geometry=geometry, views=views, clips_per_shard=n, versions={}, counts={}, tasks={task: entry},
        files=files, shards=records,
    ).write(folder / INDEX)  # fmt: skip


def write_split(
    folder: Path, clips: int, *, geometry: ClipGeometry = SMALL, failed: tuple[int, ...] = (), missing: tuple[int, ...] = ()
) -> None:
    """A finished split of made-up clips, two texts each for task `qa`."""

    def fill(draft: ShardDraft, position: int, number: int) -> None:
        if number in missing:
            draft.mark_missing(position)
        elif number in failed:
            draft.fail(position, "probe", "no video stream", "use --allow-audio-only")
        else:
            draft.add(position, made_up_views(spans[number], geometry, draft.slot.views))

    spans = [ClipSpan(video=f"clip{number}.mp4") for number in range(clips)]
    texts = [
        {"id": f"{clip}-{k}", "clip": clip, "question": f"what is {k}?", "answer": f"{clip}", "references": [], "choices": [],
         "type": "", "context": ""}
        for clip in range(clips) for k in range(2)
    ]  # fmt: skip
    write_finished_split(folder, spans, fill, texts, geometry=geometry)
