"""Model folders that cannot be used, through the commands: one sentence and the way out, the exit code, and nothing written.

What config.json and the heads of the files tell is told by `recipes validate` and `--dry-run` as by training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mirasol_cli.cli import app
from mirasol_cli.config.hub import HUB
from mirasol_cli.config.reader import parse_recipe
from tests import synthetic
from tests.training.test_init import ast, llama, vit

RECIPE = f"""
schema: 1
name: wrong
data: {{dataset: synthetic, shards: shards, questions_per_clip: 2}}
{synthetic.CLIP_YAML.replace("columns: 16", "columns: 26, frontend: ast, patch_stride: 10")}{synthetic.MODEL_YAML}
loss: {{text: 10, latent: 1, video: 1}}
train: {{steps: 1, global_batch_size: 4}}
"""
FOLDERS = ("video_encoder", "audio_encoder", "text_decoder")
COMMANDS = (["recipes", "validate", "r.yaml"], ["finetune", "r.yaml", "--dry-run"], ["finetune", "r.yaml", "--device", "cpu"])


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a recipe, its shards, and three model folders named as their keys of `init`, all right."""
    monkeypatch.chdir(tmp_path)
    vit(tmp_path / "video_encoder")
    ast(tmp_path / "audio_encoder")
    llama(tmp_path / "text_decoder", synthetic.vocabulary().size)
    (tmp_path / "text_decoder" / "tokenizer.model").write_bytes(synthetic.vocabulary().model_bytes)
    (tmp_path / "r.yaml").write_text(RECIPE)
    synthetic.write_split(tmp_path / "shards" / "train", 4, geometry=parse_recipe(RECIPE, "r.yaml").clip)
    return tmp_path


def init(*more: str) -> list[str]:
    return [*(f"init.{key}={key}" for key in FOLDERS), *more]


def change(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def other_family(folder: Path) -> None:
    """An encoder's folder holds a text model, and the text model's an encoder."""
    other = folder.parent / ("video_encoder" if folder.name == "text_decoder" else "text_decoder")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(other / name, folder / name)


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shard(folder: Path) -> Path:
    """Spread the weights over two files as large models have them; returns the second one."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder / "model-00002-of-00002.safetensors"


def half(path: Path) -> None:
    """As a download leaves it that was cut."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "the model folder '{key}' is missing"),
    "no folder": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "the model folder '{key}' is missing"),
    "without config": (lambda folder: (folder / "config.json").unlink(), "'{key}/config.json' is missing"),
    "config damaged": (lambda folder: half(folder / "config.json"), "'{key}/config.json' is damaged"),
    "config no object": (lambda folder: (folder / "config.json").write_text("[]"), "'{key}/config.json' is damaged: not a JSON object"),
    "another family": (other_family, "is needed here"),
    "unknown family": (lambda folder: change(folder, model_type="bert"), "'{key}' is a model of type 'bert', but"),
    "without weights": (lambda folder: (folder / "model.safetensors").unlink(), "'{key}' has neither model.safetensors nor"),
    "pickle only": (pickle_only, "its .bin files are pickles, which are never opened"),
    "half-downloaded": (lambda folder: half(folder / "model.safetensors"), "'{key}/model.safetensors' is damaged"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "'{key}/model.safetensors' is damaged"),
    "shard missing": (lambda folder: shard(folder).unlink(), "'{key}/model-00002-of-00002.safetensors' is missing"),
    "shard cut": (lambda folder: half(shard(folder)), "'{key}/model-00002-of-00002.safetensors' is damaged"),
    "index cut": (
        lambda folder: (shard(folder), half(folder / "model.safetensors.index.json")),
        "model.safetensors.index.json' is damaged",
    ),
}


def refused(capsys: pytest.CaptureFixture[str], code: int, words: str, *command: str) -> str:
    """The message on stderr: one line, and a hint."""
    assert app.run(list(command)) == code
    said = capsys.readouterr()
    assert said.out == ""
    errors = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said.err
    assert words in said.err
    assert "Traceback" not in said.err
    assert not Path("runs").exists()
    return said.err


@pytest.mark.parametrize("key", FOLDERS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_is_named_by_every_command(models: Path, capsys: pytest.CaptureFixture[str], wrong: str, key: str) -> None:
    spoil, words = WRONG[wrong]
    spoil(models / key)
    for command in COMMANDS:
        refused(capsys, 4, words.format(key=key), *command, *init())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["model.video_encoder.width=48"], 4, "model.video_encoder.width is 48, the source has 24"),
        (["model.text.layers=4"], 4, "model.text.layers is 4, the source has 2"),
        (["model.encoder.share=true"], 2, "would both fill the encoder"),
        (["init.tokenizer=other.model"], 2, "another vocabulary than the one that init.text_decoder was trained with"),
        (["init.tokenizer=nowhere.model"], 4, "init.tokenizer: there is no tokenizer 'nowhere.model'"),
        ([f"init.video_encoder={HUB}no-owner"], 2, "is not hf:ORG/NAME"),
        (["model.lora.parts=[encoder, combiner]"], 2, "'combiner' is not one of encoder"),
    ],
)
def test_what_does_not_fit_the_recipe(models: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str) -> None:
    from mirasol_cli.text.tokenizer import train_vocabulary

    (models / "other.model").write_bytes(train_vocabulary(["some other words", "than those"], 300))
    for command in COMMANDS:
        refused(capsys, code, said, *command, *init(*words))


def test_a_tokenizer_with_more_pieces_than_the_model_has_rows(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = synthetic.vocabulary().size
    shutil.rmtree(models / "text_decoder")
    llama(models / "text_decoder", pieces - 5)
    (models / "text_decoder" / "tokenizer.model").write_bytes(synthetic.vocabulary().model_bytes)
    change(models / "text_decoder", vocab_size=pieces - 5)
    for command in COMMANDS:
        refused(capsys, 4, f"the vocabulary is {pieces}, the source has {pieces - 5}", *command, *init())


def test_a_decoder_without_a_tokenizer(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "text_decoder" / "tokenizer.model").unlink()
    said = "init.text_decoder: there is no tokenizer 'text_decoder/tokenizer.model or tokenizer.json'"
    for command in COMMANDS:
        refused(capsys, 4, said, *command, *init())


def test_a_damaged_tokenizer(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half(models / "text_decoder" / "tokenizer.model")
    for command in COMMANDS:
        refused(capsys, 4, "text_decoder/tokenizer.model' is damaged", *command, *init())


def test_sizes_that_make_no_model_are_a_fault_of_the_folders_config(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(models / "video_encoder", num_attention_heads=5)
    said = refused(capsys, 2, "width 24 is not divisible by 5 heads", "recipes", "validate", "r.yaml", *init())
    assert "video_encoder/config.json" in said


def test_fewer_layers_than_config_says_are_found_when_they_are_read(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, name in (("video_encoder", "num_hidden_layers"), ("text_decoder", "num_hidden_layers")):
        change(models / key, **{name: 3})
        refused(capsys, 4, f"'{key}' has no tensor '", "finetune", "r.yaml", "--device", "cpu", *init())
        change(models / key, **{name: 2})


def test_a_missing_folder_is_told_before_what_follows_from_it(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the folder the spectrogram would be another one than that of the shards."""
    words = ("finetune", "memorise", "--device", "cpu", "data.shards=shards", "init.audio_encoder=nowhere")
    refused(capsys, 4, "the model folder 'nowhere' is missing", *words)


def test_right_folders_are_valid(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard(models / "text_decoder")
    assert app.run(["recipes", "validate", "r.yaml", *init()]) == 0
    assert app.run(["finetune", "r.yaml", "--device", "cpu", *init()]) == 0
    assert "tensors from 'text_decoder'" in capsys.readouterr().err
