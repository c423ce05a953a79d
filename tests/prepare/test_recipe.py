"""The spectrogram that `prepare` makes is the one that the audio encoder's weights need, or it makes none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirasol_cli.errors import CheckpointError
from mirasol_cli.prepare.command import prepare
from mirasol_cli.prepare.recipe import recipe_with_front_end
from tests.config.hub_server import hub

WHISPER = {"model_type": "whisper", "d_model": 24, "encoder_layers": 2, "encoder_attention_heads": 2, "num_mel_bins": 40}


@pytest.mark.parametrize("content", [None, {"model_type": "vit"}])
def test_an_audio_encoder_that_does_not_say_its_spectrogram_is_refused(tmp_path: Path, content: dict | None) -> None:
    if content is not None:
        (tmp_path / "encoder").mkdir()
        (tmp_path / "encoder" / "config.json").write_text(json.dumps(content))
    overrides = [f"init.audio_encoder={tmp_path / 'encoder'}"]
    with pytest.raises(CheckpointError, match=r"init\.audio_encoder: '.*encoder' is no folder of an AST or Whisper"):
        prepare("vggsound", root=tmp_path, out=tmp_path / "shards", overrides=overrides, dry_run=True)
    assert not (tmp_path / "shards").exists()


def test_one_on_the_hub_is_downloaded_unless_the_recipe_says_all(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    (tmp_path / "whisper").mkdir()
    (tmp_path / "whisper" / "config.json").write_text(json.dumps(WHISPER))
    (tmp_path / "whisper" / "model.safetensors").write_bytes(b"tensors")
    with hub({"org/whisper": tmp_path / "whisper"}, tmp_path / "cache") as asked:
        found = recipe_with_front_end("vggsound", ["init.audio_encoder=hf:org/whisper"]).clip.audio
        assert (found.frontend, found.n_mels, found.n_fft) == ("whisper", 40, 400)
        asked.clear()
        assert recipe_with_front_end("vggsound-public", []).clip.audio.frontend == "ast"
        assert asked == []
