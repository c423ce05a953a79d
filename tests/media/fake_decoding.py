"""A stand-in for the decoding processes, and small worlds to prepare: files whose text says what decoding them gives."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.sampling import ClipRequest
from tests.shards.samples import SMALL, made_up_sample

RECIPE = """
schema: 1
name: small
data: {dataset: manifest}
clip:
  frames: 8
  chunks: 2
  size: 32
  views: VIEWS
  tubes:
    - {kernel: [2, 8, 8], stride: [4, 16, 16], space_to_depth: [2, 1, 1]}
    - {kernel: [1, 16, 16], stride: [4, 16, 16]}
  audio: {n_mels: 16, columns: 16}
"""


@dataclass(frozen=True)
class FakeInfo:
    seconds: float


class FakePool:
    """Same face as `media.decode_pool.DecodePool`. A file holds `<seconds>`, `<seconds> lacks <frames>` or `bad <reason>`.

    `submitted` counts what was asked for.
    """

    submitted: list[tuple[str, tuple[ClipRequest, ...] | None]]

    def __init__(self, geometry: ClipGeometry, delay_s: float = 0.0):
        self.geometry, self.delay_s = geometry, delay_s
        self._jobs: list[tuple[Hashable, Path, tuple[ClipRequest, ...] | None]] = []

    def submit(self, job_id: Hashable, path: Path | str, requests: Sequence[ClipRequest] = (ClipRequest(),)) -> None:
        FakePool.submitted.append((os.path.basename(path), tuple(requests)))
        self._jobs.append((job_id, Path(path), tuple(requests)))

    def submit_probe(self, job_id: Hashable, path: Path | str) -> None:
        FakePool.submitted.append((os.path.basename(path), None))
        self._jobs.append((job_id, Path(path), None))

    def results(self) -> Iterator[tuple[Hashable, list[Any]]]:
        while self._jobs:
            job_id, path, requests = self._jobs.pop()  # newest first: order must not matter
            time.sleep(self.delay_s)
            yield job_id, self._outcome(path, requests)

    def _outcome(self, path: Path, requests: tuple[ClipRequest, ...] | None) -> list[Any]:
        text = path.read_text()
        if text.startswith("bad "):
            return [MediaError(f"{text[4:]} in '{path}'", "fetch it again", stage="probe")] * (1 if requests is None else len(requests))
        length, _, lacking = text.partition(" lacks ")
        seconds = float(length)
        if requests is None:
            return [FakeInfo(seconds)]
        clips = [self._clip(path, request, seconds) for request in requests]
        for clip in clips:
            if lacking and not isinstance(clip, MediaError):
                clip["frame_times"].reshape(-1)[: int(lacking)] = np.nan
        return clips

    def _clip(self, path: Path, request: ClipRequest, seconds: float) -> Any:
        start, end = request.start_s or 0.0, min(request.end_s or seconds, seconds)
        if start >= end:
            return MediaError("span lies outside", stage="span")
        sample = made_up_sample(f"{path.name} {request.key}", self.geometry, request.view)
        return sample | {"span": np.array([start, end])}

    def close(self) -> None:
        self._jobs.clear()

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def write_recipe(folder: Path, views: int = 1) -> Path:
    path = folder / "small.yaml"
    path.write_text(RECIPE.replace("VIEWS", str(views)).lstrip())
    return path


def write_world(folder: Path, clips: int, *, bad: Sequence[int] = (), missing: Sequence[int] = (), test_clips: int = 0) -> Path:
    """Videos and a manifest of `clips` training clips (two lines each), some broken, some absent. Returns the manifest."""
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(clips + test_clips):
        name = f"clip{number:03d}.mp4"
        if number not in missing:
            (videos / name).write_text("bad no video stream" if number in bad else str(5 + number))
        row = {"video": name, "split": "train" if number < clips else "test"}
        rows += [{**row, "caption": f"clip {number}"}, {**row, "question": "which?", "answer": str(number)}]
    manifest = folder / "annotations.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


__all__ = ["SMALL", "FakePool", "tree", "write_recipe", "write_world"]
