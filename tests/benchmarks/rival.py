"""Mirasol beside the `mirasol-pytorch` package at one equal shape: training step, memory, generation.

    python tests/benchmarks/rival.py --rival-python PYTHON [--frames 16,64,256,512] [--rounds 5]

PYTHON has the rival; Mirasol does not need it. It runs with these versions (later ones of x-transformers refuse its options):

    python -m venv --system-site-packages rival
    rival/bin/pip install --no-deps mirasol-pytorch==0.0.16 x-transformers==1.28.5 einops==0.8.2 beartype==0.23.1
    python tests/benchmarks/rival.py --rival-python rival/bin/python --smoke

Each model lives in a process of its own (`rival_models.py`); they are asked in turn, so that noise falls on all alike.

What is equal: 4 frames of 64 px per chunk cut into 32 tokens of 16x16x2 px, 8 tokens of sound, separate encoders for
picture and sound (depth 2), a Combiner that sees its chunk only (depth 2, 40 tokens in, 8 out), 4 layers over the 8 x chunks
latents, causal in chunks, 4 layers of text that all cross-attend to all latents; width 256, 4 heads of 64, batch 2, 64 text
tokens behind a start token, vocabulary 257, AdamW, float32.

Choices where the two differ by nature:
- Sound: our patches are square, so a chunk's spectrogram is 64 x 32 in 16 x 16 patches (the rival: 64 x 16 in 16 x 8):
  8 tokens each, ours from twice the numbers.
- Losses: text, next latent, next picture and next sound on both sides. Ours rebuilds through a small Transformer of half the
  width and one layer (the presets have one to six): its FLOPs are nearer to the rival's head than with two; the rival has one
  linear layer from all 8 latents of a chunk.
- Feed-forward of the text layers: ours is gated, three matrices of 256 x 688 (the rival: two of 256 x 1024), equal parameters.
- Pixels: ours come as uint8 (as shards hold them), the rival's as float32. Cutting the tubes is part of both timed calls
  here, although `prepare` does it once for all epochs; the thumbnails (the target) are cut beforehand.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import Report, Timing, arguments, busy_seconds, environment, gemm_gflops, verdict, wait_for_quiet
from rival_models import FRAMES_PER_CHUNK, NAMES, RIVAL

MODELS = Path(__file__).with_name("rival_models.py")
TOKENS = 64
"""Tokens of one generation."""
STEP_GOALS = {16: 0.6, 64: 0.75, 256: 0.85, 512: 0.85}
"""Frames -> our step over the rival's."""


class Contestant:
    """A model in its own process, under the Python that has it."""

    def __init__(self, name: str, command: list[str]):
        self.name, self.timings = name, {"train": Timing(), "first": Timing(), "whole": Timing()}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())

    def ask(self, order: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise SystemExit(f"{self.name} ended with {self.process.wait()}; it says why above") from None

    def sample(self, what: str, order: str, patience: float) -> None:
        quiet, busy = wait_for_quiet(patience), busy_seconds()
        reply = self.ask(order)
        foreign = busy_seconds() - busy - reply["cpu"]
        self.timings[what].samples.append((reply["seconds"], quiet and foreign < max(0.03, 0.1 * reply["seconds"])))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(commands: dict[str, list[str]], frames: int, rounds: int, patience: float) -> list[dict[str, Any]]:
    """One row per model, medians of the quiet samples (of all where none was quiet)."""
    players = [Contestant(name, command) for name, command in commands.items()]

    def collect(orders: dict[str, str]) -> None:
        for player in players:  # warm-up, not counted
            player.ask(next(iter(orders.values())))
        for _ in range(3 * rounds):
            for player in players:
                for what, order in orders.items():
                    player.sample(what, order, patience)
            if all(player.timings[what].quiet >= rounds for player in players for what in orders):
                break

    collect({"train": "train"})
    after_training = {player.name: player.ask("memory") for player in players}
    collect({"first": "1", "whole": str(TOKENS)})
    for player in players:
        player.close()
    return [_row(player, after_training[player.name], frames) for player in players]


def _row(player: Contestant, about: dict[str, Any], frames: int) -> dict[str, Any]:
    train, first, whole = player.timings["train"], player.timings["first"], player.timings["whole"]
    decoding = whole.median - first.median  # all but the encoding and the first token
    return {
        "impl": player.name, "frames": frames, "params": about["params"], "rss_mb": about["rss_mb"],
        "train_step_s": train.median, "train_step_min_s": train.low, "encode_s": first.median,
        "gen_tok_s": TOKENS / whole.median, "decode_tok_s": (TOKENS - 1) / decoding if decoding > 0 else None,
        "quiet": {what: timing.quiet for what, timing in player.timings.items()},
    }  # fmt: skip


def main() -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--rival-python", default=sys.executable, help="Python that has the rival installed")
    parser.add_argument("--variants", default="sdpa", help="of the rival: shipped, sdpa (its attention flag repaired)")
    parser.add_argument("--frames", default="16,64,256,512")
    args = parser.parse_args()
    lengths = [16] if args.smoke else [int(count) for count in args.frames.split(",")]
    rounds = 1 if args.smoke else args.rounds
    names = [name for name in NAMES if not name.startswith(RIVAL) or name.partition("/")[2] in args.variants.split(",")]
    names.sort(key=lambda name: not name.startswith(RIVAL))
    if not 0 < len(names) - 2 == len(args.variants.split(",")):
        parser.error(f"--variants {args.variants}: choose from shipped, sdpa")
    if any(count < FRAMES_PER_CHUNK or count % FRAMES_PER_CHUNK for count in lengths):
        parser.error(f"--frames {args.frames}: each must be a multiple of {FRAMES_PER_CHUNK}")
    if subprocess.run([args.rival_python, "-c", "import mirasol_pytorch"], capture_output=True, check=False).returncode:
        parser.error(f"{args.rival_python} has no mirasol-pytorch that can be imported; see --help for how it is installed")

    import torch

    torch.set_num_threads(args.threads)

    def command(name: str, frames: int) -> list[str]:
        python = args.rival_python if name.startswith(RIVAL) else sys.executable
        return [python, str(MODELS), name, "--chunks", str(frames // FRAMES_PER_CHUNK), "--threads", str(args.threads)]

    report = Report("rival", "Model against the rival", smoke=args.smoke)
    rate_before = gemm_gflops()
    found = [row for frames in lengths for row in measure({name: command(name, frames) for name in names}, frames, rounds, args.patience)]
    rate = statistics.mean([rate_before, gemm_gflops()])
    report.text(f"Matrix products of 2048 x 2048 reach {rate:.0f} GFLOP/s on {args.threads} threads, measured before and after.")
    for row in found:
        words = [*command(row["impl"], row["frames"]), "--count"]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment())
        row["gflops"] = json.loads(done.stdout.splitlines()[-1])["flops"] / 1e9
        row["gemm_share"] = row["gflops"] / row["train_step_s"] / rate
        report.row(**row)
    _tables(report, found)
    report.write(
        "Our step uses the optimizer that training uses (AdamW, fused); `default-adamw` has torch's default as the rival has. What is "
        "equal and what differs by nature is told in the script's docstring."
    )


def _tables(report: Report, found: list[dict[str, Any]]) -> None:
    by_name = {(row["impl"], row["frames"]): row for row in found}
    steps, speeds = [], []
    for row in found:
        name, frames, of_rival, memory, faster = row["impl"], row["frames"], "", "", ""
        rival = by_name.get((f"{RIVAL}/sdpa", frames)) or by_name[f"{RIVAL}/shipped", frames]
        if not name.startswith(RIVAL):
            ratio, goal = row["train_step_s"] / rival["train_step_s"], STEP_GOALS.get(frames)
            of_rival = verdict(ratio, goal, at_most=True) if goal and name == "mirasol" else f"{ratio:.2f}"
            memory = verdict(row["rss_mb"] / rival["rss_mb"], 0.7, at_most=True)
            gain = row["gen_tok_s"] / rival["gen_tok_s"]
            faster = verdict(gain, 2.0, at_most=False) if frames == 512 and name == "mirasol" else f"{gain:.2f}"
        steps.append([frames, name, f"{row['params'] / 1e6:.1f} M", row["train_step_s"], row["train_step_min_s"], of_rival, row["gflops"],
                      f"{row['gemm_share']:.0%}", row["rss_mb"], memory, row["quiet"]["train"]])  # fmt: skip
        speeds.append([frames, name, row["gen_tok_s"], faster, row["decode_tok_s"], row["encode_s"], row["quiet"]["whole"]])
    report.table(
        ["frames", "model", "parameters", "step s", "best s", "of rival", "GFLOP a step", "of GEMM rate", "peak MiB", "of rival", "quiet"],
        steps,
    )
    report.table(["frames", "model", "whole generation tok/s", "times rival", "decoding tok/s", "encoding s", "quiet"], speeds)
    first, last = (by_name.get(("mirasol", frames)) for frames in (16, 512))
    if first and last and first["decode_tok_s"] and last["decode_tok_s"]:
        held = verdict(last["decode_tok_s"] / first["decode_tok_s"], 0.9, at_most=False)
        report.text(f"Our decoding speed at 512 frames over that at 16: {held}.")


if __name__ == "__main__":
    main()
