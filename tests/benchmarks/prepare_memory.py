"""Memory of `prepare` over 2,000 clips: what this process and its decoding children hold, at 500, 1,000, 1,500 and 2,000.

    python tests/benchmarks/prepare_memory.py [--clips 2000] [--workers 2]

Small clips of 12 kinds (mp4, mkv, webm, avi; with and without sound; one in 25 of them broken), each under many names. The
geometry is small, so that 2,000 clips take minutes; shards have the size of real ones (256 MB), so that the memory is that
of real runs: this process holds up to two shards that are filled, and one twice that is written. MB of anonymous memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

KINDS = {
    "mp4": dict(codec="libx264", audio_codec="aac"),
    "mkv": dict(codec="libx264", audio_codec="libopus"),
    "webm": dict(codec="libvpx", audio_codec="libopus", options={"deadline": "realtime", "cpu-used": "8"}),
    "avi": dict(codec="mpeg4", audio_codec="libmp3lame"),
}
OVERRIDES = ("clip.frames=32", "clip.chunks=4", "clip.size=96")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prepare-memory-") as folder:
        run(Path(folder), arguments.clips, arguments.workers)


def run(folder: Path, clips: int, workers: int) -> None:
    from mirasol_cli.prepare import engines
    from mirasol_cli.prepare.command import prepare

    manifest = write_world(folder, clips)
    open_pool, pools = engines.open_pool, []

    def watched(options, geometry):  # type: ignore[no-untyped-def]
        pools.append(open_pool(options, geometry))
        return pools[-1]

    engines.open_pool = watched  # type: ignore[assignment]
    start, rows, highest = time.monotonic(), [], [0.0, 0.0]
    done, every = 0, max(1, clips // 4)
    write_shards = engines.write_shards

    def counted(works, pool, watch):  # type: ignore[no-untyped-def]
        def step(number: int, seconds: float) -> None:
            nonlocal done
            watch(number, seconds)
            here, theirs = resident_mb(os.getpid()), [resident_mb(child.process.pid) for child in pool._workers]
            highest[:] = [max(highest[0], here), max([highest[1], *theirs])]
            done += number
            if done % every == 0:
                rows.append({"clips": done, "this process": round(here), "children": [round(size) for size in theirs]})
                rows[-1] |= {"highest since the last line": [round(size) for size in highest], "seconds": round(time.monotonic() - start)}
                print(json.dumps(rows[-1]), flush=True)
                highest[:] = [0.0, 0.0]

        return write_shards(works, pool, step)

    engines.write_shards = counted  # type: ignore[assignment]
    summary = prepare(str(manifest), root=folder / "videos", out=folder / "out", overrides=OVERRIDES, workers=workers, max_failed=10)
    counts = summary["splits"]["train"]
    print(json.dumps({key: counts[key] for key in ("expected", "kept", "failed", "bytes", "audio")}))


def resident_mb(process: int) -> float:
    """What the process itself holds (mapped files do not count: those are the page cache's)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)


def write_world(folder: Path, clips: int) -> Path:
    from tests.media.made_clips import clicks, regular, write_clip

    videos = folder / "videos"
    videos.mkdir()
    kinds = []
    for suffix, kind in KINDS.items():
        for seconds in (2, 3, 4):
            audio = None if seconds == 3 else clicks([0.5, 1.5], seconds)
            kinds.append(write_clip(folder / f"{seconds}.{suffix}", regular(25 * seconds, 25), size=(160, 120), audio=audio, **kind))
    broken = folder / "half.mp4"
    broken.write_bytes(kinds[0].read_bytes()[:-3000])
    rows = []
    for number in range(clips):
        source = broken if number % 25 == 24 else kinds[number % len(kinds)]
        name = f"{number:06d}{source.suffix}"
        os.link(source, videos / name)
        rows.append(json.dumps({"video": name, "question": "what is it?", "answer": str(number % 7)}) + "\n")
    manifest = folder / "all.jsonl"
    manifest.write_text("".join(rows))
    return manifest


if __name__ == "__main__":
    main()
