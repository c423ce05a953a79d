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
from mirasol_cli.shards.columns import ClipColumns, ClipStatus, write_texts
from mirasol_cli.shards.index import (
    CLIP_COLUMNS,
    CLIPS,
    INDEX,
    ClipFailure,
    SplitIndex,
    TaskEntry,
    clips_per_shard,
    read_checksummed,
    text_columns_name,
    texts_name,
    views_of,
    write_checksummed,
)
from mirasol_cli.shards.lines import write_lines
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
    lines = write_lines(folder / CLIPS, rows)
    columns = ClipColumns.of(records, len(clips), views, lines)
    files = {CLIPS: lines.sha256, CLIP_COLUMNS: columns.write(folder / CLIP_COLUMNS)}
    sha256, text_columns = write_texts(folder / texts_name(task), texts)
    written = text_columns.write(folder / text_columns_name(task))
    entry = TaskEntry(dataset="made-up", licence="none", texts=len(texts), sha256=sha256, columns=written, labels=list(labels))
    SplitIndex(
        split=folder.name, geometry=geometry, views=views, clips_per_shard=n, versions={}, counts={}, tasks={task: entry},
        files=files, shards=[record.entry for record in records],
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


def forget_columns(folder: Path) -> None:
    """The split as it was written before there were columns: the index tells of every clip and row itself."""
    index = SplitIndex.read(folder / INDEX)
    columns = ClipColumns.read(folder / CLIP_COLUMNS, index.files.pop(CLIP_COLUMNS))
    first, records = 0, []
    for entry in index.shards:
        failed = np.flatnonzero(columns.status[first : first + entry.clips] == ClipStatus.FAILED) + first
        failures = {int(clip): ClipFailure(clip=int(clip), key="", video="", stage="probe", reason="", hint="") for clip in failed}
        records.append(columns.record(entry, first, failures))
        first += entry.clips
    plain = read_checksummed(folder / INDEX) | {"files": index.files, "shards": [record.to_plain() for record in records]}
    for entry in plain["tasks"].values():
        del entry["columns"]
    write_checksummed(folder / INDEX, plain)
    for path in folder.glob("*.columns"):
        path.unlink()
