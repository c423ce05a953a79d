"""Checkpoints of earlier versions are refused with the names that replace theirs."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mirasol_cli.checkpoints.load import load_model
from mirasol_cli.checkpoints.runs import DEMO_CHECKPOINT
from mirasol_cli.errors import CheckpointError
from mirasol_cli.training.setup import load_fitting


def changed(folder: Path, name: str, change: Callable[[str], str]) -> Path:
    """A copy of the packaged checkpoint in which one file differs and the manifest agrees."""
    shutil.copytree(DEMO_CHECKPOINT, folder)
    content = change((folder / name).read_text()).encode()
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_old_names_in_the_config(tmp_path: Path) -> None:
    old = changed(tmp_path / "old", "config.json", lambda text: text.replace('"n_mels"', '"bins"').replace('"num_outputs"', '"outputs"'))
    says = r"clip\.audio\.bins is called clip\.audio\.n_mels now, model\.combiner\.outputs is called model\.combiner\.num_outputs now"
    with pytest.raises(CheckpointError, match=says) as caught:
        load_model(old)
    assert caught.value.hint == "train it again"
    loaded = load_model(DEMO_CHECKPOINT)
    with pytest.raises(CheckpointError, match=says):
        load_fitting(loaded.model, old, loaded.vocabulary)


def test_removed_keys_in_the_config(tmp_path: Path) -> None:
    old = changed(tmp_path / "old", "config.json", lambda text: text.replace('"initial_memory"', '"read": "query", "initial_memory"'))
    with pytest.raises(CheckpointError, match=r"model\.combiner\.read no longer exists"):
        load_model(old)


def test_old_names_in_the_recipe(tmp_path: Path) -> None:
    old = changed(tmp_path / "old", "recipe.yaml", lambda text: text.replace("global_batch_size:", "batch_clips:"))
    with pytest.raises(CheckpointError, match=r"`train\.batch_clips` was renamed to `train\.global_batch_size`"):
        load_model(old)
