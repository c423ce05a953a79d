"""What becomes of an encoder's patch kernel, constants and tensors; wrong and damaged folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mirasol_cli.checkpoints.import_encoders import inflate, load_audio_encoder, load_video_encoder
from mirasol_cli.checkpoints.import_text import load_text_decoder
from mirasol_cli.errors import CheckpointError
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.media.tubes import cut_tubes
from mirasol_cli.model.config import CombinerConfig, EncoderConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig
from mirasol_cli.model.mirasol import Mirasol
from tests.checkpoints.pretrained import PIECES, TRUNK, imported_transformers, loud, save_encoder, save_text

GEOMETRY = ClipGeometry(
    frames=16, chunks=2, size=64, audio=AudioGeometry(frontend="ast", n_mels=32, columns=48, patch_stride=10)
)  # fmt: skip
WIDTH = TRUNK["hidden_size"]
CONFIG = ModelConfig(
    encoder=EncoderConfig(width=WIDTH, layers=3, heads=2, mlp_dim=40, norm_eps=1e-12),
    combiner=CombinerConfig(width=16, layers=1, heads=2, mlp_dim=16, num_outputs=4),
    latent=LatentConfig(width=16, layers=1, heads=2, mlp_dim=16),
    reconstruction=ReconstructionConfig(width=16, layers=1, heads=2, mlp_dim=16),
    text=TextConfig(width=32, layers=4, heads=4, kv_heads=2, mlp_dim=48, cross_attention_every=2, tie_embeddings=False),
)


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    with imported_transformers() as transformers:
        yield transformers


def save_vit(hf: Any, folder: Path, kind: str = "vit", **more: Any) -> Any:
    return save_encoder(hf, folder, kind.lower(), **more)


def save_ast(hf: Any, folder: Path, **more: Any) -> Any:
    return save_encoder(hf, folder, "ast", **more)


def save_llama(hf: Any, folder: Path, **more: Any) -> Any:
    return save_text(hf, folder, "llama-2", **more)


def build(config: ModelConfig = CONFIG, geometry: ClipGeometry = GEOMETRY, pieces: int = PIECES) -> Mirasol:
    torch.manual_seed(1)
    return Mirasol(config, geometry, pieces).eval()


def still_clip(seed: int = 0) -> np.ndarray:
    """[T, F, H, W, 3], one picture all through."""
    image = np.random.default_rng(seed).integers(0, 256, (1, 1, 64, 64, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (2, 8, 64, 64, 3)))


@pytest.mark.parametrize(("kind", "patch"), [("ViT", 16), ("DeiT", 16), ("ViT", 32)])
def test_an_inflated_kernel_gives_the_sources_patch_embedding_on_a_still_clip(hf: Any, tmp_path: Path, kind: str, patch: int) -> None:
    tubes = (Tube(kernel=(1, patch, patch), stride=(8, patch, patch)), Tube(kernel=(4, patch, patch), stride=(8, patch, patch)))
    geometry = replace(GEOMETRY, tubes=tubes)
    source = save_vit(hf, tmp_path, kind, patch_size=patch)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if kind == "ViT" else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    model = build(geometry=geometry)
    load_video_encoder(model, tmp_path)
    clip = still_clip()
    with torch.no_grad():
        tokens = model.video_tokens([torch.from_numpy(part)[None] for part in cut_tubes(clip, geometry)]) - model.video_tokens.position_ND
        image = (torch.from_numpy(clip[0, 0]).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
        expected = source.embeddings.patch_embeddings(image.permute(2, 0, 1)[None])[0]
    count = expected.shape[0]
    for chunk in range(2):
        for part in (tokens[0, chunk, :count], tokens[0, chunk, count:]):  # both tubes: one frame, and the mean of four
            torch.testing.assert_close(part, expected, atol=1e-4, rtol=1e-4)


def test_normalisation_comes_from_the_preprocessor(hf: Any, tmp_path: Path) -> None:
    save_vit(hf, tmp_path)
    black = [
        torch.zeros(1, 2, count, tube.numbers_per_token, dtype=torch.uint8)
        for count, tube in zip(GEOMETRY.tube_tokens, GEOMETRY.tubes, strict=True)
    ]
    projection = load_file(tmp_path / "model.safetensors")["embeddings.patch_embeddings.projection.weight"]
    bias = load_file(tmp_path / "model.safetensors")["embeddings.patch_embeddings.projection.bias"]
    for settings, value in (
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.5, 0.25]}, [-0.1, -0.4, -1.2]),
        ({"do_normalize": False}, [0.0] * 3),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
        model = build()
        load_video_encoder(model, tmp_path)
        with torch.no_grad():
            token = (model.video_tokens(black) - model.video_tokens.position_ND)[0, 0, -1]  # of the 1x16x16 tube
        torch.testing.assert_close(token, projection.sum((2, 3)) @ torch.tensor(value) + bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", [(4, 8, 8), (8, 4, 4), (4, 12, 12), (2, 32, 32)])
def test_a_tube_of_another_size_is_embedded_as_its_resized_patch(kernel: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    patch = torch.randn(WIDTH, 3, 16, 16)
    t, h, w = kernel
    frame = torch.rand(3, h, w)
    resized = nn.functional.interpolate(frame[None], size=(16, 16), mode="bilinear", antialias=h > 16)
    expected = nn.functional.conv2d(resized, patch)[0, :, 0, 0]
    tube_pixels = frame.permute(1, 2, 0)[None].expand(t, -1, -1, -1).flatten()
    found = inflate(patch[:, :, None], Tube(kernel=kernel, stride=kernel)) @ tube_pixels
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    moving = torch.rand(t, 3, h, w)
    moving_pixels = moving.permute(0, 2, 3, 1).flatten()
    each = nn.functional.conv2d(nn.functional.interpolate(moving, size=(16, 16), mode="bilinear", antialias=h > 16), patch)[:, :, 0, 0]
    torch.testing.assert_close(
        inflate(patch[:, :, None], Tube(kernel=kernel, stride=kernel)) @ moving_pixels, each.mean(0), atol=1e-3, rtol=1e-4
    )


def test_space_to_depth_takes_the_first_channels_and_says_so(hf: Any, tmp_path: Path) -> None:
    source = save_vit(hf, tmp_path)
    model = build()
    report = load_video_encoder(model, tmp_path)
    assert any("maps.0.weight (16x16 patch to 4x8x8 tube, first 12 of 24 channels)" in line for line in report.resized)
    kernel = source.embeddings.patch_embeddings.projection.weight.detach()
    assert torch.allclose(model.video_tokens.maps[0].weight, inflate(kernel[:, :, None], GEOMETRY.tubes[0])[:12], atol=1e-5)
    assert "resized" in str(report)
    assert str(tmp_path) in str(report)


def test_other_constants_of_an_ast_are_folded_in(hf: Any, tmp_path: Path) -> None:
    source = save_ast(hf, tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"mean": -6.0, "std": 5.0, "sampling_rate": 16000}))
    model = build()
    load_audio_encoder(model, tmp_path)
    log_mel = torch.randn(1, 48, 32) * 3 - 5
    ours, theirs = (log_mel + 4.2677393) / (2 * 4.5689974), (log_mel + 6.0) / (2 * 5.0)
    with torch.no_grad():
        patches = model.audio_tokens(ours.transpose(1, 2)[:, None])[:, 0] - model.audio_tokens.position_ND
        torch.testing.assert_close(patches, source.embeddings.patch_embeddings(theirs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"frontend": "mel"}, "clip.audio.frontend is mel, the source has ast"),
        ({"patch_stride": 16}, "clip.audio.patch_stride is 16, the source has 10"),
        ({"n_mels": 64}, "clip.audio.n_mels is 64, the source has 32"),
        ({"hop_length": 320}, "clip.audio.hop_length is 320, the source has 160"),
    ],
)
def test_another_front_end_than_asts_is_refused_with_the_numbers(hf: Any, tmp_path: Path, change: dict, words: str) -> None:
    save_ast(hf, tmp_path)
    with pytest.raises(CheckpointError, match=words):
        load_audio_encoder(build(geometry=replace(GEOMETRY, audio=replace(GEOMETRY.audio, **change))), tmp_path)


Loader = Callable[[Mirasol, Path], Any]


@pytest.mark.parametrize(
    ("loader", "saver", "words"),
    [
        (load_video_encoder, save_llama, "is a model of type 'llama', but a video encoder"),
        (load_audio_encoder, save_vit, "is a model of type 'vit', but an audio encoder"),
        (load_text_decoder, save_ast, "is a model of type 'audio-spectrogram-transformer', but a text model"),
    ],
)
def test_a_wrong_architecture_is_refused_with_both_names(hf: Any, tmp_path: Path, loader: Loader, saver: Callable, words: str) -> None:
    saver(hf, tmp_path)
    with pytest.raises(CheckpointError, match=words):
        loader(build(), tmp_path)


def test_another_size_of_vit_is_refused_with_both_values(hf: Any, tmp_path: Path) -> None:
    save_vit(hf, tmp_path, hidden_size=48, num_hidden_layers=2)
    with pytest.raises(
        CheckpointError, match=r"model\.encoder\.width is 24, the source has 48; model\.encoder\.layers is 3, the source has 2"
    ):
        load_video_encoder(build(), tmp_path)


def test_a_model_saved_with_its_head_loads(hf: Any, tmp_path: Path) -> None:
    source = loud(hf.ViTForImageClassification(hf.ViTConfig(**TRUNK, image_size=64, patch_size=16)))
    source.save_pretrained(tmp_path)
    model = build()
    report = load_video_encoder(model, tmp_path)
    assert torch.equal(model.encoder.norm.weight, source.vit.layernorm.weight)
    assert "classifier.weight" in report.unexpected


def test_nothing_that_fits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **TRUNK}))
    save_file({"something.else": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="nothing of it could be loaded"):
        load_video_encoder(build(), tmp_path)


def test_missing_and_damaged_folders_are_named(hf: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        load_text_decoder(build(), tmp_path / "nowhere")
    folder = tmp_path / "llama"
    save_llama(hf, folder)
    weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_text_decoder(build(), folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged"):
        load_text_decoder(build(), folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="neither") as refusal:
        load_text_decoder(build(), folder)
    assert "never opened" in str(refusal.value.hint)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load_text_decoder(build(), folder)
