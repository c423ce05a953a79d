"""Checkpoints that are complete or absent, and never pickled.

A checkpoint is written as `step-00001000.partial/`: every file is flushed to disk, `manifest.json` with the SHA-256 of all
of them comes last, then the folder is renamed, and the text file `latest` (a hint for people; no reader relies on it) follows.
A reader looks at all folders itself and trusts only what the manifest confirms, so it knows every state a killed writer can leave:

    step-N.partial   unfinished: never read, removed by the next writer
    step-N           complete: renamed only after the manifest was on disk
    step-N.trash     being rotated out: never read, removed by the next writer
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.errors import CheckpointError, DataError, EnvironmentProblem
from mirasol_cli.files import disk_problem, read_json, sha256_of, sync_folder, write_atomic

if TYPE_CHECKING:
    from torch import Tensor


CHECKPOINT_SCHEMA = 1
MANIFEST = "manifest.json"
LATEST = "latest"
FROZEN = "frozen"
"""Stem of the tensors that a run does not train: written once, and shared by its checkpoints."""
LARGEST_FILE_BYTES = 5 << 30
"""Tensors beyond this are spread over several files, named as Hugging Face does."""
_COMPLETE_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED_NAME = re.compile(r"step-\d{8,}\.(?:partial|trash)")


@dataclass(frozen=True)
class Contents:
    """What goes into one checkpoint: small files by name, sets of tensors by stem (`model` -> `model.safetensors`), and a checkpoint
    whose files of frozen tensors it shares (`FROZEN`)."""

    files: Mapping[str, bytes]
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    frozen_of: Path | None = None


# ---------------------------------------------------------------------------------------------------------------- writing


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, step: int, contents: Contents) -> Path:
    """Write `folder/step-<step>` whole, or leave `folder` with the checkpoints it had.

    Raises:
        EnvironmentProblem: no space, or no permission.
    """
    final = folder / step_name(step)
    partial = final.with_name(final.name + ".partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        for name, content in contents.files.items():
            _write_file(partial / name, content)
        for stem, tensors in contents.tensors.items():
            _write_tensors(partial, stem, tensors)
        shared = {} if contents.frozen_of is None else _share_frozen(contents.frozen_of, partial)
        listing = {p.name: shared.get(p.name) or {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(partial.iterdir())}
        write_atomic(partial / MANIFEST, json.dumps({"schema": CHECKPOINT_SCHEMA, "step": step, "files": listing}, indent=2) + "\n")
        sync_folder(partial)
        if final.exists():  # a damaged one of the same step: the run went on from an older one
            _discard(final)
        os.rename(partial, final)
        sync_folder(folder)
        write_atomic(folder / LATEST, final.name + "\n")
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_problem(error, final) from error
    except EnvironmentProblem:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


def frozen_files(checkpoint: Path) -> list[str]:
    """Names of the files that hold the checkpoint's frozen tensors."""
    return sorted(path.name for path in checkpoint.glob(f"{FROZEN}[.-]*"))


def _share_frozen(source: Path, partial: Path) -> dict[str, dict[str, Any]]:
    """Give `partial` the frozen tensors of `source`: hard links, which take no room and outlive it, else copies. Returns their
    entries of the manifest, so that nothing that does not change is hashed again."""
    listed = read_manifest(source)["files"]
    for name in frozen_files(source):
        try:
            os.link(source / name, partial / name)
        except OSError:  # not every file system has links
            shutil.copyfile(source / name, partial / name)
            _flush(partial / name)
    return {name: listed[name] for name in frozen_files(source) if name in listed}


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    files = _spread(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(files, 1):
        name = f"{stem}.safetensors" if len(files) == 1 else f"{stem}-{number:05d}-of-{len(files):05d}.safetensors"
        try:
            save_file(part, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # it wraps the system's error in its text
            if "os error 28" in str(error) or "os error 122" in str(error):
                raise OSError(28, "No space left on device", str(folder / name)) from error
            raise EnvironmentProblem(f"cannot write '{folder / name}': {error}", "check the disk and the folder's permissions") from error
        # safetensors lets only the owner read its files; others get what they may do in the folder, as for any other file.
        (folder / name).chmod(folder.stat().st_mode & 0o666)
        _flush(folder / name)
        weight_map.update(dict.fromkeys(part, name))
    if len(files) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_file(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2).encode())


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _spread(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    files: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if files[-1] and size + tensor.nbytes > LARGEST_FILE_BYTES:
            files.append({})
            size = 0
        files[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    return files


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint; renamed first, so that a half-removed one is never taken for a damaged one."""
    trash = checkpoint.with_name(checkpoint.name + ".trash")
    if trash.exists():
        shutil.rmtree(trash)
    os.rename(checkpoint, trash)
    shutil.rmtree(trash)


def remove_unfinished(folder: Path) -> list[str]:
    """Remove what a killed writer left in `folder`; returns the names, for a note to the user."""
    names = [p.name for p in sorted(folder.iterdir()) if _UNFINISHED_NAME.fullmatch(p.name)] if folder.is_dir() else []
    for name in names:
        shutil.rmtree(folder / name)
    (folder / f".{LATEST}.partial").unlink(missing_ok=True)
    return names


def rotate(folder: Path, keep: int) -> None:
    """Remove complete checkpoints but the `keep` newest and the best. Incomplete ones are neither counted nor touched."""
    complete = [path for path in checkpoints_in(folder) if is_complete(path)]
    spared = {best_of(complete), *complete[-keep:]}
    for path in complete:
        if path not in spared:
            _discard(path)


# ---------------------------------------------------------------------------------------------------------------- finding


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders named as finished checkpoints, oldest step first, complete or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _COMPLETE_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest is there and every file has the listed size (`verify` checks the contents)."""
    try:
        check_sizes(checkpoint, read_manifest(checkpoint))
    except CheckpointError:
        return False
    return True


def verify(checkpoint: Path, stems: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest, after comparing every file's size and SHA-256 with it.

    Args:
        stems: of the files of tensors, compare the SHA-256 of these only (`model`, `ema`): no bytes are read that nobody needs.

    Raises:
        CheckpointError: a file is missing, cut, changed, or not listed properly; the message names it.
    """
    manifest = read_manifest(checkpoint)
    check_sizes(checkpoint, manifest)
    for name, entry in manifest["files"].items():
        skipped = stems is not None and name.endswith(".safetensors") and re.split(r"[.-]", name)[0] not in stems
        if not skipped and sha256_of(checkpoint / name) != entry["sha256"]:
            raise CheckpointError(f"'{checkpoint / name}' is damaged: its SHA-256 is not the one in {MANIFEST}", "use another checkpoint")
    return manifest


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's manifest. Raises CheckpointError where it is missing, damaged or of another schema."""
    path = checkpoint / MANIFEST
    try:
        manifest = read_json(path)
    except DataError as error:
        raise CheckpointError(error.message, "the checkpoint is not complete; use another one") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    well_formed = isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        and name == os.path.basename(name) and name not in ("", ".", "..")
        for name, entry in files.items()
    )  # fmt: skip
    if not well_formed or not files:
        raise CheckpointError(f"'{path}' is damaged: it does not list the checkpoint's files", "use another checkpoint")
    if manifest.get("schema") != CHECKPOINT_SCHEMA:
        raise CheckpointError(
            f"'{path}' has schema {manifest.get('schema')!r}; this version reads {CHECKPOINT_SCHEMA}", "use a matching mirasol"
        )
    return manifest


def check_sizes(checkpoint: Path, manifest: dict[str, Any]) -> None:
    """Raises CheckpointError unless every file that the manifest lists is there and has its size."""
    for name, entry in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"'{path}' is missing, though {MANIFEST} lists it", "use another checkpoint")
        if path.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                f"'{path}' is damaged: {path.stat().st_size} bytes, {MANIFEST} says {entry['bytes']}", "use another checkpoint"
            )


Score = tuple[float, float]
"""Higher is better: exact match, then the negative loss, which decides where exact match does not move."""


def score_of_validation(validation: Mapping[str, Any] | None) -> Score | None:
    """The score of validation figures (`exact_match`, `loss`); None where they hold neither as a finite number."""
    found = validation or {}
    exact, loss = (
        float(value) if isinstance(value := found.get(name), (int, float)) and math.isfinite(value) else None
        for name in ("exact_match", "loss")
    )
    if exact is None and loss is None:
        return None
    return (0.0 if exact is None else exact, -math.inf if loss is None else -loss)


def score_of(checkpoint: Path) -> Score | None:
    """The score of the validation stored with a checkpoint, or None."""
    try:
        return score_of_validation(read_json(checkpoint / "state.json").get("validation"))
    except (DataError, AttributeError):
        return None


def best_of(checkpoints: list[Path]) -> Path | None:
    """The one with the highest score (the latest of equals); None if none was validated."""
    scored = [(score, number) for number, path in enumerate(checkpoints) if (score := score_of(path)) is not None]
    return checkpoints[max(scored)[1]] if scored else None


def newest_valid(folder: Path) -> Path | None:
    """The checkpoint to resume from, verified; None if there is none at all.

    Raises:
        CheckpointError: the newest is damaged. Going on from an older one loses steps, so that is left to the user.
    """
    present = checkpoints_in(folder)
    if not present:
        return None
    try:
        verify(present[-1])
    except CheckpointError as error:
        older = next((path for path in reversed(present[:-1]) if _is_valid(path)), None)
        way_out = f"to resume from {older.name} instead, " if older else "no older one can be used; to start again, "
        raise CheckpointError(error.message, f"{way_out}remove or rename '{present[-1]}' and run the command again") from None
    return present[-1]


def _is_valid(checkpoint: Path) -> bool:
    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    return True
