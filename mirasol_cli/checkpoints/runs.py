"""Run folders: `runs/<name>/` with its status, metrics and checkpoints, and which checkpoint a name means."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from mirasol_cli.checkpoints.folder import MANIFEST, best_of, check_sizes, checkpoints_in, is_complete, read_manifest
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import CheckpointError, DataError, EnvironmentProblem, MirasolError, UsageError
from mirasol_cli.files import disk_problem, finite, read_json, write_atomic, write_json
from mirasol_cli.runtime.folder_lock import is_lock

METRICS, RUN, RECIPE = "metrics.jsonl", "run.json", "recipe.yaml"
EVALUATIONS = "eval"
"""The folder of a run folder where `mirasol eval` writes, which may come before any training (`--checkpoint demo`)."""


class RunFolder:
    """`runs/<name>/`: status, resolved recipe, metrics and checkpoints of one run. Every process holds one; only the first writes."""

    def __init__(self, path: Path, recipe: Recipe, stage: str, world_size: int):
        self.path, self.recipe, self.stage, self.world_size = path, recipe, stage, world_size
        self._state: dict[str, Any] = {}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def started(self) -> str:
        """When the run first began, before any resume."""
        return str(self._state.get("started", ""))

    def check_unused(self) -> None:
        """Raises UsageError if something is there already and `--resume` was not given. What `eval` wrote below it is no run."""
        if self.path.is_dir() and any(entry.name != EVALUATIONS and not is_lock(entry.name) for entry in self.path.iterdir()):
            raise UsageError(
                f"the run folder '{self.path}' already exists and is not empty",
                f"add --resume to continue this run, or choose another folder: run.dir={self.path}-2",
            )

    def begin(self, recipe_yaml: str, step: int, accepted: Sequence[str] = ()) -> None:
        """Write recipe.yaml and run.json, and cut metrics.jsonl back to the step that the run goes on from.

        `accepted` says what has changed in the data since, on purpose; run.json keeps it.
        """
        write_atomic(self.path / RECIPE, recipe_yaml)
        self._cut_metrics(step)
        earlier = read_json(self.path / RUN) if (self.path / RUN).is_file() else {}
        self._state = {
            "status": "running", "exit_code": None, "stage": self.stage, "step": step, "steps": self.recipe.train.steps,
            "command": sys.argv, "seed": self.recipe.train.seed, "world_size": self.world_size, "versions": versions(),
            "host": platform.node(), "pid": os.getpid(), "started": earlier.get("started") or _now(), "resumed": _now() if step else None,
            "ended": None, "error": None, "accepted_data": list(earlier.get("accepted_data") or []),
        }  # fmt: skip
        if accepted:
            self._state["accepted_data"].append({"after_step": step, "time": _now(), "changes": list(accepted)})
        write_json(self.path / RUN, self._state)

    def end(self, status: str, exit_code: int, step: int, error: str | None = None) -> None:
        """Status `finished`, `interrupted`, `diverged` or `failed`; torchrun hides exit codes, this file does not."""
        self._state.update(status=status, exit_code=exit_code, step=step, ended=_now(), error=error)
        write_json(self.path / RUN, self._state)

    def append(self, line: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, flushed. Not-finite numbers are written as null, which JSON has."""
        try:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
        except OSError as error:
            raise disk_problem(error, self.path / METRICS) from error

    def last_metrics(self) -> dict[str, Any]:
        """The last log line so far, for a run that is resumed with nothing left to do; empty before the first."""
        lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
        return next((row for row in map(json.loads, reversed(lines)) if row.get("kind") == "train"), {})

    def _cut_metrics(self, step: int) -> None:
        path = self.path / METRICS
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # a killed process may leave half a line
        write_atomic(path, "".join(kept))


def correct_exit_code(path: Path, pid: int, code: int) -> None:
    """Write the exit code of several processes into the run.json that the first of them, process `pid`, has written.

    It cannot know that another one was killed, nor write anything when it was killed itself.
    """
    with suppress(DataError, EnvironmentProblem):
        state = read_json(path / RUN)
        if (state["host"], state["pid"]) == (platform.node(), pid) and state["exit_code"] != code:
            killed = state["status"] == "running"
            state.update(exit_code=code, status="failed" if killed else state["status"], ended=state["ended"] or _now())
            state["error"] = state["error"] or f"the first process was killed by signal {code - 128}"
            write_json(path / RUN, state)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("mirasol", "torch", "safetensors", "sentencepiece", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def status_of(error: BaseException) -> tuple[str, int]:
    """(status, exit code) of run.json for the exception that ended a run."""
    if isinstance(error, MirasolError):
        return {"diverged": "diverged", "interrupted": "interrupted"}.get(error.kind, "failed"), error.exit_code
    return ("interrupted", 130) if isinstance(error, KeyboardInterrupt) else ("failed", 1)


DEMO_CHECKPOINT = Path(__file__).parents[1] / "assets" / "demo"
"""The checkpoint in the package."""
NAMES = "best or latest (of the run), demo (the checkpoint in the package), a run folder or a checkpoint folder"


def demo_checkpoint() -> Path:
    """Raises CheckpointError, which says how to train one, where the package carries none."""
    if not DEMO_CHECKPOINT.is_dir():
        raise CheckpointError(
            "this installation has no demo checkpoint",
            "train one (`mirasol prepare demo && mirasol finetune demo`), or pass another with --checkpoint",
        )
    return DEMO_CHECKPOINT


def resolve_checkpoint(spec: str | Path, run_dir: Path | None = None) -> Path:
    """The checkpoint folder that `spec` names, complete in size; `load_model` verifies its contents.

    This is how a checkpoint is named everywhere, by `--checkpoint` and `init.checkpoint` alike.

    Args:
        spec: `best` (by validation; the newest where none was made) or `latest` of `run_dir`; `demo`, the checkpoint in the package,
            unless there is a folder of that name; a run folder, whose best is meant; or a checkpoint folder.
        run_dir: None where no run is at hand.

    Raises:
        CheckpointError: there is none, or it is not complete.
    """
    spec = str(spec)
    if spec in ("best", "latest"):
        if run_dir is None:
            raise CheckpointError(f"'{spec}' needs a run folder", "pass the run folder or a checkpoint folder")
        return _of_run(run_dir, spec)
    named = Path(spec)
    if spec == "demo" and not named.is_dir():
        named = demo_checkpoint()
    if not named.is_dir():
        raise CheckpointError(f"no run or checkpoint folder '{spec}'", f"pass {NAMES}")
    if any((named / name).exists() for name in ("checkpoints", "run.json")):
        return _of_run(named, "best")
    if not (named / MANIFEST).is_file():
        raise CheckpointError(f"'{spec}' is neither a run folder nor a complete checkpoint: it has no {MANIFEST}", f"pass {NAMES}")
    check_sizes(named, read_manifest(named))
    return named


def _of_run(run_dir: Path, which: str) -> Path:
    """The best or latest complete checkpoint of a run."""
    complete = [path for path in checkpoints_in(run_dir / "checkpoints") if is_complete(path)]
    if complete:
        return (best_of(complete) if which == "best" else None) or complete[-1]
    if not run_dir.is_dir():
        raise CheckpointError(f"the run '{run_dir}' does not exist", f"train it first, or pass {NAMES}")
    raise CheckpointError(
        f"the run '{run_dir}' has no complete checkpoint yet",
        f"train until it saves one (every train.checkpoint_every steps), or pass {NAMES}",
    )


def checkpoint_folder(recipe: Recipe, which: str) -> Path:
    """The folder of `best`, `latest` (of the recipe's run), `demo` (in the package), or the folder that `which` names."""
    return resolve_checkpoint(which, Path(recipe.run_dir))


def choose_checkpoint(given: str | None, runs: Path = Path("runs")) -> tuple[str, str]:
    """(checkpoint, why this one): the given one, else the best of the newest finished run, else the demo's.

    Raises CheckpointError, which says how to train one, if there is none at all.
    """
    if given:
        return given, "as given"
    finished = []
    for state in runs.glob("*/run.json"):
        try:
            run = read_json(state)
        except DataError:
            continue
        if isinstance(run, dict) and run.get("status") == "finished":
            finished.append((str(run.get("ended") or ""), state.stat().st_mtime, state.parent, run.get("stage")))
    for *_, folder, stage in sorted(finished, key=lambda run: run[:3], reverse=True):
        doubt = (
            "; it is only pretrained and was never trained on questions: choose another with --checkpoint" if stage == "pretrain" else ""
        )
        try:
            return str(resolve_checkpoint("best", folder)), f"of the newest finished run, '{folder}'{doubt}"
        except CheckpointError:
            continue
    return str(demo_checkpoint()), "the demo checkpoint in the package"
