"""The models that `rival.py` compares, at one shape, and the process that holds one of them.

    PYTHON tests/benchmarks/rival_models.py NAME --chunks T [--threads N] [--count]

The process reads one order per line (`train`, `memory`, or a number of tokens to generate), carries it out, and answers with one
JSON line. With --count it prints the FLOPs of one training step instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from typing import Any

from common import peak_mib

FRAMES_PER_CHUNK, SIZE, PATCH, PATCH_FRAMES = 4, 64, 16, 2  # 2 x 4 x 4 = 32 tokens of picture in a chunk
MEL_BINS, SOUND_COLUMNS, SOUND_PATCH_COLUMNS = 64, 16, 8  # of the rival: 4 x 2 = 8 tokens of sound; ours has patches of 16 x 16
WIDTH, HEADS, OUTPUTS = 256, 4, 8
ENCODER_LAYERS, COMBINER_LAYERS, LATENT_LAYERS, TEXT_LAYERS = 2, 2, 4, 4
VOCABULARY, TEXT_TOKENS = 256, 64  # without the start token
BATCH, LEARNING_RATE = 2, 1e-4

RIVAL = "mirasol-pytorch"
NAMES = ("mirasol", "mirasol/default-adamw", f"{RIVAL}/shipped", f"{RIVAL}/sdpa")


class Ours:
    """Mirasol. `default-adamw` has torch's own AdamW, as the rival has, instead of the one that training uses."""

    def __init__(self, chunks: int, variant: str):
        import torch

        from mirasol_cli.config.schema import TrainRecipe
        from mirasol_cli.model.mirasol import Mirasol
        from mirasol_cli.training.optimizer import build_optimizer

        self.geometry = _geometry(chunks)
        self.weights = {"text": 1.0, "latent": 1.0, "video": 1.0, "audio": 1.0}
        self.model = Mirasol(_config(), self.geometry, VOCABULARY + 1, self.weights)  # 0 is the start token
        if variant == "default-adamw":
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        else:
            self.optimizer = build_optimizer(self.model, TrainRecipe(lr=LEARNING_RATE))
        self.clips, self.prompt = self._clips(BATCH), self._clips(1)
        start = torch.zeros(BATCH, 1, 1, dtype=torch.int64)
        self.tokens = torch.cat([start, torch.randint(1, VOCABULARY + 1, (BATCH, 1, TEXT_TOKENS))], dim=2)

    def _clips(self, count: int) -> tuple[Any, Any, Any]:
        """uint8 frames [count, T, F, H, W, 3], log-mel [count, T, Z, S], thumbnails."""
        import numpy as np
        import torch

        geometry = self.geometry
        frames = np.random.default_rng(0).integers(0, 256, (count, geometry.chunks, *geometry.chunk_shape, 3), dtype=np.uint8)
        mel = torch.randn(count, geometry.chunks, geometry.audio.n_mels, geometry.audio.columns)
        return frames, mel, torch.randint(0, 256, (count, geometry.chunks, 4, 32, 32, 3), dtype=torch.uint8)

    def _media(self, clips: tuple[Any, Any, Any]) -> Any:
        import torch

        from mirasol_cli.media.tubes import cut_tubes
        from mirasol_cli.model.batch import MediaBatch

        frames, mel, thumbnails = clips
        kinds = zip(*(cut_tubes(clip, self.geometry) for clip in frames), strict=True)
        tubes = tuple(torch.stack([torch.from_numpy(tube) for tube in kind]) for kind in kinds)
        return MediaBatch(tubes=tubes, mel_BTZS=mel, thumbnails=thumbnails)

    def train_step(self) -> None:
        import torch

        from mirasol_cli.model.batch import TextBatch

        self.model.train()
        valid = torch.ones_like(self.tokens, dtype=torch.bool)
        target = valid.clone()
        target[:, :, 0] = False
        text = TextBatch(tokens_BQL=self.tokens, valid_BQL=valid, target_BQL=target)
        loss = self.model(self._media(self.clips), text, self.weights).total(self.weights)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def generate(self, tokens: int) -> None:
        """Greedy, without an end token, so that exactly `tokens` tokens come."""
        import torch

        from mirasol_cli.inference.decoding import greedy

        self.model.eval()
        with torch.inference_mode():
            text_kv = self.model.text_kv(self.model.encode(self._media(self.prompt)))
        came = len(greedy(self.model.text, text_kv, [[[0]]], eos=-1, max_tokens=tokens)[0][0].ids)
        if came != tokens:
            raise RuntimeError(f"{came} tokens came, {tokens} were asked for")


def _geometry(chunks: int) -> Any:
    from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube

    patch = (PATCH_FRAMES, PATCH, PATCH)
    audio = AudioGeometry(n_mels=MEL_BINS, columns=2 * SOUND_COLUMNS, patch=PATCH)
    tubes = (Tube(kernel=patch, stride=patch),)
    found = ClipGeometry(frames=chunks * FRAMES_PER_CHUNK, chunks=chunks, size=SIZE, tubes=tubes, audio=audio)
    if (found.video_tokens, found.audio_tokens) != (32, 8):
        raise RuntimeError(f"{found.video_tokens} + {found.audio_tokens} tokens per chunk, not 32 + 8")
    return found


def _config() -> Any:
    from mirasol_cli.model.config import CombinerConfig, EncoderConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig

    size = {"width": WIDTH, "heads": HEADS, "mlp_dim": 4 * WIDTH}
    return ModelConfig(
        encoder=EncoderConfig(**size, layers=ENCODER_LAYERS, share=False),
        combiner=CombinerConfig(**size, layers=COMBINER_LAYERS, kind="transformer", context="chunk", num_outputs=OUTPUTS),
        latent=LatentConfig(**size, layers=LATENT_LAYERS),
        reconstruction=ReconstructionConfig(width=WIDTH // 2, heads=HEADS // 2, mlp_dim=2 * WIDTH, layers=1),
        text=TextConfig(
            width=WIDTH, heads=HEADS, kv_heads=HEADS, layers=TEXT_LAYERS, mlp_dim=688, cross_attention_every=1, tie_embeddings=False
        ),
    )


class Rival:
    """`mirasol-pytorch`, with what keeps it from this shape put right from outside:

    - Its table of sine positions has too few columns at this width: another one takes its place.
    - It reads the sound of T chunks as T columns a chunk, with the two axes swapped: it is told T columns, and is given the sound
      with the axes swapped, so that each chunk hears its own.
    - Its `flash_attn` never reaches the attention. Variant `sdpa` passes it on by the name that x-transformers knows.
    """

    def __init__(self, chunks: int, variant: str):
        import mirasol_pytorch.mirasol_pytorch as package
        import torch

        package.posemb_sincos_nd = _sine_positions
        if variant == "sdpa":
            package.Encoder, package.Decoder = _with_flash(package.Encoder), _with_flash(package.Decoder)
        encoder = {"dim": WIDTH, "depth": ENCODER_LAYERS, "heads": HEADS}
        self.model = package.Mirasol(
            dim=WIDTH, num_text_tokens=VOCABULARY, text_max_seq_len=2048, attn_dim_head=WIDTH // HEADS, attn_heads=HEADS,
            video_image_size=SIZE, video_frames_per_timechunk=FRAMES_PER_CHUNK, video_patch_size=(PATCH, PATCH_FRAMES),
            video_recon_patch_size=(PATCH, PATCH_FRAMES), video_encoder=encoder,
            audio_freq_dim=MEL_BINS, audio_time_dim_per_timechunk=SOUND_COLUMNS, audio_patch_size=(PATCH, SOUND_PATCH_COLUMNS),
            audio_encoder=encoder, num_audio_video_register_tokens=0,
            combiner_depth=COMBINER_LAYERS, combiner_output_num_tokens=OUTPUTS, encoder_depth=LATENT_LAYERS, decoder_depth=TEXT_LAYERS,
        )  # fmt: skip
        self.model.audio_time_dim_per_timechunk = chunks
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.clips, self.prompt = self._clips(chunks, BATCH), self._clips(chunks, 1)
        self.tokens = torch.randint(1, VOCABULARY, (BATCH, TEXT_TOKENS))  # 0 is its padding

    def _clips(self, chunks: int, count: int) -> dict[str, Any]:
        """video [count, 3, T F, H, W], audio [count, Z, columns]."""
        import torch

        sound = torch.randn(count, MEL_BINS, chunks, SOUND_COLUMNS).transpose(2, 3).flatten(2)
        return {"video": torch.randn(count, 3, chunks * FRAMES_PER_CHUNK, SIZE, SIZE), "audio": sound}

    def train_step(self) -> None:
        self.model.train()
        loss = self.model(**self.clips, text=self.tokens)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def generate(self, tokens: int) -> None:
        came = self.model.generate(**self.prompt, seq_len=tokens).shape[-1]
        if came != tokens:
            raise RuntimeError(f"{came} tokens came, {tokens} were asked for")


def _with_flash(layers: Any) -> Any:
    return lambda *words, flash_attn=False, **options: layers(*words, attn_flash=flash_attn, **options)


def _sine_positions(tokens: Any, temperature: float = 10000.0) -> Any:
    """[prod(grid), D] for tokens [B, *grid, D]: sine and cosine of each axis in turn, zeros in the columns that are left."""
    import torch

    *grid, width = tokens.shape[1:]
    pairs = width // (2 * len(grid))
    frequencies = temperature ** -(torch.arange(pairs) / pairs)
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in grid)).reshape(-1, len(grid), 1) * frequencies
    table = torch.cat([places.sin(), places.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(table, (0, width - table.shape[1])).to(tokens.device)


def build(name: str, chunks: int) -> Ours | Rival:
    package, _, variant = name.partition("/")
    return Rival(chunks, variant) if package == RIVAL else Ours(chunks, variant)


def count_flops(name: str, chunks: int) -> int:
    """FLOPs of the matrix products of one training step, attention included as it is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def attention(
        query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
        scale: float | None = None, enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        """The kernel's fused products are not counted on the CPU; these are the same ones, apart."""
        return torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]

    torch.nn.functional.scaled_dot_product_attention = attention
    case = build(name, chunks)
    with FlopCounterMode(display=False) as counter:
        case.train_step()
    return counter.get_total_flops()


def serve(name: str, chunks: int) -> None:
    """Carry out the orders on stdin; whatever a library prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    case = build(name, chunks)
    parameters = sum(parameter.numel() for parameter in case.model.parameters())
    for order in map(str.strip, sys.stdin):
        wall, cpu = time.perf_counter(), time.process_time()
        if order == "train":
            case.train_step()
        elif order != "memory":
            case.generate(int(order))
        reply = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "params": parameters, "rss_mb": peak_mib()}
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--chunks", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", action="store_true", help="print the FLOPs of a training step")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.count:
        print(json.dumps({"flops": count_flops(args.name, args.chunks)}))
    else:
        serve(args.name, args.chunks)


if __name__ == "__main__":
    main()
