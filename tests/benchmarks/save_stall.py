"""How long training stands still for a save: written beside training, against written while training waits.

    python tests/benchmarks/save_stall.py                 # weights and AdamW's moments that fill half of the free memory
    python tests/benchmarks/save_stall.py --gib 2 --folder /fast/disk

One process, float32: weights, two moments, and a copy of all three, which is what a save beside training needs. Either way writes the same
bytes (streamed, hashed, flushed to the disk, manifest last). `still` is the time until training may go on, `whole` that until the
checkpoint is complete. The first save beside training also allocates the copy; later ones write over it. `steps during a save`:
matrix products of the training thread while the thread that saves is at work, over those of a machine at rest.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Report, arguments


def state_of(gib: float) -> dict[str, dict[str, Any]]:
    """Weights and moments of `gib` GiB in all, in matrices of 64 MiB."""
    import torch

    count = max(1, round(gib * 2**30 / 3 / 2**26))
    weights = {f"block.{number}": torch.rand(4096, 4096) for number in range(count)}
    moments = {f"{key}/{name}": torch.rand(4096, 4096) for key in ("exp_avg", "exp_avg_sq") for name in weights}
    return {"model": weights, "optimizer": moments}


def in_the_foreground(folder: Path, step: int, tensors: dict[str, dict[str, Any]]) -> tuple[float, float]:
    from mirasol_cli.checkpoints.folder import Contents, write_checkpoint

    start = time.perf_counter()
    write_checkpoint(folder, step, Contents({"state.json": b"{}"}, tensors))
    seconds = time.perf_counter() - start
    return seconds, seconds


def beside_training(saver: Any, step: int, tensors: dict[str, dict[str, Any]], work: Any) -> tuple[float, float, float]:
    """(still, whole, seconds of one `work` meanwhile)."""
    start = time.perf_counter()
    saver.start(step, {"state.json": b"{}"}, tensors)
    still, rounds = time.perf_counter() - start, 0
    begun = time.perf_counter()
    while saver.seconds is None or rounds == 0:
        work()
        rounds += 1
    each = (time.perf_counter() - begun) / rounds
    saver.wait()
    whole, saver.seconds = saver.seconds, None
    return still, whole, each


def main() -> None:
    parser = arguments(__doc__, rounds=2)
    parser.add_argument("--gib", type=float, help="of weights and moments; by default half of the free memory, less 3 GiB")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for a while; by default the temporary folder")
    args = parser.parse_args()

    import torch

    from mirasol_cli.checkpoints.saver import BackgroundSaver
    from mirasol_cli.runtime.distributed import World
    from mirasol_cli.training.memory import memory_at_hand

    torch.set_num_threads(args.threads)
    free = (memory_at_hand(torch.device("cpu")) or 8 << 30) / 2**30
    gib = 0.19 if args.smoke else args.gib or max(0.5, (free - 3) / 2)
    report = Report("save_stall", "How long training stands still for a save", smoke=args.smoke)
    tensors, a = state_of(gib), torch.rand(1024, 1024)
    held = sum(tensor.nbytes for stem in tensors.values() for tensor in stem.values()) / 2**30
    start = time.perf_counter()
    for _ in range(10):
        a @ a
    rest = (time.perf_counter() - start) / 10
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    rows: list[list[Any]] = []
    try:
        saver = BackgroundSaver(folder, World(0, 1, torch.device("cpu")), keep=1, check=lambda: None, patience_s=60)
        for number in range(1, args.rounds + 1):
            still, whole = in_the_foreground(folder, 2 * number - 1, tensors)
            report.row(way="training waits", round=number, gib=held, still_s=still, whole_s=whole)
            rows.append(["training waits", number, held, still, whole, "-"])
            beside, whole, each = beside_training(saver, 2 * number, tensors, lambda: a @ a)
            report.row(way="beside training", round=number, gib=held, still_s=beside, whole_s=whole, slower=each / rest)
            rows.append(["beside training", number, held, beside, whole, each / rest])
        report.table(["save", "round", "GiB", "still s", "whole s", "steps during a save"], rows)
        report.text(f"Training stands still for {beside / still:.3g} of the time in the last round ({still / beside:.3g} times shorter).")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.write("A copy in memory bounds the one, the disk and SHA-256 the other. On GPUs the copy goes to pinned memory of the host.")


if __name__ == "__main__":
    main()
