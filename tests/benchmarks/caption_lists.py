"""Memory and time of reading long lists of captions, each in a process of its own: it must not grow with the rows.

    python tests/benchmarks/caption_lists.py [--rows 200000,2000000] [--prepared 50000,250000]

Lists as they are published: InternVid (JSON lines with spans), Panda-70M (CSV, lists of clips in a cell) and WebVid's columns as a
manifest (CSV). Read: the clips and texts of the list, gone through once. Prepare: the whole command with one of the videos at hand and all
others missing, so that what it holds of a clip is seen, not what it decodes. Anonymous memory (RssAnon) at its peak, over that of 1,000
rows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import ROOT, Report, in_child
from ten_million import WORDS, anonymous_mb

SMALL = ("clip.frames=8", "clip.chunks=2", "clip.size=64", "clip.tubes=[{kernel: [1, 16, 16], stride: [4, 16, 16]}]")


def write_list(folder: Path, kind: str, rows: int) -> Path:
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / {"internvid": "InternVid-10M.jsonl", "panda70m": "panda70m_training_10m.csv", "webvid": "webvid.csv"}[kind]
    with open(path, "w") as file:
        if kind == "panda70m":
            file.write("videoID,url,timestamp,caption,matching_score,desirable_filtering,shot_boundary_detection\n")
        elif kind == "webvid":
            file.write("id,video,caption\n")
        for number in range(rows if kind != "panda70m" else rows // 4):
            video, words = f"{draw.getrandbits(60):015x}", " ".join(draw.choices(WORDS, k=15))
            if kind == "internvid":
                row = {"YoutubeID": video, "Start_timestamp": "00:00:05.000", "End_timestamp": "00:00:15.500", "Caption": words}
                file.write(json.dumps(row | {"Aesthetic_Score": 4.5, "UMT_Score": 0.4}) + "\n")
            elif kind == "panda70m":
                spans = [[f"0:00:{start:02d}.000", f"0:00:{start + 9:02d}.500"] for start in (0, 10, 20, 30)]
                file.write(f'{video},u,"{spans}","{[words] * 4}",[0.4],[],[]\n')
            else:
                file.write(f"{number},{number % 1000:04d}/{video}.mp4,{words}\n")
    return path


class Peak:
    """The most anonymous memory of this process while it is entered, looked at every 20 ms."""

    def __enter__(self) -> Peak:
        self.mb, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.mb = max(self.mb, anonymous_mb())


def measured(what: str, kind: str, rows: int, cache_kb: int | None) -> dict[str, Any]:
    from mirasol_cli.datasets import captions, row_tables
    from mirasol_cli.datasets.example import DatasetOptions
    from mirasol_cli.datasets.manifest import read_manifest
    from mirasol_cli.prepare.command import prepare

    row_tables.CACHE_KB = cache_kb or row_tables.CACHE_KB
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        path = write_list(root, kind, rows)
        start = time.perf_counter()
        with Peak() as peak:
            if what == "read":
                splits = read_manifest(path, root) if kind == "webvid" else captions.read(root, None, DatasetOptions())
                texts = sum(1 for split in splits for _ in split.texts)
                clips = sum(1 for split in splits for _ in split.clips)
            else:
                first = next(iter(read_manifest(path, root)[0].clips)) if kind == "webvid" else None
                (root / (first.video if first else "none")).parent.mkdir(parents=True, exist_ok=True)
                (root / (first.video if first else "none.mp4")).write_bytes(b"no video")
                dataset = str(path) if kind == "webvid" else "captions"
                summary = prepare(dataset, root=root, out=root / "out", overrides=SMALL, workers=1, max_failed=100, say=lambda line: None)
                texts, clips = (summary["splits"]["train"][key] for key in ("questions", "expected"))
        return {"rows": rows, "texts": texts, "clips": clips, "peak_mb": peak.mb, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="200000,2000000", help="of lists that are read, comma separated")
    parser.add_argument("--prepared", default="50000,250000", help="rows of lists that are prepared")
    parser.add_argument("--lists", default="internvid,panda70m,webvid", help="that are read; webvid is prepared, too")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--cache-kb", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one[0], args.one[1], int(args.one[2]), args.cache_kb)))
        return
    report = Report("caption_lists", "Long lists of captions: memory and time")
    table = []
    for what, lists, sizes in (("read", args.lists, args.rows), ("prepare", "webvid", args.prepared)):
        for kind in lists.split(","):
            base = in_child(__file__, "--one", what, kind, "1000")
            for rows in map(int, sizes.split(",")):
                found = in_child(__file__, "--one", what, kind, str(rows), timeout=3600)
                report.row(what=what, kind=kind, base_mb=base["peak_mb"], **found)
                more = found["peak_mb"] - base["peak_mb"]
                table.append([what, kind, f"{found['texts']:,}", more, 1e6 * more / rows, found["seconds"], 1e6 * found["seconds"] / rows])
    report.table(["what", "list", "texts", "MB over 1,000 rows", "bytes a row", "s", "µs a row"], table)
    report.write()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
