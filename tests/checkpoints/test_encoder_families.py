"""Encoders of every family at random weights, against transformers, on the family's own patches: the same features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mirasol_cli.checkpoints.import_encoders import load_audio_encoder, load_video_encoder
from mirasol_cli.config.families import VIDEO_FAMILIES, audio_settings, trunk_sizes
from mirasol_cli.config.reader import parse_recipe
from mirasol_cli.errors import CheckpointError
from mirasol_cli.files import read_json
from mirasol_cli.geometry import AudioGeometry, ClipGeometry, Tube
from mirasol_cli.media.audio import Window
from mirasol_cli.media.spectrogram import chunk_log_mel
from mirasol_cli.media.tubes import cut_tubes
from mirasol_cli.model.config import CombinerConfig, EncoderConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig, TrunkConfig
from mirasol_cli.model.mirasol import Mirasol
from tests.checkpoints.pretrained import AUDIO, VIDEO, WHISPER, imported_transformers, loud, save_encoder


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    with imported_transformers() as transformers:
        yield transformers


def build(geometry: ClipGeometry, **trunks: TrunkConfig) -> Mirasol:
    torch.manual_seed(1)
    config = ModelConfig(
        encoder=EncoderConfig(width=36, layers=1, heads=2, mlp_dim=24),
        combiner=CombinerConfig(width=16, layers=1, heads=2, mlp_dim=16, num_outputs=4),
        latent=LatentConfig(width=16, layers=1, heads=2, mlp_dim=16),
        reconstruction=ReconstructionConfig(width=16, layers=1, heads=2, mlp_dim=16),
        text=TextConfig(width=32, layers=1, heads=4, kv_heads=2, mlp_dim=48, cross_attention_every=1),
        **trunks,
    )
    return Mirasol(config, geometry, 50).eval()


def trunk(folder: Path) -> TrunkConfig:
    return TrunkConfig(**trunk_sizes(read_json(folder / "config.json")))


def features(encoder: Any, tokens_BND: Tensor) -> Tensor:
    """What leaves a trunk, before it is brought to the Combiner's width."""
    return nn.Sequential(encoder.input_norm, *encoder.blocks, encoder.norm)(tokens_BND)


def native(source: Any, kind: str, pixels_BFCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the source makes of its pictures: patch embeddings [B, N, D], all tokens that enter its layers, and its features."""
    if kind == "Siglip2Vision":  # of patches, as its image processor cuts them
        side = source.config.patch_size
        pixels = pixels_BFCHW[:, 0].unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1)
        shape, pixels = torch.tensor([pixels.shape[1:3]]), pixels.flatten(3).flatten(1, 2)
        patches, tokens = source.embeddings.patch_embedding(pixels), source.embeddings(pixels, shape)
        return patches, tokens, source(pixels, torch.ones(pixels.shape[:2]), shape).last_hidden_state
    if kind == "VideoMAE":
        embeddings, pixels = source.embeddings, pixels_BFCHW
        patches, tokens = embeddings.patch_embeddings(pixels), embeddings(pixels, None)
    else:
        embeddings, pixels = source.embeddings, pixels_BFCHW[:, 0]
        tokens = embeddings(pixels)
        if hasattr(embeddings, "patch_embeddings"):
            patches = embeddings.patch_embeddings(pixels)
        else:
            patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    found = source(pixels).last_hidden_state
    return patches, tokens, source.post_layernorm(found) if kind == "CLIPVision" else found


def pictures(source: Any, frames: int) -> np.ndarray:
    """One chunk [1, 8, H, W, 3] of random frames; the source sees the first `frames`."""
    size = getattr(source.config, "image_size", 64)  # SigLIP 2 takes any
    return np.random.default_rng(0).integers(0, 256, (1, 8, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", VIDEO)
def test_a_video_encoder_on_its_own_patches_gives_the_sources_features(hf: Any, tmp_path: Path, family: str) -> None:
    kind = VIDEO[family][0]
    source = save_encoder(hf, tmp_path, family)
    frames, patch = (2 if kind == "VideoMAE" else 1), source.config.patch_size
    geometry = ClipGeometry(
        frames=8, chunks=1, size=pictures(source, 1).shape[2], tubes=(Tube(kernel=(frames, patch, patch), stride=(8, patch, patch)),),
        audio=AudioGeometry(n_mels=32, columns=48),
    )  # fmt: skip
    model = build(geometry, video_encoder=trunk(tmp_path))
    report = load_video_encoder(model, tmp_path)

    clip = pictures(source, frames)
    mean, std = (torch.tensor(numbers) for numbers in VIDEO_FAMILIES[source.config.model_type].pixels or ())
    pixels = ((torch.from_numpy(clip[:, :frames]).float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        patches, tokens, expected = native(source, kind, pixels)
        content = model.video_tokens([torch.from_numpy(part)[None] for part in cut_tubes(clip, geometry)])[:, 0]
        content = content - model.video_tokens.position_ND
        assert (content - patches).abs().max() <= 1e-4
        count = patches.shape[1]
        ours = torch.cat([tokens[:, :-count], content + tokens[:, -count:] - patches], dim=1)  # with its extra tokens and positions
        error = (features(model.video_encoder, ours) - expected).abs().max()
    assert error <= 1e-4
    assert expected.std() > 0.3
    assert [name for name in report.missing if ".output_proj." not in name] == []
    assert report.note == VIDEO_FAMILIES[source.config.model_type].dropped
    left = {name for name in report.unexpected if not name.startswith(("head.", "pooler."))}
    assert left <= {
        "embeddings.cls_token", "embeddings.distillation_token", "embeddings.class_embedding", "embeddings.register_tokens",
        "embeddings.mask_token", "embeddings.position_embeddings", "embeddings.position_embedding.weight",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["CLIP", "Siglip", "Siglip2"])
def test_a_model_of_pictures_and_texts_gives_its_video_part(hf: Any, tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    words = sizes | {"vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    picture = sizes | ({"num_patches": 16} if kind == "Siglip2" else {"image_size": 64}) | {"patch_size": 16}
    source = loud(getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(vision_config=picture, text_config=words)))
    source.save_pretrained(tmp_path)
    model = build(ClipGeometry(frames=8, chunks=1, size=64, audio=AudioGeometry(n_mels=32, columns=48)), video_encoder=trunk(tmp_path))
    load_video_encoder(model, tmp_path)
    assert torch.equal(model.video_encoder.norm.weight, source.vision_model.post_layernorm.weight)
    assert torch.equal(model.video_encoder.blocks[1].mlp.up.weight, source.vision_model.encoder.layers[1].mlp.fc1.weight)


def test_sizes_that_a_config_leaves_out_are_the_familys_own() -> None:
    """As in google/siglip-base-patch16-224, whose vision_config is empty but for its type."""
    found = trunk_sizes({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}})
    assert found == {
        "width": 768, "layers": 12, "heads": 12, "mlp_dim": 3072, "activation": "gelu_tanh", "norm_eps": 1e-6, "input_norm": False,
    }  # fmt: skip
    clip = trunk_sizes({"model_type": "clip", "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24}})
    assert (clip["width"], clip["layers"], clip["activation"], clip["input_norm"]) == (1024, 24, "quick_gelu", True)
    assert trunk_sizes({"model_type": "dinov2", "hidden_size": 1024, "num_attention_heads": 16})["mlp_dim"] == 4096


def test_a_videomae_classifiers_norm_is_found_and_a_missing_one_starts_fresh(hf: Any, tmp_path: Path) -> None:
    geometry = ClipGeometry(frames=8, chunks=1, size=64, audio=AudioGeometry(n_mels=32, columns=48))
    config = hf.VideoMAEConfig(**VIDEO["videomae"][1] | {"use_mean_pooling": True})
    classifier = loud(hf.VideoMAEForVideoClassification(config))
    classifier.save_pretrained(tmp_path / "classifier")
    model = build(geometry, video_encoder=trunk(tmp_path / "classifier"))
    assert "no final norm" not in load_video_encoder(model, tmp_path / "classifier").note
    assert torch.equal(model.video_encoder.norm.weight, classifier.fc_norm.weight)
    loud(hf.VideoMAEModel(config)).save_pretrained(tmp_path / "bare")
    model = build(geometry, video_encoder=trunk(tmp_path / "bare"))
    report = load_video_encoder(model, tmp_path / "bare")
    assert "it has no final norm, so that one starts fresh" in str(report)
    assert "video_encoder.norm.weight" in report.missing
    assert torch.equal(model.video_encoder.norm.weight, torch.ones(24))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 8])
def test_a_tubelet_kernel_fills_tubes_of_any_depth(hf: Any, tmp_path: Path, frames: int) -> None:
    """On a still clip every tube gives the source's tubelet of two equal frames."""
    source = save_encoder(hf, tmp_path, "videomae")
    geometry = ClipGeometry(
        frames=8, chunks=1, size=64, tubes=(Tube(kernel=(frames, 16, 16), stride=(8, 16, 16)),), audio=AudioGeometry(n_mels=32, columns=48)
    )
    model = build(geometry, video_encoder=trunk(tmp_path))
    load_video_encoder(model, tmp_path)
    clip = np.ascontiguousarray(np.broadcast_to(pictures(source, 1)[:, :1], (1, 8, 64, 64, 3)))
    mean, std = (torch.tensor(numbers) for numbers in VIDEO_FAMILIES["videomae"].pixels or ())
    pixels = ((torch.from_numpy(clip[:, :2]).float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        content = model.video_tokens([torch.from_numpy(part)[None] for part in cut_tubes(clip, geometry)])[:, 0]
        expected = source.embeddings.patch_embeddings(pixels)
        torch.testing.assert_close(content - model.video_tokens.position_ND, expected, atol=1e-4, rtol=1e-4)


def heard(folder: Path) -> ClipGeometry:
    """A chunk of 48 columns with what the encoder's weights need of the front end."""
    audio = audio_settings(read_json(folder / "config.json"))
    return ClipGeometry(frames=8, chunks=1, size=64, audio=AudioGeometry(columns=48, **audio))


def test_an_ast_on_its_own_patches_gives_the_sources_features(hf: Any, tmp_path: Path) -> None:
    source = save_encoder(hf, tmp_path, "ast")
    model = build(heard(tmp_path), audio_encoder=trunk(tmp_path))
    report = load_audio_encoder(model, tmp_path)
    mel = torch.randn(2, 48, 32)  # AST's own order: columns, bins
    with torch.no_grad():
        tokens, patches = source.embeddings(mel), source.embeddings.patch_embeddings(mel)
        content = model.audio_tokens(mel.transpose(1, 2)[:, None])[:, 0] - model.audio_tokens.position_ND
        ours = torch.cat([tokens[:, :2], content + tokens[:, 2:] - patches], dim=1)
        assert (features(model.audio_encoder, ours) - source(mel).last_hidden_state).abs().max() <= 1e-4
    assert [name for name in report.missing if ".output_proj." not in name] == []


def test_whisper_on_a_chunk_gives_the_sources_features(hf: Any, tmp_path: Path) -> None:
    """From the waveform: front end, convolutions, positions and layers."""
    source = save_encoder(hf, tmp_path, "whisper").encoder
    geometry = heard(tmp_path)
    model = build(geometry, audio_encoder=trunk(tmp_path))
    report = load_audio_encoder(model, tmp_path)
    waveform = np.random.default_rng(0).normal(0, 0.1, 48 * 160).astype(np.float32)
    waveform[:2000] *= 1e-6  # so that the floor below the loudest matters
    extractor = hf.WhisperFeatureExtractor(feature_size=32, chunk_length=1)
    theirs = extractor._np_extract_fbank_features(waveform[None], "cpu")[0]
    mel, valid = chunk_log_mel(Window(waveform, np.ones(len(waveform), bool)), geometry.audio)
    assert valid.all()
    np.testing.assert_allclose(mel.astype(np.float32), theirs, atol=2e-3)  # stored in half precision
    with torch.no_grad():
        expected = source(torch.from_numpy(theirs)[None].float()).last_hidden_state
        tokens = model.audio_tokens(torch.from_numpy(theirs)[None, None].float())[:, 0]
        assert (features(model.audio_encoder, tokens) - expected).abs().max() <= 1e-4
    assert geometry.audio_tokens == expected.shape[1] == 24
    assert expected.std() > 0.3
    assert [name for name in report.missing if ".output_proj." not in name] == []
    assert "cut to a chunk" in str(report)
    assert not any(name.startswith("encoder.") for name in report.unexpected)


def test_of_a_longer_whisper_the_first_positions_are_those_of_a_chunk(hf: Any, tmp_path: Path) -> None:
    """Whisper itself takes no input but of its full length, so that the same one with a table of 24 says what is right."""
    source = save_encoder(hf, tmp_path, "whisper", max_source_positions=1500)
    model = build(heard(tmp_path), audio_encoder=trunk(tmp_path))
    load_audio_encoder(model, tmp_path)
    short = loud(hf.WhisperModel(hf.WhisperConfig(**WHISPER | {"max_source_positions": 24})))
    short.load_state_dict({name: value[:24] if name.endswith("encoder.embed_positions.weight") else value
                           for name, value in source.state_dict().items()})  # fmt: skip
    mel = torch.randn(2, 32, 48)
    with torch.no_grad():
        found = features(model.audio_encoder, model.audio_tokens(mel[:, None])[:, 0])
        assert (found - short.encoder(mel).last_hidden_state).abs().max() <= 1e-4


def test_a_whisper_with_fewer_or_other_positions_is_refused(hf: Any, tmp_path: Path) -> None:
    source = save_encoder(hf, tmp_path, "whisper", max_source_positions=10)
    with pytest.raises(CheckpointError, match="positions for 10 tokens, a chunk has 24"):
        load_audio_encoder(build(heard(tmp_path), audio_encoder=trunk(tmp_path)), tmp_path)
    source = save_encoder(hf, tmp_path, "whisper")
    with torch.no_grad():
        source.encoder.embed_positions.weight += 1
    source.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="other positions than Whisper's fixed ones"):
        load_audio_encoder(build(heard(tmp_path), audio_encoder=trunk(tmp_path)), tmp_path)


@pytest.mark.parametrize("audio", AUDIO)
@pytest.mark.parametrize("video", VIDEO)
def test_a_recipe_takes_sizes_and_front_end_from_the_folders(hf: Any, tmp_path: Path, video: str, audio: str) -> None:
    save_encoder(hf, tmp_path / "video", video)
    save_encoder(hf, tmp_path / "audio", audio)
    words = [f"init.video_encoder={tmp_path / 'video'}", f"init.audio_encoder={tmp_path / 'audio'}"]
    recipe = parse_recipe("schema: 1\nname: x\nmodel: {preset: demo}\n", "x.yaml", words)
    assert recipe.model.video_encoder == trunk(tmp_path / "video")
    assert recipe.model.audio_encoder == trunk(tmp_path / "audio")
    assert not recipe.model.encoder.share
    assert recipe.clip.audio.frontend == audio
    assert recipe.clip.audio.n_mels == 32
    alone = parse_recipe("schema: 1\nname: x\nmodel: {preset: demo}\n", "x.yaml", words[:1])
    assert alone.model.encoder.share
    assert alone.model.encoder.width == 24  # a single one fills the trunk that both share
    assert alone.model.video_encoder is None


def test_a_trunk_of_its_own_takes_the_rest_from_the_encoder() -> None:
    recipe = parse_recipe("schema: 1\nname: x\nmodel: {preset: demo, video_encoder: {layers: 5}}\n", "x.yaml")
    assert recipe.model.video_encoder == TrunkConfig(width=128, layers=5, heads=4, mlp_dim=512)
    assert (recipe.model.encoder.share, recipe.model.audio_encoder) == (False, None)


def test_a_gated_dinov2_and_a_strange_kernel_are_refused(hf: Any, tmp_path: Path) -> None:
    geometry = ClipGeometry(frames=8, chunks=1, size=64, audio=AudioGeometry(n_mels=32, columns=48))
    save_encoder(hf, tmp_path / "giant", "dinov2", use_swiglu_ffn=True)
    with pytest.raises(CheckpointError, match="use_swiglu_ffn"):
        load_video_encoder(build(geometry, video_encoder=trunk(tmp_path / "giant")), tmp_path / "giant")
    save_encoder(hf, tmp_path / "grey", "siglip 2", num_channels=1)
    with pytest.raises(CheckpointError, match=r"patch kernel of shape \[24, 256\], RGB frames need"):
        load_video_encoder(build(geometry, video_encoder=trunk(tmp_path / "grey")), tmp_path / "grey")


def test_a_folder_that_an_override_names_brings_its_sizes_over_the_recipes_own(hf: Any, tmp_path: Path) -> None:
    save_encoder(hf, tmp_path / "siglip", "siglip")
    written = "schema: 1\nname: x\ninit: {video_encoder: some/folder}\nmodel: {video_encoder: {width: 48, heads: 4}}\n"
    assert parse_recipe(written, "x.yaml").model.video_trunk.width == 48
    overridden = parse_recipe(written, "x.yaml", [f"init.video_encoder={tmp_path / 'siglip'}"])
    assert overridden.model.video_encoder == trunk(tmp_path / "siglip")
    own = parse_recipe(written.replace("some/folder", str(tmp_path / "siglip")), "x.yaml")
    assert own.model.video_trunk.width == 48  # the recipe's own word stands; loading then names both
    last = parse_recipe(written, "x.yaml", [f"init.video_encoder={tmp_path / 'siglip'}", "model.video_encoder.layers=2"])
    assert last.model.video_trunk.layers == 2
