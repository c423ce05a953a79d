"""Mirasol beside the `mirasol-pytorch` package at one equal shape: training step, memory, generation.

    python tests/benchmarks/rival.py --rival-python PYTHON [--frames 16,64,256,512] [--rounds 7]

PYTHON has the rival installed (`peer_lucidrains.py` of the shared benchmarks says how; that script is the driver: it keeps
one process per contestant, asks them in turn, and sets aside what was measured while others used the CPU).

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

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


class Case:
    """The adapter that the driver imports."""

    def __init__(self, shape: dict, chunks: int):
        import torch

        from mirasol_cli.model.mirasol import Mirasol

        self.shape, self.vocabulary = shape, shape["vocab"] + 1  # the start token is 0
        self.geometry = geometry(shape, chunks)
        self.model = Mirasol(model_config(shape), self.geometry, self.vocabulary)
        self.weights = {"text": 1.0, "latent": 1.0, "video": 1.0, "audio": 1.0}
        self.params = sum(parameter.numel() for parameter in self.model.parameters())
        self.optimizer = self._optimizer()
        self.inputs, self.prompt_inputs = self._inputs(shape["batch"]), self._inputs(shape["generate_batch"])
        length = shape["text_tokens"]
        tokens = torch.randint(1, self.vocabulary, (shape["batch"], 1, length))
        start = torch.zeros(shape["batch"], 1, 1, dtype=torch.int64)
        self.tokens = torch.cat([start, tokens], dim=2)

    def _optimizer(self):  # type: ignore[no-untyped-def]
        from mirasol_cli.config.schema import TrainRecipe
        from mirasol_cli.training.optimizer import build_optimizer

        return build_optimizer(self.model, TrainRecipe(lr=self.shape["learning_rate"]))

    def _inputs(self, batch: int):  # type: ignore[no-untyped-def]
        """Raw clips: uint8 frames [T, F, H, W, 3] each, log-mel, thumbnails."""
        import numpy as np
        import torch

        geometry, random = self.geometry, np.random.default_rng(0)
        frames = random.integers(0, 256, (batch, geometry.chunks, *geometry.chunk_shape, 3), dtype=np.uint8)
        mel = torch.randn(batch, geometry.chunks, geometry.audio.n_mels, geometry.audio.columns)
        thumbnails = torch.randint(0, 256, (batch, geometry.chunks, 4, 32, 32, 3), dtype=torch.uint8)
        return frames, mel, thumbnails

    def _media(self, inputs):  # type: ignore[no-untyped-def]
        import torch

        from mirasol_cli.media.tubes import cut_tubes
        from mirasol_cli.model.batch import MediaBatch

        frames, mel, thumbnails = inputs
        clips = [cut_tubes(clip, self.geometry) for clip in frames]
        tubes = tuple(torch.stack([torch.from_numpy(kind) for kind in kinds]) for kinds in zip(*clips, strict=True))
        return MediaBatch(tubes=tubes, mel_BTZS=mel, thumbnails=thumbnails)

    def train_step(self) -> float:
        import torch

        from mirasol_cli.model.batch import TextBatch

        self.model.train()
        valid = torch.ones_like(self.tokens, dtype=torch.bool)
        target = valid.clone()
        target[:, :, 0] = False
        text = TextBatch(tokens_BQL=self.tokens, valid_BQL=valid, target_BQL=target)
        loss = self.model(self._media(self.inputs), text, self.weights).total(self.weights)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def generate(self, tokens: int) -> None:
        """Greedy, without an end token, so that exactly `tokens` tokens come."""
        import torch

        from mirasol_cli.inference.decoding import greedy

        self.model.eval()
        with torch.inference_mode():
            memory = self.model.text_kv(self.model.encode(self._media(self.prompt_inputs)))
        answer = greedy(self.model.text, memory, [[[0]]] * self.shape["generate_batch"], eos=-1, max_tokens=tokens)
        if len(answer[0][0].ids) != tokens:
            raise RuntimeError(f"{len(answer[0][0].ids)} tokens came, {tokens} were asked for")


def geometry(shape: dict, chunks: int):  # type: ignore[no-untyped-def]
    from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube

    height, width, time = shape["video_patch"]
    tube = Tube(kernel=(time, height, width), stride=(time, height, width))
    audio = AudioGeometry(n_mels=shape["mels"], columns=2 * shape["audio_frames_per_chunk"], patch=shape["audio_patch"][0])
    found = ClipGeometry(frames=chunks * shape["frames_per_chunk"], chunks=chunks, size=shape["image"], tubes=(tube,), audio=audio)
    if (found.video_tokens, found.audio_tokens) != (32, 8):
        raise RuntimeError(f"{found.video_tokens} + {found.audio_tokens} tokens per chunk, not 32 + 8")
    return found


def model_config(shape: dict):  # type: ignore[no-untyped-def]
    from mirasol_cli.model.config import (
        CombinerConfig,
        EncoderConfig,
        LatentConfig,
        ModelConfig,
        ReconstructionConfig,
        TextConfig,
    )

    width, heads = shape["dim"], shape["heads"]
    size = {"width": width, "heads": heads, "mlp_dim": width * shape["ff_mult"]}
    half = {"width": width // 2, "heads": heads // 2, "mlp_dim": width * shape["ff_mult"] // 2}
    return ModelConfig(
        encoder=EncoderConfig(**size, layers=shape["encoder_depth"], share=False),
        combiner=CombinerConfig(**size, layers=shape["combiner_depth"], kind="transformer", context="chunk", num_outputs=shape["m"]),
        latent=LatentConfig(**size, layers=shape["autoregressive_depth"]),
        reconstruction=ReconstructionConfig(**half, layers=1),
        text=TextConfig(
            width=width, heads=heads, kv_heads=heads, layers=shape["text_depth"], mlp_dim=688, cross_attention_every=1, tie_embeddings=False
        ),
        heads=("latent", "video", "audio"),
    )


# ---------------------------------------------------------------------------------------------------------------- the run


def count_flops(driver: Path, who: str, chunks: int) -> dict[str, float]:
    """FLOPs of the matrix products of one training step, attention included as it is computed."""
    import importlib.util

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    spec = importlib.util.spec_from_file_location("driver", driver)
    if spec is None or spec.loader is None:
        raise SystemExit(f"cannot read {driver}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):  # type: ignore[no-untyped-def]
        """The kernel's fused products are not counted on the CPU; these are the same ones, apart."""
        return torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]

    torch.nn.functional.scaled_dot_product_attention = attention
    case = Case(module.SHAPE, chunks) if who == "mirasol" else module.PeerCase(module.SHAPE, chunks, who)
    with FlopCounterMode(display=False) as counter:
        case.train_step()
    return {"flops": counter.get_total_flops(), "params": case.params}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from common import Report, arguments, environment, gemm_gflops, verdict
    from tests.paths import SHARED

    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--driver", type=Path, default=SHARED / "bench" / "peer_lucidrains.py" if SHARED else None)
    parser.add_argument("--rival-python", default="python3", help="Python that has the rival installed")
    parser.add_argument("--variants", default="sdpa", help="of the rival: shipped, sdpa (its attention flag repaired)")
    parser.add_argument("--frames", default="16,64,256,512")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    parser.add_argument("--chunks", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.driver is None:
        parser.error("--driver: where is peer_lucidrains.py?")
    if args.count:
        print(json.dumps(count_flops(args.driver, args.count, args.chunks)))
        return
    frames = "16" if args.smoke else args.frames
    rounds = 1 if args.smoke else args.rounds

    import torch

    torch.set_num_threads(args.threads)
    plain = Path(__file__).with_name("rival_default_adamw.py")
    rate_before = gemm_gflops()
    command = [
        args.rival_python, str(args.driver), "--variants", args.variants, "--frames", frames, "--rounds", str(rounds),
        "--threads", str(args.threads), "--patience", str(args.patience),
        "--against", f"mirasol={sys.executable}:{Path(__file__).resolve()}", "--against", f"mirasol/default-adamw={sys.executable}:{plain}",
    ]  # fmt: skip
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert driver.stdout is not None
    report = Report("rival", "Model against the rival", smoke=args.smoke)
    found: dict[tuple[str, int], dict] = {}
    for line in driver.stdout:
        result = json.loads(line)
        found[result["impl"], result["frames"]] = result
        report.row(**result)
    if driver.wait():
        raise SystemExit(f"{args.driver} failed")
    rate = (rate_before + gemm_gflops()) / 2
    report.text(f"Matrix products of 2048 x 2048 reach {rate:.0f} GFLOP/s on {args.threads} threads, measured before and after.")

    flops: dict[tuple[str, int], float] = {}
    for name, count in found:
        python, who = (args.rival_python, name.rpartition("/")[2]) if "pytorch" in name else (sys.executable, "mirasol")
        words = [python, __file__, "--driver", str(args.driver), "--count", who, "--chunks", str(count // 4)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment())
        flops[name, count] = json.loads(done.stdout.strip().splitlines()[-1])["flops"]

    steps, speeds = [], []
    goals = {16: 0.6, 64: 0.75, 256: 0.85, 512: 0.85}
    for count in map(int, frames.split(",")):
        rival = found.get(("mirasol-pytorch/sdpa", count))
        for (name, at), result in found.items():
            if at != count:
                continue
            share = flops[name, count] / result["train_step_s"] / 1e9 / rate
            ours, ratio, memory, faster = name.startswith("mirasol") and "pytorch" not in name, "", "", ""
            if ours and rival:
                step_ratio, goal = result["train_step_s"] / rival["train_step_s"], goals.get(count)
                ratio = verdict(step_ratio, goal, at_most=True) if goal and name == "mirasol" else f"{step_ratio:.2f}"
                memory = verdict(result["rss_mb"] / rival["rss_mb"], 0.7, at_most=True)
                gain = result["gen_tok_s"] / rival["gen_tok_s"]
                faster = verdict(gain, 2.0, at_most=False) if count == 512 and name == "mirasol" else f"{gain:.2f}"
            report.row(impl=name, frames=count, gflops=flops[name, count] / 1e9, gemm_share=share)
            steps.append([count, name, f"{result['params'] / 1e6:.1f} M", result["train_step_s"], result["train_step_min_s"], ratio,
                          flops[name, count] / 1e9, f"{share:.0%}", result["rss_mb"], memory, result["quiet"]["train"]])  # fmt: skip
            speeds.append(
                [count, name, result["gen_tok_s"], faster, result["decode_tok_s"], result["encode_s"], result["quiet"]["generate"]]
            )
    report.table(
        ["frames", "model", "parameters", "step s", "best s", "of rival", "GFLOP a step", "of GEMM rate", "peak MiB", "of rival", "quiet"],
        steps,
    )
    report.table(["frames", "model", "whole generation tok/s", "times rival", "decoding tok/s", "encoding s", "quiet"], speeds)
    first, last = (found.get(("mirasol", count)) for count in (16, 512))
    if first and last and first["decode_tok_s"] and last["decode_tok_s"]:
        held = verdict(last["decode_tok_s"] / first["decode_tok_s"], 0.9, at_most=False)
        report.text(f"Our decoding speed at 512 frames over that at 16: {held}.")
    report.write(
        "Our step uses the optimizer that training uses (AdamW, fused); `default-adamw` has torch's default as the rival has. What is "
        "equal and what differs by nature is told in the script's docstring."
    )


if __name__ == "__main__":
    main()
