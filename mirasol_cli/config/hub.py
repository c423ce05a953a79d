"""Model folders by name: a local folder, or `hf:ORG/NAME[@REVISION]`, a repository of the Hugging Face hub.

Of a repository only config files, tokenizers and safetensors are taken: no code, no pickles. What was downloaded is found again
without a network.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mirasol_cli.errors import DataError, EnvironmentProblem, MirasolError, UsageError
from mirasol_cli.files import read_json

HUB = "hf:"
FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
)  # fmt: skip
"""Patterns of the files that are taken."""
_NAME = re.compile(r"hf:(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


def folder_of(name: str) -> Path:
    """The local folder of a name. One that was not downloaded yet is given as it is written, which no folder is called.

    Raises:
        UsageError: it begins with `hf:` and is no name of a repository.
    """
    if not name.startswith(HUB):
        return Path(name)
    repository, revision = _split(name)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES), local_files_only=True))
    except Exception:  # not installed, or not in the cache, which says so in several ways
        return Path(name)


def download(name: str) -> Path:
    """The local folder of a name, downloaded where it is `hf:`; newer files of the same revision replace older ones.

    Raises:
        UsageError: it begins with `hf:` and is no name of a repository.
        EnvironmentProblem: `huggingface_hub` is not installed, or the hub cannot be reached and nothing was downloaded before.
        DataError: the repository or revision does not exist, is not open to this user, or holds no safetensors.
    """
    if not name.startswith(HUB):
        return Path(name)
    repository, revision = _split(name)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        raise EnvironmentProblem(f"'{name}' needs the package huggingface_hub", "pip install 'mirasol[hub]'") from None
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    page = f"{endpoint}/{repository}"
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES), endpoint=endpoint))
    except GatedRepoError:
        raise DataError(
            f"'{name}' is gated: its owner must grant you access", f"request access at {page}, then log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise DataError(f"'{name}': the repository has no revision {revision!r}", f"see {page}/commits for its revisions") from None
    except RepositoryNotFoundError:
        raise DataError(
            f"'{name}': the model does not exist or is private",
            f"check the name at {page}; if private, log in with `hf auth login`",
        ) from None
    except Exception as error:  # offline, proxies, time-outs, a full disk: the libraries below have a class for each
        raise _unreachable(name, repository, error) from None
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            f"'{name}' holds no {FILES[7]}: its other files may be pickles, which are never downloaded",
            "choose a revision or model that has safetensors",
        )
    if not _is_here(folder, weights=True):
        raise EnvironmentProblem(
            f"'{name}' is only partly downloaded, and the rest cannot be downloaded now",
            f"run `hf download {repository}` where there is a network",
        )
    return folder


def _unreachable(name: str, repository: str, error: Exception) -> EnvironmentProblem:
    if isinstance(error, OSError) and error.errno == 28:
        return EnvironmentProblem(f"'{name}' does not fit on the disk", "make room, or set HF_HOME to a folder on another disk")
    reason = " ".join(str(error).split())[:200]
    return EnvironmentProblem(
        f"'{name}' is not downloaded and cannot be downloaded now: {reason}",
        f"run `hf download {repository}` where there is a network, and give the folder that it prints instead of {HUB}...",
    )


def _split(name: str) -> tuple[str, str | None]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"'{name}' is not hf:ORG/NAME or hf:ORG/NAME@REVISION", "as in hf:google/siglip-base-patch16-224")
    return match[1], match[2]


def named_folders(init: Any) -> dict[str, str]:
    """Key of `init` -> the model folder or repository that it names."""
    keys = ("video_encoder", "audio_encoder", "text_decoder", "tokenizer")
    return {key: name for key in keys if (name := getattr(init, key)) is not None}


def not_downloaded(init: Any) -> dict[str, str]:
    """Those of `named_folders` that are on the hub, and not all here."""
    on_hub = {key: name for key, name in named_folders(init).items() if name.startswith(HUB)}
    return {key: name for key, name in on_hub.items() if not _is_here(folder_of(name), weights=key != "tokenizer")}


def _is_here(folder: Path, *, weights: bool) -> bool:
    """Whether a download came to its end: an interrupted one leaves some of the files."""
    if not weights or not folder.is_dir() or (folder / "model.safetensors").is_file():
        return folder.is_dir()
    try:
        named = read_json(folder / "model.safetensors.index.json")["weight_map"].values()
        return all((folder / name).is_file() for name in named)
    except (MirasolError, KeyError, TypeError, AttributeError):
        return False


def download_all(init: Any) -> bool:
    """Download what `init` names of the hub; returns whether there was anything of that kind."""
    names = [name for name in named_folders(init).values() if name.startswith(HUB)]
    for name in names:
        download(name)
    return bool(names)
