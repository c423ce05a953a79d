"""`init.*` through the loop: a run starts from weights in Hugging Face layout, and says what of them it could not use.

The folders are written by hand, tensor by tensor as such models name them, so that no other library is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mirasol_cli.checkpoints import folder as checkpoints_folder
from mirasol_cli.checkpoints import load as checkpoints_load
from mirasol_cli.checkpoints import runs
from mirasol_cli.checkpoints.export import export
from mirasol_cli.config.hub import download_all
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import CheckpointError, UsageError
from mirasol_cli.text.tokenizer import Vocabulary
from mirasol_cli.training.dry_run import dry_run
from mirasol_cli.training.loop import train
from tests import synthetic
from tests.config.hub_server import COMMIT, hub

WIDTH, MLP, LAYERS = 24, 32, 2  # of both encoders
TEXT_WIDTH, TEXT_MLP, TEXT_LAYERS = 24, 32, 2


def random(*shape: int) -> Tensor:
    return 0.1 * torch.randn(*shape)


def write_folder(folder: Path, config: dict[str, object], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def trunk(channels: int) -> dict[str, Tensor]:
    """A ViT's tensors as transformers names them."""
    patch = "embeddings.patch_embeddings.projection"
    found = {f"{patch}.weight": random(WIDTH, channels, 16, 16), f"{patch}.bias": random(WIDTH)}
    found |= {"embeddings.cls_token": random(1, 1, WIDTH), "layernorm.weight": 1 + random(WIDTH), "layernorm.bias": random(WIDTH)}
    for layer in (f"encoder.layer.{number}" for number in range(LAYERS)):
        shapes = {f"attention.attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        shapes |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (MLP, WIDTH), "output.dense": (WIDTH, MLP)}
        for name, shape in shapes.items():
            found |= {f"{layer}.{name}.weight": random(*shape), f"{layer}.{name}.bias": random(shape[0])}
        for name in ("layernorm_before", "layernorm_after"):
            found |= {f"{layer}.{name}.weight": 1 + random(WIDTH), f"{layer}.{name}.bias": random(WIDTH)}
    return found


SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": MLP, "hidden_act": "gelu"}


def vit(folder: Path) -> Path:
    return write_folder(folder, {"model_type": "vit", "image_size": 32, "patch_size": 16, **SIZES}, trunk(3))


def ast(folder: Path) -> Path:
    numbers = {"num_mel_bins": 16, "max_length": 26, "patch_size": 16, "frequency_stride": 10, "time_stride": 10}
    return write_folder(folder, {"model_type": "audio-spectrogram-transformer", **numbers, **SIZES}, trunk(1))


def llama(folder: Path, pieces: int) -> Path:
    tensors = {"model.embed_tokens.weight": random(pieces, TEXT_WIDTH), "lm_head.weight": random(pieces, TEXT_WIDTH)}
    tensors["model.norm.weight"] = 1 + random(TEXT_WIDTH)
    for layer in (f"model.layers.{number}" for number in range(TEXT_LAYERS)):
        tensors |= {f"{layer}.self_attn.{name}_proj.weight": random(TEXT_WIDTH, TEXT_WIDTH) for name in "qkvo"}
        tensors |= {f"{layer}.mlp.{name}_proj.weight": random(TEXT_MLP, TEXT_WIDTH) for name in ("gate", "up")}
        tensors[f"{layer}.mlp.down_proj.weight"] = random(TEXT_WIDTH, TEXT_MLP)
        tensors |= {f"{layer}.{name}.weight": 1 + random(TEXT_WIDTH) for name in ("input_layernorm", "post_attention_layernorm")}
    config = {
        "model_type": "llama", "hidden_size": TEXT_WIDTH, "num_hidden_layers": TEXT_LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": TEXT_MLP, "vocab_size": pieces, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False,
    }  # fmt: skip
    return write_folder(folder, config, tensors)


MODEL = (
    f"model.encoder={{width: {WIDTH}, layers: {LAYERS}, heads: 2, mlp_dim: {MLP}, share: false}}",
    "model.text.tie_embeddings=false",
    "clip.audio.frontend=ast", "clip.audio.columns=26", "clip.audio.patch_stride=10",
)  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """The keys of `init`, each with a folder or file of random weights."""
    torch.manual_seed(7)
    (tmp_path / "pieces.model").write_bytes(synthetic.vocabulary().model_bytes)
    pieces = synthetic.vocabulary().size
    return {
        "video_encoder": vit(tmp_path / "vit"), "audio_encoder": ast(tmp_path / "ast"),
        "text_decoder": llama(tmp_path / "llama", pieces + 6), "tokenizer": tmp_path / "pieces.model",
    }  # fmt: skip


def recipe(tmp_path: Path, sources: Mapping[str, Path | str], *words: str) -> Recipe:
    given = [f"init.{key}={path}" for key, path in sources.items()]
    made = synthetic.recipe(tmp_path / "run", tmp_path / "shards", *MODEL, *given, *words)
    if not (tmp_path / "shards").exists():
        synthetic.write_split(tmp_path / "shards" / "train", 8, geometry=made.clip)
    return made


def finetuned(tmp_path: Path, sources: Mapping[str, Path | str], *words: str) -> dict[str, Tensor]:
    """The weights after two steps at a rate that moves nothing, unless `words` say otherwise: those that the run began with."""
    still = ("train.steps=2", "train.lr=1e-12", "train.weight_decay=0")
    train(recipe(tmp_path, sources, *still, *words), stage="finetune", device="cpu")
    tensors = checkpoints_load.read_tensors(runs.resolve_checkpoint("latest", tmp_path / "run"), "model")
    assert tensors is not None
    return tensors


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_finetune_starts_from_all_four(tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    weights = finetuned(tmp_path, sources)
    for key, ours in (("video_encoder", "video_encoder"), ("audio_encoder", "audio_encoder")):
        theirs = load(sources[key])
        for number in range(LAYERS):
            block, layer = f"{ours}.blocks.{number}", f"encoder.layer.{number}"
            same(weights[f"{block}.attention.query.weight"], theirs[f"{layer}.attention.attention.query.weight"])
            key_value = [theirs[f"{layer}.attention.attention.{part}.weight"] for part in ("key", "value")]
            same(weights[f"{block}.attention.key_value.weight"], torch.cat(key_value))
            same(weights[f"{block}.attention.out.weight"], theirs[f"{layer}.attention.output.dense.weight"])
            same(weights[f"{block}.mlp.up.weight"], theirs[f"{layer}.intermediate.dense.weight"])
            same(weights[f"{block}.mlp.down.bias"], theirs[f"{layer}.output.dense.bias"])
            same(weights[f"{block}.norm2.weight"], theirs[f"{layer}.layernorm_after.weight"])
        same(weights[f"{ours}.norm.weight"], theirs["layernorm.weight"])
    audio, text = load(sources["audio_encoder"]), load(sources["text_decoder"])
    assert weights["audio_tokens.map.weight"].shape == audio["embeddings.patch_embeddings.projection.weight"].flatten(1).shape
    pieces = synthetic.vocabulary().size
    for name in text:
        if name.startswith(("model.layers.", "model.norm.")):
            same(weights[f"text.{name.removeprefix('model.')}"], text[name])
    same(weights["text.embed_tokens.weight"], text["model.embed_tokens.weight"][:pieces])
    same(weights["text.lm_head.weight"], text["lm_head.weight"][:pieces])
    assert not weights["text.cross_layers.0.gate"].abs().max() > 1e-9  # closed: the language model's own answers at the start
    latest = runs.resolve_checkpoint("latest", tmp_path / "run")
    assert (latest / "tokenizer.model").read_bytes() == sources["tokenizer"].read_bytes()

    said = capsys.readouterr().err
    for key in ("video_encoder", "audio_encoder", "text_decoder"):
        (line,) = [line for line in said.splitlines() if f"tensors from '{sources[key]}'" in line]
        if key == "text_decoder":
            assert f"(first {pieces} of {pieces + 6} rows)" in line
            assert "new here: text.cross_layers." in line
        else:
            assert "not used: embeddings.cls_token" in line


def test_a_run_downloads_what_it_starts_from(tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (sources["text_decoder"] / "tokenizer.model").write_bytes(sources["tokenizer"].read_bytes())
    named = {"video_encoder": "hf:org/vit", "text_decoder": "hf:org/llama@v1"}
    words = [word for word in MODEL if "ast" not in word]
    with hub({"org/vit": sources["video_encoder"], "org/llama": sources["text_decoder"]}, tmp_path / "cache"):
        rehearsed = dry_run(recipe(tmp_path, named, *words), stage="finetune", device="cpu")
        assert "'hf:org/llama@v1' is not downloaded yet" in capsys.readouterr().out
        assert rehearsed["data"]["problem"] is None
        assert download_all(recipe(tmp_path, named, *words).init)  # as the command does, before it reads the recipe for good
        weights = finetuned(tmp_path, named, *words)
    same(weights["video_encoder.blocks.1.mlp.up.weight"], load(sources["video_encoder"])["encoder.layer.1.intermediate.dense.weight"])
    same(weights["text.norm.weight"], load(sources["text_decoder"])["model.norm.weight"])
    assert f"{COMMIT}'" in capsys.readouterr().err  # the note names the exact commit


def test_resume_does_not_load_them_again(tmp_path: Path, sources: dict[str, Path]) -> None:
    words = ["train.lr=1e-2", "train.steps=3", "train.checkpoint_every=1"]
    whole = finetuned(tmp_path, sources, *words)
    theirs = load(sources["video_encoder"])["encoder.layer.0.output.dense.weight"]
    assert (whole["video_encoder.blocks.0.mlp.down.weight"] - theirs).abs().max() > 1e-3  # they are trained
    (tmp_path / "run" / "checkpoints" / checkpoints_folder.step_name(3)).rename(tmp_path / "aside")
    for path in sources.values():
        path.rename(path.with_name(f"{path.name}-gone"))
    train(recipe(tmp_path, sources, *words, "train.weight_decay=0"), stage="finetune", device="cpu", resume=True)
    resumed = checkpoints_load.read_tensors(runs.resolve_checkpoint("latest", tmp_path / "run"), "model")
    assert resumed is not None
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_with_lora_a_run_starts_from_the_same_weights(tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    plain = finetuned(tmp_path, sources)
    still = ("train.steps=1", "train.lr=1e-12", "train.weight_decay=0", "model.lora.parts=[encoder, text]")
    train(recipe(tmp_path, sources, *still, f"run.dir={tmp_path / 'adapted'}"), stage="finetune", device="cpu")
    adapted = checkpoints_load.read_model(runs.resolve_checkpoint("latest", tmp_path / "adapted"))
    for name in plain:
        same(adapted[name], plain[name])
    assert "random values" not in capsys.readouterr().err


def test_what_is_frozen_at_random_values_is_said(tmp_path: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    del sources["audio_encoder"]
    words = [word for word in MODEL if "ast" not in word]
    for name, freeze, said in (
        ("whole", "freeze=[text]", "with random values, because nothing in `init` provides them: text.cross_layers.0."),
        ("layers", "freeze=[text.layers, text.norm, text.embed_tokens, video_encoder]", ""),
        ("lora", "model.lora.parts=[encoder, text]", "in `init` provides them: audio_encoder.blocks.0"),
        ("silent", "model.lora.parts=[encoder, text]", ""),
    ):
        more = ["data.audio=false"] if name == "silent" else []
        made = synthetic.recipe(tmp_path / name, tmp_path / "shards", *words, *(f"init.{k}={v}" for k, v in sources.items()), freeze, *more)
        if name == "whole":
            synthetic.write_split(tmp_path / "shards" / "train", 8, geometry=made.clip)
        train(made, stage="finetune", device="cpu", limit=4)
        told = capsys.readouterr().err
        assert said in told
        assert ("random values" in told) == bool(said), name


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, sources: dict[str, Path]) -> None:
    wide = recipe(tmp_path, {"video_encoder": sources["video_encoder"]}, "model.video_encoder.width=48")
    with pytest.raises(CheckpointError, match=r"model\.video_encoder\.width is 48, the source has 24"):
        train(wide, stage="finetune", device="cpu")
    shared = recipe(tmp_path, {key: sources[key] for key in ("video_encoder", "audio_encoder")}, "model.encoder.share=true")
    with pytest.raises(UsageError, match="share"):
        train(shared, stage="finetune", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_decoder_with_a_tokenizer_json_trains_and_its_checkpoint_loads(tmp_path: Path, sources: dict[str, Path]) -> None:
    from tests.text.test_json_tokenizer import save

    theirs = Vocabulary.from_file(save(tmp_path / "tokens", "llama-3"))
    decoder = llama(tmp_path / "llama-3", theirs.size + 8)
    for path in (tmp_path / "tokens").iterdir():
        path.rename(decoder / path.name)
    finetuned(tmp_path, {"text_decoder": decoder})
    loaded = checkpoints_load.load_model(runs.resolve_checkpoint("latest", tmp_path / "run"))
    assert (loaded.vocabulary.bos, loaded.vocabulary.eos, loaded.vocabulary.size) == (theirs.bos, theirs.eos, theirs.size)
    assert loaded.vocabulary.encode("déjà vu 3141") == theirs.encode("déjà vu 3141")
    assert loaded.model.text.embed_tokens.num_embeddings == theirs.size
    (decoder / "tokenizer.json").rename(tmp_path / "gone.json")
    again = recipe(tmp_path, {"text_decoder": decoder}, "train.steps=3", "train.lr=1e-12", "train.weight_decay=0")
    train(again, stage="finetune", device="cpu", resume=True)
    export(tmp_path / "run", tmp_path / "exported")
    assert checkpoints_load.load_model(tmp_path / "exported").vocabulary.encode("vu") == theirs.encode("vu")
