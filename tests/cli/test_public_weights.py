"""The whole way from public weights, by the commands: prepare, finetune, eval, ask, export, load; random weights of each layout, those
beside Whisper adapted by LoRA, which export merges."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mirasol_cli as mirasol
from mirasol_cli.checkpoints.load import read_model
from mirasol_cli.cli import app
from tests.checkpoints.pretrained import AUDIO, TEXT, VIDEO, imported_transformers, save_encoder, save_text
from tests.paths import SHARED
from tests.text.test_json_tokenizer import save as save_tokenizer

CLIPS = ("01_dog.mp4", "rails_video.webm", "rails_video_without_audio_stream.mp4")
QUESTIONS = {"what is it?": ("a dog", "a train", "rails"), "is there sound?": ("yes", "yes", "no")}
SMALL = (
    "clip.frames=16", "clip.chunks=2", "clip.size=64", "clip.audio.columns=48", "train.steps=3", "train.warmup_steps=0",
    "train.global_batch_size=2", "model.combiner.num_outputs=4", "eval.max_tokens=4",
)  # fmt: skip
ALL = [(video, "ast", "llama-2") for video in VIDEO] + [("vit", audio, "llama-2") for audio in AUDIO]
ALL += [("siglip", "whisper", text) for text in TEXT]
FAST = [("siglip", "whisper", "qwen-2"), ("videomae", "ast", "llama-3")]


@pytest.fixture(scope="module")
def hf() -> Iterator[Any]:
    with imported_transformers() as transformers:
        yield transformers


@pytest.mark.real
@pytest.mark.parametrize(
    ("video", "audio", "text"), [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in FAST)]
)
def test_from_weights_to_answers(
    hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], video: str, audio: str, text: str
) -> None:
    assert SHARED is not None
    monkeypatch.chdir(tmp_path)
    save_encoder(hf, tmp_path / "video", video)
    save_encoder(hf, tmp_path / "audio", audio)
    pieces = mirasol_vocabulary(tmp_path / "text")
    save_text(hf, tmp_path / "text", text, vocab_size=pieces + 4)
    (tmp_path / "videos").mkdir()
    lines = []
    for number, name in enumerate(CLIPS):
        shutil.copy(SHARED / "clips" / name, tmp_path / "videos" / name)
        lines += [
            json.dumps({"video": name, "start": 0, "end": 4, "question": question, "answer": answers[number]})
            for question, answers in QUESTIONS.items()
        ]
    (tmp_path / "my.jsonl").write_text("\n".join(lines))

    def run(*words: str) -> str:
        code = app.run(list(words))
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    init = [f"init.{part}_{kind}={tmp_path / part}" for part, kind in (("video", "encoder"), ("audio", "encoder"), ("text", "decoder"))]
    geometry = [word for word in SMALL if word.startswith("clip.")]
    run("prepare", "my.jsonl", "--root", str(tmp_path / "videos"), "--out", "shards", "--workers", "1", *geometry, init[1])
    lora = ["model.lora.parts=[encoder, text]", "train.lr=1e-2"] if audio == "whisper" else []
    run("finetune", "memorise", "data.shards=shards", *SMALL, *init, *lora)
    for folder in ("video", "audio", "text"):  # a run is on its own from here on
        (tmp_path / folder).rename(tmp_path / f"{folder}-gone")
    run("finetune", "memorise", "--resume", "data.shards=shards", *SMALL, *init, *lora, "train.steps=4")
    found = json.loads(run("eval", "runs/memorise", "--json"))
    assert found["n"] == 6
    run("export", "runs/memorise", "exported", *(["--merge-lora"] if lora else []))
    question = ("ask", "videos/01_dog.mp4", "what is it?", "--json", "--checkpoint")
    asked = json.loads(run(*question, "exported"))
    before = json.loads(run(*question, "runs/memorise"))
    assert asked["answer"] == before["answer"]
    assert asked["logprob"] == pytest.approx(before["logprob"], abs=1e-4)
    model = mirasol.load(tmp_path / "exported")
    assert not any(".lora_" in name for name in read_model(tmp_path / "exported"))
    assert model.ask(str(tmp_path / "videos" / "01_dog.mp4"), "what is it?").answer == asked["answer"]


def mirasol_vocabulary(folder: Path) -> int:
    """A tokenizer.json beside the text model; the number of its pieces."""
    content = json.loads(save_tokenizer(folder, "qwen").read_text())
    return len(content["model"]["vocab"])
