"""Checkpoints that are complete or absent, and never pickled.

A checkpoint is written as `step-00001000.partial/`: every file is flushed to disk, `manifest.json` with the SHA-256 of all
of them comes last, then the folder is renamed, and the text file `latest` (a hint for people; no reader relies on it) follows.
A reader looks at all folders itself and trusts only what the manifest confirms, so it knows every state a killed writer can leave:

    step-N.partial   unfinished: never read, removed by the next writer
    step-N           complete: renamed only after the manifest was on disk
    step-N.trash     being rotated out: never read, removed by the next writer

Every process of a run writes its own files of tensors (`tensor_files`), hashed as they are written; the first process, which
is told of them, adds the rest and the manifest when all are done.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.errors import CheckpointError, DataError, EnvironmentProblem
from mirasol_cli.files import disk_problem, read_json, sha256_of, sync_folder, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from mirasol_cli.checkpoints.tensor_files import Rows
    from mirasol_cli.runtime.peers import Peers


CHECKPOINT_SCHEMA = 1
SLICED_SCHEMA = 2
"""Of a manifest whose tensors are cut over the files of several processes, which earlier versions cannot read."""
MANIFEST = "manifest.json"
LATEST = "latest"
FROZEN = "frozen"
"""Stem of the tensors that a run does not train: written once, and shared by its checkpoints."""
LARGEST_FILE_BYTES = 5 << 30
"""Tensors of a process beyond this are spread over several files, named as Hugging Face does."""
SEEN_WITHIN_S = 30.0
"""A file that another machine has written may show up this late on a shared file system."""
_COMPLETE_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED_NAME = re.compile(r"step-\d{8,}\.(?:partial|trash)")


@dataclass(frozen=True)
class Contents:
    """What goes into one checkpoint: small files by name, sets of tensors by stem (`model` -> `model.safetensors`), and a checkpoint
    whose files of frozen tensors it shares (`FROZEN`). Of several processes, each has the tensors, on the CPU, that it is to write."""

    files: Mapping[str, bytes]
    tensors: Mapping[str, Mapping[str, Tensor | Rows]] = field(default_factory=dict)
    frozen_of: Path | None = None


# ---------------------------------------------------------------------------------------------------------------- writing


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, step: int, contents: Contents, peers: Peers | None = None) -> Path:
    """Write `folder/step-<step>` whole, or leave `folder` with the checkpoints it had. All of `peers` call this together.

    Raises:
        EnvironmentProblem: no space, no permission, or a folder that the processes do not share.
        AbortedByPeer: another process could not write its part.
    """
    from mirasol_cli.runtime.peers import ALONE

    peers = peers or ALONE
    final = folder / step_name(step)
    partial = final.with_name(final.name + ".partial")
    try:
        peers.on_first(lambda: _make_empty(partial))
        listing = _write_tensors(partial, contents.tensors, peers)
        peers.on_first(lambda: _finish(partial, final, step, contents, listing))
    except Exception:
        if peers.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return final


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    """Errors of the disk as one sentence about `path`."""
    try:
        yield
    except OSError as error:
        raise disk_problem(error, path) from error


def _make_empty(partial: Path) -> None:
    with _on_disk(partial):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)


def _finish(partial: Path, final: Path, step: int, contents: Contents, listing: dict[str, dict[str, Any]]) -> None:
    """What the first process adds when all have written: small files, indexes, manifest, the name."""
    from mirasol_cli.checkpoints.tensor_files import index_name, index_of

    with _on_disk(final):
        for name, entry in listing.items():
            _await(partial / name, entry)
        for name, content in contents.files.items():
            _write_file(partial / name, content)
        schema = CHECKPOINT_SCHEMA
        for stem in contents.tensors:
            files = {name: entry for name, entry in listing.items() if entry["stem"] == stem}
            index = index_of(files)
            if len(files) > 1:
                _write_file(partial / index_name(stem), (json.dumps(index) + "\n").encode())
            schema = SLICED_SCHEMA if "slices" in index else schema
        known = {name: {key: entry[key] for key in ("bytes", "sha256")} for name, entry in listing.items()}
        if contents.frozen_of is not None:
            known |= _share_frozen(contents.frozen_of, partial)
            schema = max(schema, read_manifest(contents.frozen_of)["schema"])
        paths = sorted(partial.iterdir())
        entries = {path.name: known.get(path.name) or {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths}
        write_atomic(partial / MANIFEST, json.dumps({"schema": schema, "step": step, "files": entries}, indent=2) + "\n")
        sync_folder(partial)
        if final.exists():  # a damaged one of the same step: the run went on from an older one
            _discard(final)
        os.rename(partial, final)
        sync_folder(final.parent)
        write_atomic(final.parent / LATEST, final.name + "\n")


def _await(path: Path, entry: dict[str, Any]) -> None:
    """Wait until a file that another process has written is seen here. Raises EnvironmentProblem if it never is."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not (path.is_file() and path.stat().st_size == entry["bytes"]):
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                f"'{path}', written by process {entry['rank']}, is not visible to the first process",
                "put the run folder (run.dir) on a file system shared by all machines",
            )
        time.sleep(0.1)


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


def _write_tensors(folder: Path, tensors: Mapping[str, Mapping[str, Tensor | Rows]], peers: Peers) -> dict[str, dict[str, Any]]:
    """This process's files; returns all processes' by name, each with its stem, rank, size, SHA-256 and what it holds."""
    from mirasol_cli.checkpoints.tensor_files import Rows, file_names, tensor_of, write_tensor_file

    own = {stem: _spread(parts) for stem, parts in tensors.items()}
    counts = [json.loads(told) for told in peers.exchange(json.dumps({stem: len(files) for stem, files in own.items()}).encode())]
    listing = {}

    def write() -> None:
        for stem, files in own.items():
            before = sum(count[stem] for count in counts[: peers.rank])
            names = file_names(stem, sum(count[stem] for count in counts))[before:]
            for name, parts in zip(names, files, strict=False):
                with _on_disk(folder / name):
                    entry = write_tensor_file(folder / name, {key: tensor_of(part) for key, part in parts.items()})
                held = {key: {"first": p.first, "shape": list(p.shape)} if isinstance(p, Rows) else None for key, p in parts.items()}
                held_bytes = sum(tensor_of(part).nbytes for part in parts.values())
                listing[name] = {**entry, "stem": stem, "rank": peers.rank, "tensors": held, "tensor_bytes": held_bytes}

    peers.together(write)
    return {name: entry for told in peers.exchange(json.dumps(listing).encode()) for name, entry in json.loads(told).items()}


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _spread(parts: Mapping[str, Tensor | Rows]) -> list[dict[str, Tensor | Rows]]:
    """The parts in as few files as may hold them; none where there are none."""
    from mirasol_cli.checkpoints.tensor_files import tensor_of

    files: list[dict[str, Tensor | Rows]] = []
    size = 0
    for name, part in parts.items():
        if not files or size + tensor_of(part).nbytes > LARGEST_FILE_BYTES:
            files.append({})
            size = 0
        files[-1][name] = part
        size += tensor_of(part).nbytes
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
        raise CheckpointError(error.message, "the checkpoint is incomplete; use another one") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    well_formed = isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        and name == os.path.basename(name) and name not in ("", ".", "..")
        for name, entry in files.items()
    )  # fmt: skip
    if not well_formed or not files:
        raise CheckpointError(f"'{path}' is damaged: it does not list the checkpoint's files", "use another checkpoint")
    if manifest.get("schema") not in (CHECKPOINT_SCHEMA, SLICED_SCHEMA):
        raise CheckpointError(
            f"'{path}' has schema {manifest.get('schema')!r}; this version reads {CHECKPOINT_SCHEMA} and {SLICED_SCHEMA}",
            "use a matching mirasol",
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
        way_out = f"to resume from {older.name} instead, " if older else "no older checkpoint is usable; to start again, "
        raise CheckpointError(error.message, f"{way_out}remove or rename '{present[-1]}' and run the command again") from None
    return present[-1]


def _is_valid(checkpoint: Path) -> bool:
    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    return True
