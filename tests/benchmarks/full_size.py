"""Two training steps that show that the large sizes fit: peak memory and time, each in a process of its own.

    python tests/benchmarks/full_size.py

`small`: preset `small`, one clip of 512 frames (64 chunks of 8) at 224 px with 4 questions; within 20 GiB.
`slice`: the widths of preset `mirasol3b` with two layers per part (text: four, so that it has its cross-attention), one clip of
128 frames at 224 px.
Both in float32, without and with activation checkpointing where asked for (`--checkpoint`).
"""

from __future__ import annotations

import json
import time

from common import Report, arguments, in_child, peak_mib, random_media, random_text, resolved_model, verdict

CASES = {
    "small": ("small", ["clip.frames=512", "clip.chunks=64"], 8000),
    "slice": (
        "mirasol3b",
        ["clip.frames=128", "clip.chunks=16", "model.encoder.layers=2", "model.combiner.layers=2", "model.latent.layers=2",
         "model.reconstruction.layers=2", "model.text.layers=4"],
        32000,
    ),
}  # fmt: skip
SMOKE = ["clip.frames=16", "clip.chunks=2", "clip.size=64"]


def step(case: str, checkpoint: bool, threads: int, smoke: bool) -> dict:
    """One forward, backward and optimizer step."""
    import torch

    from mirasol_cli.config.schema import TrainRecipe
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.runtime.distributed import prepare_blocks
    from mirasol_cli.training.optimizer import build_optimizer, clip_gradients

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    preset, overrides, vocabulary = CASES[case]
    config, geometry = resolved_model("demo" if smoke else preset, *(SMOKE if smoke else overrides))
    model, weights = Mirasol(config, geometry, vocabulary), {"text": 10.0, "latent": 1.0, "video": 1.0}
    prepare_blocks(model, activation_checkpointing=checkpoint, compile=False)
    optimizer = build_optimizer(model, TrainRecipe())
    media, text = random_media(geometry, 1), random_text(1, 4, vocabulary)
    start = time.perf_counter()
    loss = model(media, text, weights).total(weights)
    loss.backward()
    norm = clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    reached = sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "tensors": len(list(model.parameters())), "tensors_reached": reached,
        "tokens_per_chunk": geometry.tokens_per_chunk, "chunks": geometry.chunks, "loss": loss.item(), "gradient_norm": norm,
        "peak_gib": peak_mib() / 1024, "step_s": time.perf_counter() - start,
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--cases", default="small,small+checkpoint,slice", help="what to run, comma separated")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(step(args.case, args.checkpoint, args.threads, args.smoke)))
        return
    report = Report("full_size", "Full size on the CPU: one training step, one clip, float32", smoke=args.smoke)
    rows = []
    for name in args.cases.split(","):
        case, _, checkpoint = name.partition("+")
        words = [
            "--case",
            case,
            "--threads",
            str(args.threads),
            *(["--checkpoint"] if checkpoint else []),
            *(["--smoke"] if args.smoke else []),
        ]
        found = in_child(__file__, *words, timeout=1800)
        report.row(case=name, **found)
        goal = verdict(found["peak_gib"], 20.0, at_most=True) if case == "small" else found["peak_gib"]
        rows.append([name, f"{found['parameters'] / 1e6:.0f} M", found["chunks"], found["tokens_per_chunk"], goal, found["step_s"],
                     found["loss"], f"{found['tensors_reached']} of {found['tensors']}"])  # fmt: skip
    report.table(
        ["case", "parameters", "chunks", "tokens a chunk", "peak GiB", "step s (single, first)", "loss", "tensors with a gradient"], rows
    )
    report.write(
        "The tensors without a gradient are those that this batch does not need (mask token, filler: nothing is masked or missing). "
        "Peak memory is that of the process; times are single first steps, told for the order of magnitude only."
    )


if __name__ == "__main__":
    main()
