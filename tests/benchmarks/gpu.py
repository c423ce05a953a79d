"""Training and decoding on one GPU and on two: what a step costs, how much of the card it uses, what a save costs.

    python tests/benchmarks/gpu.py                      # one GPU and two; base, mirasol3b; 32, 128, 512 frames; compiled and not
    python tests/benchmarks/gpu.py --gpus 1 --sizes base --frames 128 --compile yes --steps 200
    python tests/benchmarks/gpu.py --smoke              # the same code on CPU processes at the `demo` preset, in a minute

Needs torch and this package, nothing else: batches are made here, so no decoder, no shards, no network. Every point is processes of
its own, so that peak memory is its own; one that runs out of memory is told and the next one goes on, and a point that does not fit
into the time that is left (`--seconds`) is skipped and named. Parts of the table may be run in several calls.

One GPU holds the whole model; two shard it as `train.parallel=fsdp` does (`runtime.distributed.parallelise`). `mirasol3b` recomputes its
blocks. MFU: FLOPs of the model's matrix products (three times the forward pass; recomputation does not count) over the time and the
data sheet's dense bf16 rate of all cards. Tokens: of the encoders and of the text, per second, over all cards. A save is that of
`BackgroundSaver`: `still` is what training waits for it, `whole` until its manifest is on disk; the second one counts, as the first
also allocates pinned memory. The last part trains `--steps` steps on eight batches that repeat: every loss must be finite, and the
loss must have fallen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Report, environment, peak_mib, random_media, random_text, resolved_model

VOCABULARY = {"demo": 512, "small": 8000, "base": 8000, "mirasol3b": 32000}
CHUNKS = {16: 2, 32: 4, 128: 16, 512: 64}
BATCH = {"demo": 2, "small": 8, "base": 8, "mirasol3b": 2}  # clips a card at 128 frames; four times that at 32, a quarter at 512
QUESTIONS, LENGTH, TARGET = 4, 64, 8


class Trial:
    """One model, on this process's device, as training sets it up."""

    def __init__(self, args: argparse.Namespace, world: Any):
        import torch

        from mirasol_cli.config.schema import TrainRecipe
        from mirasol_cli.model.mirasol import Mirasol
        from mirasol_cli.runtime.distributed import parallelise, prepare_blocks
        from mirasol_cli.training.flops import forward_flops
        from mirasol_cli.training.optimizer import build_optimizer

        self.world, self.device = world, world.device
        torch.manual_seed(0)
        overrides = [f"clip.frames={args.frames}", f"clip.chunks={CHUNKS[args.frames]}", *(["clip.size=64"] if args.smoke else [])]
        self.config, self.geometry = resolved_model(args.size, *overrides)
        self.vocabulary, self.weights, self.clips = VOCABULARY[args.size], {"text": 1.0, "latent": 1.0, "video": 1.0}, args.clips
        with self.device:
            self.model = Mirasol(self.config, self.geometry, self.vocabulary)
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        flops = forward_flops(self.model, questions=QUESTIONS, tokens=LENGTH, targets=TARGET)
        self.forward_flops = self.clips * world.size * sum(flops.values())
        self.tokens = self.clips * world.size * (self.geometry.chunks * self.geometry.tokens_per_chunk + QUESTIONS * LENGTH)
        prepare_blocks(self.model, activation_checkpointing=args.recompute, compile=args.compiled)
        self.run = parallelise(self.model, world, "fsdp", bf16=self.device.type == "cuda")
        self.optimizer = build_optimizer(self.model, TrainRecipe(lr=2e-4))

    def autocast(self) -> contextlib.AbstractContextManager:
        import torch

        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()

    def batch(self, seed: int) -> tuple[Any, Any]:
        import torch

        torch.manual_seed(100 * seed + self.world.rank)
        where = str(self.device)
        text = random_text(self.clips, QUESTIONS, self.vocabulary, length=LENGTH, target=TARGET, device=where)
        return random_media(self.geometry, self.clips, where), text

    def step(self, batch: tuple[Any, Any]) -> Any:
        """One optimizer step; returns the loss without waiting for it."""
        from torch.nn.utils import clip_grad_norm_

        with self.autocast():
            loss = self.run(*batch, self.weights).total(self.weights)
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


def save(trial: Trial, folder: Path) -> dict[str, float]:
    """Seconds of the second of two saves."""
    from mirasol_cli.checkpoints.load import model_tensors
    from mirasol_cli.checkpoints.saver import BackgroundSaver
    from mirasol_cli.training.optimizer import optimizer_tensors

    with BackgroundSaver(folder, trial.world, keep=1, check=lambda: None, patience_s=60) as saver:
        for step in (1, 2):
            trial.wait()
            start = time.perf_counter()
            tensors = {"model": model_tensors(trial.model), "optimizer": optimizer_tensors(trial.optimizer)}
            saver.start(step, {"state.json": b"{}"}, tensors)
            still = time.perf_counter() - start
            saver.wait()
    return {"save_still_s": still, "save_whole_s": saver.seconds or math.nan}


def speed(trial: Trial, rounds: int) -> dict[str, Any]:
    """Step time after the compiler has settled, throughput, MFU, peak memory of the first process."""
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
    rate, cards = 3 * trial.forward_flops / median, trial.world.size
    return {
        "parameters": trial.parameters, "clips": trial.clips * cards, "step_s": median, "min_s": min(times), "max_s": max(times),
        "loss": loss.item(), "clips_per_s": trial.clips * cards / median, "tokens_per_s": trial.tokens / median,
        "tflops": rate / 1e12, "mfu": rate / (peak * cards) if peak else None, "peak_gib": trial.peak_gib(), "first_steps_s": settled,
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
    """One process of a point; the first prints what was found."""
    import torch

    from mirasol_cli.runtime.distributed import joined_world

    gpu = torch.cuda.is_available() and not args.smoke
    with joined_world(torch.device("cuda" if gpu else "cpu"), 300.0) as world:
        try:
            trial = Trial(args, world)
            if args.task == "speed":
                found = speed(trial, args.rounds) | save(trial, args.folder)
            elif args.task == "decode":
                found = decoding(trial, 8 if args.smoke else 32)
            else:
                found = finite_run(trial, args.steps)
        except torch.OutOfMemoryError as error:
            found = {"out_of_memory": str(error).split(". ")[0]}
        if world.is_main:
            print(json.dumps({**found, "device": torch.cuda.get_device_name() if gpu else "cpu", "torch": torch.__version__}), flush=True)
    os._exit(0)


def point(args: argparse.Namespace, task: str, gpus: int, size: str, frames: int, compiled: bool, left_s: float) -> dict[str, Any]:
    """What the first of `gpus` processes has found."""
    if left_s < 20:
        return {"skipped": "no time left"}
    clips = args.batch or max(1, round(BATCH[size] * 128 / frames) if frames > 16 else BATCH[size])
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    words = ["--task", task, "--size", size, "--frames", str(frames), "--clips", str(clips), "--folder", str(folder)]
    words += ["--rounds", str(args.rounds), "--steps", str(args.steps), *(["--smoke"] if args.smoke else [])]
    words += [*(["--compiled"] if compiled else []), *(["--recompute"] if size == "mirasol3b" and task != "decode" else [])]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(gpus)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(**address, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(gpus)
    ]  # fmt: skip
    deadline = time.monotonic() + left_s
    try:
        told = [process.communicate(timeout=max(1.0, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        return {"skipped": "no time left"}
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    for process, (_, error) in zip(processes, told, strict=True):
        if process.returncode:
            return {"failed": error.strip()[-600:]}
    return json.loads(told[0][0].strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="1,2", help="numbers of GPUs, comma separated")
    parser.add_argument("--sizes", default="base,mirasol3b")
    parser.add_argument("--frames", default="32,128,512", help="frames a clip, in chunks of 8")
    parser.add_argument("--compile", default="yes,no")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps")
    parser.add_argument("--steps", type=int, default=200, help="of the finite run; 0 leaves it out")
    parser.add_argument("--batch", type=int, help="clips a card; default by size and length")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all points together")
    parser.add_argument("--folder", type=Path, help="where saves go for a while; by default the temporary folder")
    parser.add_argument("--smoke", action="store_true", help="`demo` preset, 16 frames, on CPU processes; nothing is written")
    for name in ("--task", "--size"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=int, help=argparse.SUPPRESS)
    for name in ("--compiled", "--recompute"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        args.frames = int(args.frames)
        return worker(args)
    if args.smoke:
        args.sizes, args.frames, args.compile, args.steps, args.rounds = "demo", "16", "no", min(args.steps, 8), min(args.rounds, 2)
    sizes, lengths = args.sizes.split(","), [int(length) for length in args.frames.split(",")]
    cards, compiled = [int(count) for count in args.gpus.split(",")], [word == "yes" for word in args.compile.split(",")]
    report, began = Report("gpu", "Training and decoding on GPUs", smoke=args.smoke), time.monotonic()
    training, texts, device = [], [], ""

    def run(task: str, gpus: int, size: str, frames: int, compile: bool) -> dict[str, Any]:
        found = point(args, task, gpus, size, frames, compile, args.seconds - (time.monotonic() - began))
        report.row(task=task, gpus=gpus, size=size, frames=frames, compiled=compile, **found)
        return found

    every = [(gpus, size, frames, compile) for size in sizes for frames in lengths for gpus in cards for compile in compiled]
    for gpus, size, frames, compile in every:
        found = run("speed", gpus, size, frames, compile)
        device = found.get("device", device)
        head = [size, frames, gpus, "yes" if compile else "no"]
        if "step_s" not in found:
            training.append([*head, next(f"{key}: {value}" for key, value in found.items())[:160], *[""] * 8])
            continue
        mfu = f"{found['mfu']:.1%}" if found["mfu"] else "unknown peak"
        keys = ("clips", "step_s", "clips_per_s", "tokens_per_s", "tflops")
        training.append([*head, *(found[key] for key in keys), mfu, *(found[key] for key in ("peak_gib", "save_still_s", "save_whole_s"))])
    if args.steps:
        found = run("run", cards[-1], sizes[0], lengths[min(1, len(lengths) - 1)], compiled[0])
        report.text(f"Run of {args.steps} steps (`{sizes[0]}`): {json.dumps(found)}")
    for size in sizes:
        for frames in lengths:
            found = run("decode", 1, size, frames, False)
            texts.append([size, frames, *(found.get(key, "-") for key in ("rows", "tokens_per_s", "tokens_per_s_and_row", "encode_s"))])
    report.table(
        ["preset", "frames", "GPUs", "compiled", "clips", "step s", "clips/s", "tokens/s", "TFLOP/s", "MFU", "peak GiB a card",
         "save: still s", "save: whole s"],
        training,
    )  # fmt: skip
    report.table(["preset", "frames", "rows side by side", "decoding tok/s", "tok/s per row", "encoding s"], texts)
    report.write(f"Device: {device}. bf16 autocast on GPUs, float32 elsewhere. Decoding runs eager on one.")
    if any("failed" in row for row in report.rows):
        raise SystemExit("a part failed; see the rows above")


if __name__ == "__main__":
    main()
