"""Language models of every family at random weights, against transformers: logits and greedy answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mirasol_cli.checkpoints.import_text import load_text_decoder
from mirasol_cli.config.families import text_sizes
from mirasol_cli.config.reader import parse_recipe
from mirasol_cli.errors import CheckpointError
from mirasol_cli.files import read_json
from mirasol_cli.geometry import AudioGeometry, ClipGeometry
from mirasol_cli.inference.decoding import greedy
from mirasol_cli.model.config import CombinerConfig, EncoderConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig
from mirasol_cli.model.mirasol import Mirasol
from tests.checkpoints.pretrained import PIECES, TEXT, imported_transformers, save_text

GEOMETRY = ClipGeometry(frames=16, chunks=2, size=64, audio=AudioGeometry(n_mels=32, columns=48))
LENGTH = 150
"""Longer than Llama 3's original length in these files, so that its scaled positions matter."""


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    with imported_transformers() as transformers:
        yield transformers


def build(folder: Path, pieces: int = PIECES, **text: Any) -> Mirasol:
    """A model whose text decoder has the sizes that the folder's config.json says."""
    torch.manual_seed(1)
    sizes = text_sizes(read_json(folder / "config.json"))
    config = ModelConfig(
        encoder=EncoderConfig(width=24, layers=1, heads=2, mlp_dim=24),
        combiner=CombinerConfig(width=16, layers=1, heads=2, mlp_dim=16, num_outputs=4),
        latent=LatentConfig(width=16, layers=1, heads=2, mlp_dim=16),
        reconstruction=ReconstructionConfig(width=16, layers=1, heads=2, mlp_dim=16),
        text=TextConfig.from_plain({"cross_attention_every": 2} | sizes | text),
    )
    return Mirasol(config, GEOMETRY, pieces).eval()


@pytest.mark.parametrize("stored", ["one file", "sharded", "bf16"])
@pytest.mark.parametrize("family", TEXT)
def test_a_family_gives_the_sources_logits_and_greedy_answers(hf: Any, tmp_path: Path, family: str, stored: str) -> None:
    source = save_text(hf, tmp_path, family, shards="20KB" if stored == "sharded" else "1GB", bf16=stored == "bf16")
    assert (tmp_path / "model.safetensors.index.json").exists() == (stored == "sharded")
    model = build(tmp_path)
    report = load_text_decoder(model, tmp_path)
    ids = torch.randint(0, PIECES, (2, 2, LENGTH), generator=torch.Generator().manual_seed(3))
    text_kv = model.text.project_kv(torch.randn(2, 8, 16))
    with torch.no_grad():
        expected = source(ids.flatten(0, 1)).logits.view(2, 2, LENGTH, PIECES)
        error = (model.text(ids, None, text_kv) - expected).abs().max()
        assert error <= 1e-4
        assert expected.std() > 0.3
        prompts = ids.flatten(0, 1)[:, :40]
        generated = source.generate(
            prompts, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0, attention_mask=torch.ones_like(prompts)
        )[:, 40:]
    answers = greedy(model.text, text_kv, [prompts[:2].tolist(), prompts[2:].tolist()], eos=-1, max_tokens=20)
    found = [answer.ids for clip in answers for answer in clip]
    assert found == generated.tolist()
    assert len({token for ids in found for token in ids}) > 2
    assert report.unexpected == ()
    assert all(name.startswith(("text.cross_layers.", "text.kv_proj.")) for name in report.missing)


def test_llama_3s_scaled_positions_are_not_the_plain_ones(hf: Any, tmp_path: Path) -> None:
    source = save_text(hf, tmp_path, "llama-3")
    scaled, plain = build(tmp_path), build(tmp_path, rope_scaling={"factor": 1.0})
    load_text_decoder(scaled, tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.text\.rope_scaling is .*'factor': 1\.0.*, the source has .*'factor': 8\.0"):
        load_text_decoder(plain, tmp_path)
    plain.load_state_dict(scaled.state_dict())
    ids = torch.randint(0, PIECES, (1, 1, LENGTH))
    with torch.no_grad():
        expected = source(ids[0]).logits[None]
        assert (scaled.text(ids) - expected).abs().max() <= 1e-4
        assert (plain.text(ids) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("family", TEXT)
def test_a_recipe_takes_the_sizes_of_the_folder_that_it_names(hf: Any, tmp_path: Path, family: str) -> None:
    save_text(hf, tmp_path, family)
    recipe = parse_recipe("schema: 1\nname: x\nmodel: {preset: demo}\n", "x.yaml", [f"init.text_decoder={tmp_path}"])
    expected = TextConfig.from_plain({"cross_attention_every": 1} | text_sizes(read_json(tmp_path / "config.json")))
    assert recipe.model.text == expected
    assert expected.layers == 4
    own = parse_recipe("schema: 1\nname: x\n", "x.yaml", [f"init.text_decoder={tmp_path}", "model.text.layers=2"])
    assert own.model.text.layers == 2  # what a recipe says stands; loading then names both


def test_sizes_that_make_no_model_are_said_with_the_file(hf: Any, tmp_path: Path) -> None:
    save_text(hf, tmp_path, "llama-2")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": "four"}))
    with pytest.raises(Exception, match=r"config\.json.*`model\.text\.layers` is a whole number"):
        parse_recipe("schema: 1\nname: x\n", "x.yaml", [f"init.text_decoder={tmp_path}"])


@pytest.mark.parametrize(
    ("family", "option", "words"),
    [
        ("llama-2", {"attention_bias": True}, "a bias of the attention's output"),
        ("llama-2", {"mlp_bias": True}, "a bias of the MLP"),
        ("llama-2", {"hidden_act": "gelu"}, r"the activation gelu \(silu is known\)"),
        ("llama-2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "rotary positions of type linear"),
        ("mistral", {"sliding_window": 500}, "a sliding window of 500 tokens, below the 720"),
        ("qwen-2", {"use_sliding_window": True, "sliding_window": 100}, "a sliding window of 100 tokens"),
    ],
)
def test_what_the_decoder_has_no_option_for_is_refused(hf: Any, tmp_path: Path, family: str, option: dict, words: str) -> None:
    save_text(hf, tmp_path, family, **option)
    with pytest.raises(CheckpointError, match=words):
        load_text_decoder(build(tmp_path), tmp_path)


def test_a_tied_llama(hf: Any, tmp_path: Path) -> None:
    source = save_text(hf, tmp_path, "llama-2", tie_word_embeddings=True)
    ids = torch.randint(0, PIECES, (1, 1, 9))
    for tied in (True, False):
        model = build(tmp_path, tie_embeddings=tied)
        load_text_decoder(model, tmp_path)
        with torch.no_grad():
            assert (model.text(ids) - source(ids[0]).logits[None]).abs().max() <= 1e-4


def test_an_output_layer_of_its_own_cannot_be_tied(hf: Any, tmp_path: Path) -> None:
    save_text(hf, tmp_path, "llama-2")
    with pytest.raises(CheckpointError, match="tie_embeddings is True, the source has False"):
        load_text_decoder(build(tmp_path, tie_embeddings=True), tmp_path)


def test_padding_rows_of_the_embedding_are_cut_with_a_report_and_too_few_refused(hf: Any, tmp_path: Path) -> None:
    source = save_text(hf, tmp_path, "llama-2", vocab_size=64)
    model = build(tmp_path)
    report = load_text_decoder(model, tmp_path)
    assert "text.embed_tokens.weight (first 50 of 64 rows)" in report.resized
    ids = torch.randint(0, PIECES, (1, 1, 9))
    with torch.no_grad():
        assert (model.text(ids) - source(ids[0]).logits[None, ..., :PIECES]).abs().max() <= 1e-4
    with pytest.raises(CheckpointError, match="the vocabulary is 65, the source has 64"):
        load_text_decoder(build(tmp_path, pieces=65), tmp_path)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"num_hidden_layers": 2}, "model.text.layers is 4, the source has 2"),
        ({"rope_theta": 20000.0}, "model.text.rope_theta is 10000.0, the source has 20000.0"),
        ({"rms_norm_eps": 1e-6}, "model.text.norm_eps is 1e-05, the source has 1e-06"),
        ({"head_dim": 16}, "model.text.head_dim is 8, the source has 16"),
    ],
)
def test_a_llama_of_another_kind_is_refused_with_both_values(hf: Any, tmp_path: Path, option: dict, words: str) -> None:
    save_text(hf, tmp_path / "other", "llama-2")
    save_text(hf, tmp_path, "llama-2", **option)
    model = build(tmp_path / "other", head_dim=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_text_decoder(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_old_llama_config_files_are_read(hf: Any, tmp_path: Path) -> None:
    save_text(hf, tmp_path, "llama-2")
    model, path = build(tmp_path), tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    for extra, words in (
        ({"rope_theta": 5000.0}, "rope_theta is 10000.0, the source has 5000.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "dynamic"),
    ):
        path.write_text(json.dumps(config | extra))
        with pytest.raises(CheckpointError, match=words):
            load_text_decoder(model, tmp_path)
    path.write_text(json.dumps(config))
    assert load_text_decoder(model, tmp_path).loaded
