"""The Token Turing Machine as Combiner against the Transformer that sees history: FLOPs, time and memory by number of chunks.

    python tests/benchmarks/ttm_against_transformer.py

FLOPs are those of each preset's Combiner at 224 px (the table that `--dry-run` prints from). Time (forward and backward of the
Combiner alone) and memory are those of the `small` preset's, of one clip of up to 16 chunks of 471 tokens, and of a small one
(width 128, one layer, 64 tokens a chunk) up to 128 chunks: there a layer costs little, and TTM's own steps count.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from common import Report, alternate, arguments, in_child, peak_mib, resolved_model

CHUNKS = (4, 16, 64)
TIMED = {"small": (471, (1, 2, 4, 8, 16)), "demo": (64, (4, 16, 64, 128))}
"""Preset: (tokens a chunk, numbers of chunks)."""


def forms(config: Any) -> dict[str, Any]:
    return {
        "ttm": replace(config, kind="ttm"),
        "history": replace(config, kind="transformer", context="history"),
        "chunk": replace(config, kind="transformer", context="chunk"),
    }


def flops_tables(report: Report) -> str:
    """Writes the table; returns what it shows."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mirasol_cli.model.combiner import build_combiner

    def combiner_flops(form: Any, width: int, tokens: int, chunks: int) -> int:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            build_combiner(form, width, (tokens,)).requires_grad_(False)(torch.empty(1, chunks, tokens, width))
        return counter.get_total_flops()

    rows = []
    for preset in ("small", "base", "mirasol3b"):
        config, geometry = resolved_model(preset)
        for chunks in CHUNKS:
            count = {
                name: combiner_flops(form, config.encoder.width, geometry.tokens_per_chunk, chunks) / 1e9
                for name, form in forms(config.combiner).items()
            }
            report.row(preset=preset, chunks=chunks, gflops=count)
            rows.append([preset, chunks, *(round(count[name], 1) for name in ("ttm", "history", "chunk")), count["history"] / count["ttm"]])
    report.table(["preset", "chunks", "TTM GFLOP", "Transformer, history", "Transformer, chunk only", "history / TTM"], rows)
    below = [row for row in rows if row[2] < row[3]]
    if len(below) == len(rows):
        return "In FLOPs TTM is below the Transformer with history in every row: its Transformer sees only the M tokens read."
    return f"In FLOPs TTM is below the Transformer with history in {len(below)} of {len(rows)} rows."


def work(preset: str, name: str, chunks: int) -> Any:
    import torch

    from mirasol_cli.model.combiner import build_combiner

    torch.manual_seed(0)
    config, _ = resolved_model(preset)
    tokens, _ = TIMED[preset]
    combiner = build_combiner(forms(config.combiner)[name], config.encoder.width, (tokens,))
    x = torch.randn(1, chunks, tokens, config.encoder.width, requires_grad=True)

    def run() -> None:
        out, _ = combiner(x)
        out.sum().backward()

    return run


def time_and_memory(report: Report, preset: str, args: Any) -> None:
    tokens, numbers = TIMED[preset]
    names = ("ttm", "history", "chunk")
    rows, faster = [], []
    for chunks in numbers[:2] if args.smoke else numbers:
        works = {name: work(preset, name, chunks) for name in names}
        timings = alternate(works, 1 if args.smoke else args.rounds, patience=args.patience)
        memory = {name: in_child(__file__, "--threads", str(args.threads), "--peak", preset, name, str(chunks))["mib"] for name in names}
        for name in names:
            report.row(preset=preset, chunks=chunks, combiner=name, mib=memory[name], **timings[name].plain())
        faster.append(timings["ttm"].median < timings["history"].median)
        rows.append([chunks, *(timings[name] for name in names), *(round(memory[name], 1) for name in names)])
    report.table([f"`{preset}`: chunks", "TTM s", "history s", "chunk only s", "TTM MiB", "history MiB", "chunk only MiB"], rows)
    first = next((k for k in range(len(faster)) if all(faster[k:])), None)
    crossing = "was the slower one at the longest clip" if first is None else f"is the faster one from {rows[first][0]} chunks on"
    report.text(f"`{preset}`, {tokens} tokens a chunk: of the numbers measured, TTM {crossing}.")


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--peak", nargs=3, help="(used by the script itself)")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    if args.peak:
        run = work(args.peak[0], args.peak[1], int(args.peak[2]))
        before = peak_mib()
        run()
        print(json.dumps({"mib": peak_mib() - before}))
        return
    report = Report("ttm_against_transformer", "TTM against Transformer with history", smoke=args.smoke)
    in_flops = flops_tables(report)
    for preset in TIMED:
        time_and_memory(report, preset, args)
    report.write(in_flops)


if __name__ == "__main__":
    main()
