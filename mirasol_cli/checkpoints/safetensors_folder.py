"""A model folder in Hugging Face layout: config.json and one or several safetensors files. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirasol_cli.errors import CheckpointError
from mirasol_cli.files import inside, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class SafetensorsFolder:
    """Reads tensors one by one.

    Attributes:
        config: content of config.json.
        preprocessor: content of preprocessor_config.json, empty where there is none.
        names: all tensors of all files.

    Raises:
        CheckpointError: the folder, its config or its weights are missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            raise CheckpointError(f"the model folder '{folder}' is missing", "give a local folder with config.json and model.safetensors")
        self.config = self._json("config.json")
        self.preprocessor = self._json("preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
        self._file_of = self._locate()

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", "unnamed"))

    def tensor(self, name: str) -> Tensor:
        """Raises CheckpointError if there is no such tensor, or its file is damaged."""
        if name not in self._file_of:
            raise CheckpointError(
                f"'{self.folder}' has no tensor '{name}', which every {self.model_type} model has", "copy the folder again"
            )
        path = self._file_of[name]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from None

    def _locate(self) -> dict[str, Path]:
        if (self.folder / WEIGHTS).is_file():
            files = {self.folder / WEIGHTS}
        elif (self.folder / INDEX).is_file():
            files = {self._inner(name) for name in _weight_map(self._json(INDEX), self.folder / INDEX).values()}
        else:
            pickled = any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt*"))
            hint = "its .bin files are pickles, which are never opened: save the model again as safetensors" if pickled else None
            raise CheckpointError(f"'{self.folder}' has neither {WEIGHTS} nor {INDEX}", hint)
        found: dict[str, Path] = {}
        for path in sorted(files):
            try:
                with safe_open(path, framework="pt") as file:
                    found |= dict.fromkeys(file.keys(), path)
            except FileNotFoundError:
                raise CheckpointError(f"'{path}' is missing", "copy the folder again") from None
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from None
        return found

    def _inner(self, name: str) -> Path:
        path = inside(self.folder, name)
        if path is None:
            raise CheckpointError(f"'{self.folder / INDEX}' names the file {name!r} outside of its folder", "do not use this folder")
        return path

    def _json(self, name: str) -> dict[str, Any]:
        content = read_json(self.folder / name)
        if not isinstance(content, dict):
            raise CheckpointError(f"'{self.folder / name}' is damaged: not a JSON object", "copy the folder again")
        return content


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"'{path}' is damaged: no weight_map of file names", "copy the folder again")
    return names


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"'{path}' is damaged: {error}", "copy the file again")
