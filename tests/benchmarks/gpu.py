"""Training and decoding on one GPU: bf16, `torch.compile` per block, FSDP2 on one process; under ten minutes in one call.

    python tests/benchmarks/gpu.py                      # small, base, mirasol3b at 128 and 512 frames, then 200 steps of base
    python tests/benchmarks/gpu.py --sizes small --frames 128 --steps 200
    python tests/benchmarks/gpu.py --smoke              # the same code on the CPU at the `demo` preset

Needs torch and this package, nothing else: batches are made here, so no decoder, no shards, no network. Every (size, frames) is a
process of its own, so that peak memory is its own; one that runs out of memory is told and the next one goes on, and a point
that does not fit into the time that is left is skipped and named.

MFU: FLOPs of the model's matrix products (three times the forward pass; recomputation does not count) over the time and the
data sheet's dense bf16 rate. The last part trains `--steps` steps on eight batches that repeat: every loss must be finite, and
the loss must have fallen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from common import Report, environment, peak_mib, random_media, random_text, resolved_model

VOCABULARY = {"demo": 512, "small": 8000, "base": 8000, "mirasol3b": 32000}
CHUNKS = {16: 2, 128: 16, 512: 64}
BATCH = {"demo": 2, "small": 8, "base": 8, "mirasol3b": 2}  # clips at 128 frames; a quarter of it (at least 1) at 512
QUESTIONS, LENGTH, TARGET = 4, 64, 8
LIMIT_S = 570.0


class Trial:
    """One model on one device, sharded over one process."""

    def __init__(self, args: argparse.Namespace):
        import torch
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        from mirasol_cli.config.schema import TrainRecipe
        from mirasol_cli.model.mirasol import Mirasol
        from mirasol_cli.runtime.distributed import prepare_blocks
        from mirasol_cli.training.flops import forward_flops
        from mirasol_cli.training.optimizer import build_optimizer

        self.device = torch.device("cuda" if torch.cuda.is_available() and not args.smoke else "cpu")
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        overrides = [f"clip.frames={args.frames}", f"clip.chunks={CHUNKS[args.frames]}", *(["clip.size=64"] if args.smoke else [])]
        self.config, self.geometry = resolved_model(args.size, *overrides)
        self.vocabulary, self.weights, self.clips = VOCABULARY[args.size], {"text": 1.0, "latent": 1.0, "video": 1.0}, args.clips
        with self.device:
            self.model = Mirasol(self.config, self.geometry, self.vocabulary)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        prepare_blocks(self.model, activation_checkpointing=args.checkpoint, compile=not args.no_compile)
        if not args.no_shard:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", rank=0, world_size=1)
            mesh = init_device_mesh(self.device.type, (1,))
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
            settings: dict[str, Any] = {"mesh": mesh, "mp_policy": policy} if self.device.type == "cuda" else {"mesh": mesh}
            for block in self.model.blocks():
                fully_shard(block, **settings)
            fully_shard(self.model, **settings)
        self.optimizer = build_optimizer(self.model, TrainRecipe(lr=2e-4))
        flops = forward_flops(self.model, questions=QUESTIONS, tokens=LENGTH, targets=TARGET)
        self.forward_flops = self.clips * sum(flops.values())

    def autocast(self) -> contextlib.AbstractContextManager:
        import torch

        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()

    def batch(self, seed: int) -> tuple[Any, Any]:
        import torch

        torch.manual_seed(seed)
        where = str(self.device)
        text = random_text(self.clips, QUESTIONS, self.vocabulary, length=LENGTH, target=TARGET, device=where)
        return random_media(self.geometry, self.clips, where), text

    def step(self, batch: tuple[Any, Any]) -> Any:
        """One optimizer step; returns the loss without waiting for it."""
        from torch.nn.utils import clip_grad_norm_

        with self.autocast():
            loss = self.model(*batch, self.weights).total(self.weights)
        loss.backward()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float:
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else peak_mib() / 1024


def speed(trial: Trial, rounds: int) -> dict[str, Any]:
    """Step time after the compiler has settled, MFU, peak memory."""
    from mirasol_cli.training.memory import peak_flops_per_s

    batch, began = trial.batch(0), time.perf_counter()
    for _ in range(3):
        loss = trial.step(batch)
    trial.wait()
    settled, times = time.perf_counter() - began, []
    for _ in range(rounds):
        start = time.perf_counter()
        loss = trial.step(batch)
        trial.wait()
        times.append(time.perf_counter() - start)
    median, peak = statistics.median(times), peak_flops_per_s(trial.device, True)
    rate = 3 * trial.forward_flops / median
    return {
        "parameters": trial.parameters, "clips": trial.clips, "step_s": median, "min_s": min(times), "max_s": max(times),
        "loss": loss.item(),
        "clips_per_s": trial.clips / median, "tflops": rate / 1e12, "mfu": rate / peak if peak else None,
        "peak_gib": trial.peak_gib(), "first_steps_s": settled,
    }  # fmt: skip


def decoding(trial: Trial, tokens: int) -> dict[str, Any]:
    """Greedy decoding of `tokens` tokens for QUESTIONS questions to each clip, from the clips' memory on; encoding apart."""
    import torch

    from mirasol_cli.inference.decoding import greedy

    trial.model.eval()
    media, text = trial.batch(1)
    prompts = text.tokens_BQL[:, :, :16].tolist()
    with torch.inference_mode(), trial.autocast():
        trial.model.encode(media)
        trial.wait()
        start = time.perf_counter()
        memory = trial.model.text_kv(trial.model.encode(media))
        trial.wait()
        encoded = time.perf_counter()
        greedy(trial.model.text, memory, prompts, eos=-1, max_tokens=2)
        trial.wait()
        begun = time.perf_counter()
        greedy(trial.model.text, memory, prompts, eos=-1, max_tokens=tokens)
        trial.wait()
        seconds = time.perf_counter() - begun
    rows = trial.clips * QUESTIONS
    return {"encode_s": encoded - start, "rows": rows, "tokens_per_s": rows * tokens / seconds, "tokens_per_s_and_row": tokens / seconds}


def finite_run(trial: Trial, steps: int) -> dict[str, Any]:
    """`steps` steps on eight batches in turn."""
    import torch

    batches = [trial.batch(seed) for seed in range(8)]
    start = time.perf_counter()
    losses = torch.stack([trial.step(batches[number % len(batches)]) for number in range(steps)]).tolist()
    if not all(map(math.isfinite, losses)):
        raise SystemExit(f"a loss is not finite: {losses}")
    first, last = statistics.mean(losses[:8]), statistics.mean(losses[-8:])
    if steps >= 50 and last >= first:
        raise SystemExit(f"the loss did not fall: {first:.3f} to {last:.3f}")
    return {"steps": steps, "first_loss": first, "last_loss": last, "seconds": time.perf_counter() - start, "peak_gib": trial.peak_gib()}


def worker(args: argparse.Namespace) -> None:
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    try:
        trial = Trial(args)
        if args.task == "speed":
            found = speed(trial, args.rounds)
        elif args.task == "decode":
            found = decoding(trial, 8 if args.smoke else 32)
        else:
            found = finite_run(trial, args.steps)
    except torch.OutOfMemoryError as error:
        found = {"out_of_memory": str(error).split(". ")[0]}
    print(json.dumps({**found, "device": torch.cuda.get_device_name() if trial_on_gpu(args) else "cpu", "torch": torch.__version__}))
    sys.stdout.flush()
    os._exit(0)  # the process group of one needs no farewell


def trial_on_gpu(args: argparse.Namespace) -> bool:
    import torch

    return torch.cuda.is_available() and not args.smoke


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="small,base,mirasol3b")
    parser.add_argument("--lengths", default="128,512", help="frames per clip, in chunks of 8")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps")
    parser.add_argument("--steps", type=int, default=200, help="of the finite run; 0 leaves it out")
    parser.add_argument("--batch", type=int, help="clips; default by size and length")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-shard", action="store_true", help="without FSDP2")
    parser.add_argument("--no-checkpoint", action="store_true", help="mirasol3b without activation checkpointing")
    parser.add_argument("--smoke", action="store_true", help="`demo` preset, 16 frames, on the CPU")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        return worker(args)
    began = time.monotonic()
    sizes, lengths = (["demo"], [16]) if args.smoke else (args.sizes.split(","), [int(length) for length in args.lengths.split(",")])
    steps = min(args.steps, 12) if args.smoke else args.steps
    report = Report("gpu", "Training and decoding on one GPU", smoke=args.smoke)
    switches = [name for name in ("--no-compile", "--no-shard", "--smoke") if getattr(args, name[2:].replace("-", "_"))]

    def run(task: str, size: str, frames: int, *words: str) -> dict[str, Any]:
        left = LIMIT_S - (time.monotonic() - began)
        if left < 20:
            return {"skipped": "no time left"}
        clips = args.batch or max(1, BATCH[size] // (4 if frames > 128 else 1))
        recompute = ["--checkpoint"] if size == "mirasol3b" and not args.no_checkpoint else []
        command = [sys.executable, __file__, "--task", task, "--size", size, "--frames", str(frames), "--clips", str(clips)]
        # FSDP2's hooks sit on `forward`; answering calls other methods, so decoding runs on the whole model.
        options = [*switches, *recompute, "--rounds", str(args.rounds), *words]
        if task == "decode":
            options = [*(option for option in options if option != "--checkpoint"), "--no-shard", "--no-compile"]
        try:
            done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=left, env=environment(), check=False)
        except subprocess.TimeoutExpired:
            return {"skipped": "no time left"}
        if done.returncode:
            return {"failed": done.stderr.strip()[-600:]}
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    training, texts, device = [], [], ""
    failed = False
    for frames in lengths:
        for size in sizes:
            found = run("speed", size, frames)
            device = found.get("device", device)
            report.row(task="speed", size=size, frames=frames, **found)
            failed |= "failed" in found
            if "step_s" not in found:
                training.append([size, frames, next(f"{key}: {value}" for key, value in found.items())[:160], *[""] * 6])
                continue
            mfu = f"{found['mfu']:.1%}" if found["mfu"] else "unknown peak"
            training.append([size, frames, f"{found['parameters'] / 1e6:.0f} M", found["clips"], found["step_s"],
                             f"{found['min_s']:.3g}-{found['max_s']:.3g}", found["tflops"], mfu, found["peak_gib"]])  # fmt: skip
    if steps:
        size = "demo" if args.smoke else "base" if "base" in sizes else sizes[0]
        found = run("run", size, lengths[0], "--steps", str(steps))
        report.row(task="run", size=size, frames=lengths[0], **found)
        failed |= "failed" in found
        report.text(f"Run of {steps} steps (`{size}`, {lengths[0]} frames): {json.dumps(found)}")
    for frames in lengths:
        for size in sizes:
            found = run("decode", size, frames)
            report.row(task="decode", size=size, frames=frames, **found)
            failed |= "failed" in found
            texts.append([size, frames, *(found.get(key, "-") for key in ("rows", "tokens_per_s", "tokens_per_s_and_row", "encode_s"))])
    report.table(["preset", "frames", "parameters", "clips", "step s", "spread", "TFLOP/s", "MFU", "peak GiB"], training)
    report.table(["preset", "frames", "rows side by side", "decoding tok/s", "tok/s per row", "encoding s"], texts)
    report.write(
        f"Device: {device}. bf16 autocast, FSDP2 on one process, compile per block{' (switched off)' if args.no_compile else ''}; "
        "`mirasol3b` recomputes its blocks in the backward pass, which is not counted as work. Decoding runs eager and unsharded."
    )
    if failed:
        raise SystemExit("a part failed; see the rows above")


if __name__ == "__main__":
    main()
