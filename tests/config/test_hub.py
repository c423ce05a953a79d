"""`hf:` names against a hub on this machine: what is taken, found again offline, and refused with the way out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mirasol_cli.config.hub import HUB, download, folder_of, not_downloaded
from mirasol_cli.config.reader import parse_recipe
from mirasol_cli.config.schema import InitRecipe
from mirasol_cli.errors import DataError, EnvironmentProblem, UsageError
from tests.config.hub_server import COMMIT, hub

pytest.importorskip("huggingface_hub")

CONFIG = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(b"tensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_vit.py").write_text("raise SystemExit")
    return folder


def test_safetensors_and_settings_are_taken_and_nothing_else(tmp_path: Path, repository: Path) -> None:
    with hub({"org/vit": repository}, tmp_path / "cache") as asked:
        folder = download("hf:org/vit")
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        assert folder.name == COMMIT
        assert not any(path.endswith((".bin", ".py")) for path in asked)
        asked.clear()
        assert folder_of("hf:org/vit") == folder
        assert asked == []  # found again without the network
    assert folder_of(str(repository)) == repository
    assert download(str(repository)) == repository


def test_without_a_network_what_was_downloaded_is_still_there(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub({"org/vit": repository}, tmp_path / "cache"):
        folder = download("hf:org/vit")
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert download("hf:org/vit") == folder
    with pytest.raises(EnvironmentProblem, match="'hf:org/other' is not downloaded and cannot be downloaded now") as caught:
        download("hf:org/other")
    assert "hf download org/other" in str(caught.value.hint)
    assert folder_of("hf:org/other") == Path("hf:org/other")


def test_a_download_that_was_cut_goes_on_and_offline_it_is_told_apart(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "model.safetensors").unlink()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (repository / name).write_bytes(b"tensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    init = InitRecipe(video_encoder="hf:org/vit")
    with hub({"org/vit": repository}, tmp_path / "cache"):
        assert not_downloaded(init) == {"video_encoder": "hf:org/vit"}
        folder = download("hf:org/vit")
        assert not_downloaded(init) == {}
        missing = folder / "model-00002-of-00002.safetensors"
        missing.unlink()
        assert not_downloaded(init) == {"video_encoder": "hf:org/vit"}
        download("hf:org/vit")
        assert missing.is_file()
        missing.unlink()
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EnvironmentProblem, match=r"'hf:org/vit' (is only partly downloaded|is not downloaded)") as caught:
        download("hf:org/vit")
    assert "hf download org/vit" in str(caught.value.hint)


def test_a_revision_is_taken_and_a_wrong_one_named(tmp_path: Path, repository: Path) -> None:
    with hub({"org/vit": repository}, tmp_path / "cache"):
        assert download("hf:org/vit@v1").name == COMMIT
        with pytest.raises(DataError, match="has no revision 'v9'"):
            download("hf:org/vit@v9")


def test_what_the_hub_refuses_is_said_with_the_way_out(tmp_path: Path, repository: Path) -> None:
    with hub({"org/vit": repository}, tmp_path / "cache", gated=("meta/llama",)):
        with pytest.raises(DataError, match="the model does not exist or is private") as caught:
            download("hf:org/nothing")
        assert "/org/nothing" in str(caught.value.hint)
        with pytest.raises(DataError, match="is gated") as caught:
            download("hf:meta/llama")
        assert "hf auth login" in str(caught.value.hint)


def test_a_repository_of_pickles_is_refused(tmp_path: Path, repository: Path) -> None:
    (repository / "model.safetensors").unlink()
    with hub({"org/vit": repository}, tmp_path / "cache"), pytest.raises(DataError, match=r"holds no model\.safetensors: its other files"):
        download("hf:org/vit")


@pytest.mark.parametrize("name", ["hf:", "hf:vit", "hf:a/b/c", "hf:a/b@", "hf:../x", "hf: a/b"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    for read in (folder_of, download):
        with pytest.raises(UsageError, match=r"is not hf:ORG/NAME or hf:ORG/NAME@REVISION"):
            read(name)


def test_without_the_package_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert folder_of("hf:org/vit") == Path("hf:org/vit")
    with pytest.raises(EnvironmentProblem, match="needs the package huggingface_hub") as caught:
        download(f"{HUB}org/vit")
    assert caught.value.hint == "pip install 'mirasol[hub]'"


def test_a_recipe_takes_the_sizes_of_what_was_downloaded(tmp_path: Path, repository: Path) -> None:
    def width() -> int:
        return parse_recipe("schema: 1\nname: x\nmodel: {preset: demo}\ninit: {video_encoder: hf:org/vit}\n", "x.yaml").model.encoder.width

    with hub({"org/vit": repository}, tmp_path / "cache"):
        assert width() == 128  # the preset's: not there yet
        download("hf:org/vit")
        assert width() == 24
