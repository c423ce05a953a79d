"""Each modality reaches the Combiner's outputs, in about its share of the tokens, at any size."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from mirasol_cli.batches.collate import media_batch, text_batch
from mirasol_cli.errors import MediaError
from mirasol_cli.geometry import AudioGeometry, ClipGeometry
from mirasol_cli.media.clip import clip_sample
from mirasol_cli.media.decode import decode_clips
from mirasol_cli.media.sampling import ClipRequest
from mirasol_cli.model.batch import MediaBatch
from mirasol_cli.model.config import CombinerConfig, EncoderConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.sample import AudioState
from tests.paths import SHARED

CLIPS = 5
DEMO = ClipGeometry(frames=32, chunks=4, size=48, audio=AudioGeometry(n_mels=64, columns=64))
FULL = ClipGeometry(frames=32, chunks=4, size=224)
SIZES = {
    "demo": (DEMO, {"width": 128, "heads": 4, "layers": 1, "mlp_dim": 512, "num_outputs": 16}),
    "small": (FULL, {"width": 64, "heads": 8, "layers": 4, "mlp_dim": 256}),
    "base": (FULL, {"width": 96, "heads": 12, "layers": 4, "mlp_dim": 384}),
    "3B, a tenth of the width": (FULL, {"width": 208, "heads": 8, "layers": 8, "mlp_dim": 816}),
}
"""Geometry and Combiner: the numbers of tokens and layers of each preset; widths are the demo's, an eighth, an eighth, a tenth."""
KINDS = {
    "transformer": {"kind": "transformer"}, "history": {"kind": "transformer", "context": "history"},
    "perceiver": {"kind": "perceiver"}, "mean": {"kind": "mean"},
}  # fmt: skip


@functools.cache
def real_clips(geometry: ClipGeometry) -> MediaBatch:
    """The first chunks of real clips that have audio."""
    assert SHARED is not None
    samples: list = []
    for path in sorted((SHARED / "clips").glob("**/*.mp4")):
        for clip in decode_clips(path, [ClipRequest()], geometry):
            sample = clip if isinstance(clip, MediaError) else clip_sample(clip, geometry)
            if not isinstance(sample, MediaError) and sample["audio_state"] == AudioState.AUDIBLE and sample["frame_valid"].all():
                samples.append(sample)
        if len(samples) == CLIPS:
            batch = media_batch(samples, geometry)
            return replace(batch, audio_valid_BTN=None).with_hidden()  # columns that a short chunk lacks are heard as silence
    raise AssertionError(f"only {len(samples)} clips with audio")


def network(size: str, kind: str) -> Mirasol:
    geometry, form = SIZES[size]
    width, heads, mlp = form["width"], form["heads"], form["mlp_dim"]
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig(width=width, layers=2, heads=heads, mlp_dim=mlp),
        combiner=CombinerConfig(**form, **(KINDS | {"ttm": {"kind": "ttm"}})[kind]),
        latent=LatentConfig(width=width, layers=1, heads=heads, mlp_dim=mlp),
        reconstruction=ReconstructionConfig(width=64, layers=1, heads=2, mlp_dim=64),
        text=TextConfig(width=64, layers=2, heads=2, kv_heads=2, mlp_dim=128, cross_attention_every=1),
    )
    return Mirasol(config, geometry, 300)


@torch.no_grad()
def shares(model: Mirasol, batch: MediaBatch) -> Iterator[tuple[str, float, float]]:
    """(modality, its share of the change of the outputs when it becomes another clip's, its share of the tokens)."""
    model.eval()
    assert batch.tubes is not None
    assert batch.mel_BTZS is not None
    other = torch.roll(torch.arange(CLIPS), 1)
    video, audio = tuple(tube[other] for tube in batch.tubes), batch.mel_BTZS[other]
    before = model.encode(batch).combined_BTMD

    def change(changed: MediaBatch) -> float:
        return float((model.encode(changed).combined_BTMD - before).square().sum())

    both = change(replace(batch, tubes=video, mel_BTZS=audio))
    geometry = model.geometry
    yield "video", change(replace(batch, tubes=video)) / both, geometry.video_tokens / geometry.tokens_per_chunk
    yield "audio", change(replace(batch, mel_BTZS=audio)) / both, geometry.audio_tokens / geometry.tokens_per_chunk


def train(model: Mirasol, batch: MediaBatch, steps: int) -> None:
    """To tell video and audio by heart: in every step the audio is another clip's, and the text names both."""
    assert batch.mel_BTZS is not None
    weights, optimizer = {"text": 10.0, "latent": 1.0, "video": 1.0}, torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for step in range(steps):
        heard = torch.roll(torch.arange(CLIPS), step)
        text = text_batch([[([9, 10], [20 + clip, 40 + int(other), 11])] for clip, other in enumerate(heard)])
        loss = model(replace(batch, mel_BTZS=batch.mel_BTZS[heard]), text, weights).total(weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        optimizer.step()
        optimizer.zero_grad()


SLOW_SIZES = [pytest.param(size, marks=[pytest.mark.slow] if size != "demo" else []) for size in SIZES]


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SLOW_SIZES)
def test_a_modality_changes_the_outputs_by_at_least_half_of_its_share(size: str, kind: str) -> None:
    model, batch = network(size, kind), real_clips(SIZES[size][0])
    for steps in (0, 30):
        train(model, batch, steps)
        for modality, share, of_tokens in shares(model, batch):
            assert share >= of_tokens / 2, f"{modality} after {steps} steps"


@pytest.mark.real
@pytest.mark.parametrize("size", SLOW_SIZES)
def test_both_modalities_reach_the_outputs_of_a_ttm(size: str, capsys: pytest.CaptureFixture) -> None:
    """Measured and told; no bound but that neither is lost."""
    model, batch = network(size, "ttm"), real_clips(SIZES[size][0])
    for steps in (0, 30):
        train(model, batch, steps)
        for modality, share, of_tokens in shares(model, batch):
            with capsys.disabled():
                print(f"\nttm, {size}, after {steps} steps: {modality} {share:.2f} of the change, {of_tokens:.2f} of the tokens", end="")
            assert share > 0.05
