"""Time and memory of a training step from 16 to 512 frames at 224 px.

    python tests/benchmarks/length.py [--preset demo]

Two series: more chunks of 8 frames (2 to 64 of them), and 16 chunks that grow from 4 to 32 frames with one fixed kernel set
whose strides repeat. Each length is a process of its own (peak memory); its first step is not counted.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from typing import Any

from common import Report, arguments, environment, peak_mib, random_media, random_text, resolved_model, sample

VOCABULARY = 8000
CHUNKS_OF_8 = [(8 * chunks, chunks) for chunks in (2, 4, 8, 16, 32, 64)]
GROWING = [(16 * frames, 16) for frames in (4, 8, 16, 32)]
# The default tubes with a footprint of 4 frames: these fit chunks of 4 frames, and repeat every 8 frames in longer ones.
SHORT_TUBES = (
    "clip.tubes=[{kernel: [4, 8, 8], stride: [8, 32, 32]}, "
    "{kernel: [4, 4, 4], stride: [8, 32, 32], offset: [0, 8, 8], space_to_depth: [1, 2, 2]}, "
    "{kernel: [4, 12, 12], stride: [8, 32, 32], offset: [0, 16, 16]}, {kernel: [1, 16, 16], stride: [8, 16, 16]}]"
)


class Step:
    """A process that holds one model and takes a step whenever it is asked."""

    def __init__(self, *words: str):
        command = [sys.executable, __file__, "--worker", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a worker died")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def worker(args: Any) -> None:
    import torch

    from mirasol_cli.config.schema import TrainRecipe
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.training.optimizer import build_optimizer

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tubes = [SHORT_TUBES] if args.short_tubes else []
    config, geometry = resolved_model(
        args.preset, f"clip.frames={args.frames}", f"clip.chunks={args.chunks}", f"clip.size={args.size}", *tubes
    )
    model, weights = Mirasol(config, geometry, VOCABULARY), {"text": 10.0, "latent": 1.0, "video": 1.0}
    optimizer = build_optimizer(model, TrainRecipe())
    media, text = random_media(geometry, 1), random_text(1, 4, VOCABULARY)

    def step() -> None:
        model(media, text, weights).total(weights).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in sys.stdin:
        seconds, quiet = sample(step, args.patience)
        about = {"seconds": seconds, "quiet": quiet, "peak_mib": peak_mib(), "tokens_per_chunk": geometry.tokens_per_chunk}
        print(json.dumps(about), flush=True)


def line_through(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: (slope, intercept)."""
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points])


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--size", type=int, default=224)
    for name in ("--worker", "--short-tubes"):
        parser.add_argument(name, action="store_true")
    for name in ("--frames", "--chunks"):
        parser.add_argument(name, type=int)
    args = parser.parse_args()
    if args.worker:
        return worker(args)
    report = Report("length", f"Length: a training step of one clip (`{args.preset}`, {args.size} px)", smoke=args.smoke)
    rounds = 1 if args.smoke else args.rounds
    for series, lengths, short in (("chunks of 8 frames", CHUNKS_OF_8, []), ("16 growing chunks", GROWING, ["--short-tubes"])):
        if args.smoke:
            lengths = lengths[:2]
        found: dict[int, list[dict[str, Any]]] = {frames: [] for frames, _ in lengths}
        common = [
            "--preset",
            args.preset,
            "--size",
            str(args.size),
            "--threads",
            str(args.threads),
            "--patience",
            str(args.patience),
            *short,
        ]
        steps = {frames: Step("--frames", str(frames), "--chunks", str(chunks), *common) for frames, chunks in lengths}
        for step in steps.values():
            step.ask()
        for _ in range(2 * rounds):
            for frames, step in steps.items():
                found[frames].append(step.ask())
            if all(sum(s["quiet"] for s in samples) >= rounds for samples in found.values()):
                break
        for step in steps.values():
            step.close()
        rows, times, memory = [], [], []
        for frames, chunks in lengths:
            quiet = [s["seconds"] for s in found[frames] if s["quiet"]] or [s["seconds"] for s in found[frames]]
            peak, median = max(s["peak_mib"] for s in found[frames]), statistics.median(quiet)
            times.append((float(frames), median))
            memory.append((float(frames), peak))
            count = sum(s["quiet"] for s in found[frames])
            rows.append(
                [
                    frames,
                    chunks,
                    found[frames][0]["tokens_per_chunk"],
                    median,
                    f"{min(quiet):.3g}-{max(quiet):.3g}",
                    1e3 * median / frames,
                    peak,
                    count,
                ]
            )
            report.row(series=series, frames=frames, chunks=chunks, median_s=median, peak_mib=peak, quiet=count, samples=found[frames])
        report.table([series, "chunks", "tokens a chunk", "step s", "spread", "ms a frame", "peak MiB", "quiet"], rows)
        (slope, intercept), (bytes_slope, base) = line_through(times), line_through(memory)
        (x1, y1), (x2, y2) = times[-2:]
        power = math.log(y2 / y1) / math.log(x2 / x1)
        report.text(
            f"Time: {1e3 * slope:.3g} ms per frame + {1e3 * intercept:.3g} ms; over the last doubling it grows with the power {power:.2f} "
            f"of the length (1 is linear). Memory: {bytes_slope:.3g} MiB per frame + {base:.0f} MiB."
        )
    report.write()


if __name__ == "__main__":
    main()
