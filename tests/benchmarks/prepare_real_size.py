"""`mirasol prepare` on two cores against its own reader with nothing around it, at real size: 128 frames of 224 px and all sound.

    python tests/benchmarks/prepare_real_size.py [--sources 24] [--against CHECKOUT]

Sources: 10 s of 720p, and 3 minutes of 360p (H.264 + AAC, 25 fps), rendered here. Two decoding processes on both sides.

- bare: two processes that run `media.decode.decode_clips` over half of the sources each, and drop frames and sound.
- prepare: the command, with everything it adds: supervision, tubes, thumbnails, spectrogram, masks, checksums, shards on the disk.
- against: with --against, the same command of another checkout of the project, to see what a change costs. It must give at most
  1.1 times the time. `copied` is a third set for it: the 720p clip cut out of a longer one by stream copy, which decord reads wrong.

`steady` leaves the start-up out: all sources less the first two alone. CPU seconds are those of all processes; where two busy
processes fill two cores they tell the same as wall time, and they bear a machine that is not quiet.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import Report, Timing, alternate, arguments, environment, own_seconds, short, verdict

SETS = {"10 s of 720p": ("1280x720", 10, False), "3 min of 360p": ("640x360", 180, False), "copied": ("1280x720", 10, True)}
"""Picture size, seconds, and whether the clips are cut by stream copy."""
PROCESSES = 2
GOAL = 1.15
AGAINST_GOAL = 1.1

BARE = """
import sys
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.decode import decode_clips
from mirasol_cli.media.sampling import ClipRequest
for path in sys.argv[1:]:
    for clip in decode_clips(path, [ClipRequest()], ClipGeometry()):
        for window in clip.windows:
            pass
"""


def render(path: Path, size: str, seconds: int) -> None:
    video = f"testsrc2=s={size}:r=25:d={seconds},noise=alls=12:allf=t"
    audio = f"anoisesrc=d={seconds}:c=pink:a=0.4,aresample=44100"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", video, "-f", "lavfi", "-i", audio, "-shortest", "-c:v", "libx264",
               "-preset", "veryfast", "-crf", "28", "-g", "125", "-pix_fmt", "yuv420p", "-c:a", "aac", str(path)]  # fmt: skip
    subprocess.run(command, check=True)


def cut(path: Path, size: str, seconds: int) -> None:
    whole = path.with_name("whole.mp4")
    render(whole, size, 2 * seconds)
    command = ["ffmpeg", "-v", "error", "-y", "-ss", "7.3", "-i", str(whole), "-t", str(seconds), "-c", "copy", str(path)]
    subprocess.run(command, check=True)


def sources(folder: Path, size: str, seconds: int, number: int, make: Callable[[Path, str, int], None]) -> list[Path]:
    folder.mkdir()
    make(folder / "0000.mp4", size, seconds)
    paths = [folder / f"{k:04d}.mp4" for k in range(number)]
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    for name, some in (("all", paths), ("first", paths[:PROCESSES])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"video": path.name, "caption": "something"}) + "\n" for path in some))
    return paths


def bare(paths: list[Path]) -> None:
    words = [[sys.executable, "-c", BARE, *map(str, paths[k::PROCESSES])] for k in range(PROCESSES)]
    running = [subprocess.Popen(command, env=environment(OMP_NUM_THREADS="1")) for command in words]
    if any([process.wait() for process in running]):
        raise RuntimeError("bare decoding failed")


def prepare(manifest: Path, checkout: str | None = None) -> None:
    with tempfile.TemporaryDirectory(dir=manifest.parent) as out:
        words = ["prepare", str(manifest), "--out", f"{out}/shards", "--workers", str(PROCESSES), "clip.frames=128", "clip.chunks=16"]
        command = [sys.executable, "-m", "mirasol_cli", *words, "clip.size=224", "--max-failed", "0"]
        where = {"PYTHONPATH": checkout} if checkout else {}
        subprocess.run(command, check=True, capture_output=True, env=environment(OMP_NUM_THREADS="1", **where), cwd=manifest.parent)


class Counted:
    """A work that also notes its CPU seconds."""

    def __init__(self, work: Callable[[], None]):
        self.work, self.cpu = work, list[float]()

    def __call__(self) -> None:
        before = own_seconds()
        self.work()
        self.cpu.append(own_seconds() - before)


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--sources", type=int, default=24)
    parser.add_argument("--against", help="another checkout of the project")
    args = parser.parse_args()
    report = Report("prepare_real_size", "prepare at real size on two cores, against its own reader alone", smoke=args.smoke)
    rows = []
    with tempfile.TemporaryDirectory(prefix="prepare-real-size-") as name:
        sets = {title: made for title, made in SETS.items() if args.against or not made[2]}
        for title, (size, seconds, copied) in list(sets.items())[: 1 if args.smoke else None]:
            number = 4 if args.smoke else max(6, args.sources * (10 if seconds == 10 else 4) // 10)
            folder = Path(name) / title.replace(" ", "-")
            paths = sources(folder, size, seconds, number, cut if copied else render)
            works = {
                "bare": Counted(lambda paths=paths: bare(paths)),
                "bare-first": Counted(lambda paths=paths: bare(paths[:PROCESSES])),
                "prepare": Counted(lambda folder=folder: prepare(folder / "all.jsonl")),
                "prepare-first": Counted(lambda folder=folder: prepare(folder / "first.jsonl")),
            }
            if args.against:
                works["against"] = Counted(lambda folder=folder: prepare(folder / "all.jsonl", args.against))
                works["against-first"] = Counted(lambda folder=folder: prepare(folder / "first.jsonl", args.against))
            whos = ["bare", "prepare", "against"] if args.against else ["bare", "prepare"]
            timings = alternate(works, 1 if args.smoke else args.rounds, patience=args.patience, warm=False)
            wall = {who: timings[who].median - timings[f"{who}-first"].median for who in whos}
            cpu = {who: statistics.median(works[who].cpu) - statistics.median(works[f"{who}-first"].cpu) for who in whos}
            for who in wall:
                report.row(set=title, who=who, sources=number, steady_s=wall[who], steady_cpu_s=cpu[who], **timings[who].plain())
                rows.append([title, number, who, timings[who], short(wall[who]), short(cpu[who]), short((number - PROCESSES) / wall[who])])
            steady = verdict(wall["prepare"] / wall["bare"], GOAL, at_most=True)
            report.text(f"{title}: prepare over its reader alone, steady wall {steady}, "
                        f"steady CPU {short(cpu['prepare'] / cpu['bare'])}, wall with start-up {ratio(timings):.2f}.")  # fmt: skip
            if args.against:
                steady = verdict(wall["prepare"] / wall["against"], AGAINST_GOAL, at_most=True)
                whole = statistics.median(works["prepare"].cpu) / statistics.median(works["against"].cpu)
                report.text(f"{title}: prepare over that of the other checkout, steady wall {steady}, "
                            f"steady CPU {short(cpu['prepare'] / cpu['against'])}, CPU with start-up {whole:.2f}.")  # fmt: skip
    report.table(["sources", "number", "who", "seconds in all", "steady s", "steady CPU s", "clips/s, steady"], rows)
    report.write()


def ratio(timings: dict[str, Timing]) -> float:
    return timings["prepare"].median / timings["bare"].median


if __name__ == "__main__":
    main()
