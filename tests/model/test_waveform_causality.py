"""From a video file to the latents: sound that changes in chunk t of the waveform changes no latent before t."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mirasol_cli.batches.collate import media_batch
from mirasol_cli.media.clip import clip_samples
from mirasol_cli.media.decode import decode_clips
from mirasol_cli.media.sampling import ClipRequest
from tests.media.made_clips import regular, write_clip
from tests.small_model import KINDS, geometry, model

RATE = 16000
CHUNKS = 5  # not a square, not a power of two: a chunk and its place cannot be mistaken for one another


def latents_of(path: Path, kind: str) -> Tensor:
    (sample,) = clip_samples(decode_clips(path, [ClipRequest()], geometry(CHUNKS)), geometry(CHUNKS))
    assert isinstance(sample, dict)
    with torch.no_grad():
        return model(kind, CHUNKS).encode(media_batch([sample], geometry(CHUNKS))).latents_BTMD[0]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A clip of 5 s with noise on its track, and one more per chunk, with other noise right up to that chunk's borders."""
    folder, random = tmp_path_factory.mktemp("causality"), np.random.default_rng(0)
    track = random.normal(0, 0.1, CHUNKS * RATE).astype(np.float32)
    tracks = {-1: track}
    for t in range(CHUNKS):
        tracks[t] = track.copy()
        tracks[t][t * RATE : (t + 1) * RATE] = random.normal(0, 0.1, RATE)
    return {
        t: write_clip(folder / f"{t}.avi", regular(CHUNKS * 10, 10), codec="mpeg4", audio_codec="pcm_s16le", audio_rate=RATE, audio=audio)
        for t, audio in tracks.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_waveform_reaches_no_earlier_latent(clips: dict[int, Path], kind: str) -> None:
    before = latents_of(clips[-1], kind)
    for t in range(CHUNKS):
        difference = (latents_of(clips[t], kind) - before).abs().amax((1, 2))
        assert (difference[:t] == 0).all(), t
        assert difference[t] > 1e-5
