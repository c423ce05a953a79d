"""The folder an evaluation writes to, named after what differs from the standard one, and what happens to earlier results there."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mirasol_cli.checkpoints.runs import DEMO_CHECKPOINT
from mirasol_cli.config.paths import source_shards
from mirasol_cli.config.reader import parse_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import DataError, MirasolError
from mirasol_cli.evaluation.controls import CONTROLS
from mirasol_cli.evaluation.job import EvaluationJob, Options
from mirasol_cli.evaluation.predict import ORIGIN, PREDICTIONS, read_origin
from mirasol_cli.files import read_json

RESULTS, REPORT, SUBMISSION = "results.json", "report.html", "submission.json"
DECODING_KEYS = {"greedy": (), "beam": ("beams",), "sample": ("temperature", "top_p", "seed")}
LONGEST_NAME = 120
_ORIGIN_WORDS = {
    "checkpoint": "another checkpoint", "split": "other shards", "task": "another task", "eval": "other eval keys", "clip": "other clips",
    "device": "another device",
}  # fmt: skip


def evaluation_folder(job: EvaluationJob, options: Options, checkpoint: Path | None, best: Path | None) -> Path:
    """`<run>/eval/<split>` for all questions and the run's best checkpoint, task and decoding; anything else is `<split>-<what differs>`.

    Args:
        checkpoint: what is evaluated; None for a file of predictions.
        best: the run's best checkpoint; None where the run has none.
    """
    run = Path(job.recipe.run_dir)
    parts = [job.split]
    if options.predictions is not None:
        parts.append(options.predictions.stem)
    elif checkpoint is not None and (best is None or checkpoint.resolve() != best.resolve()):
        parts.append(_checkpoint_name(checkpoint, run))
    own = _own_recipe(run, checkpoint)
    if own is not None:
        parts += _differences(job.recipe, own)
    if options.limit is not None:
        parts.append(f"limit-{options.limit}")
    name = re.sub(r"[^\w.+=-]+", "-", "-".join(parts))
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return run / "eval" / name


def clear_other_results(folder: Path, origin: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Remove what is in `folder` if it was made from anything else than `origin`, controls included; `say` hears of it."""
    if not (folder / ORIGIN).is_file():
        return
    earlier = read_origin(folder / ORIGIN)
    differing = [key for key in origin if earlier.get(key) != origin[key]]
    if not differing:
        return
    why = ", ".join(_ORIGIN_WORDS.get(key, f"another {key}") for key in differing)
    say(f"the earlier results in '{folder}' are replaced: they are of {why}")
    for name in (RESULTS, REPORT, SUBMISSION, PREDICTIONS, ORIGIN):
        (folder / name).unlink(missing_ok=True)
    for control in CONTROLS:
        shutil.rmtree(folder / control, ignore_errors=True)


def announce_other_predictions(folder: Path, predictions: Path, say: Callable[[str], None]) -> None:
    """Say that the scores of another file of predictions are replaced, where `folder` holds some."""
    try:
        earlier = read_json(folder / RESULTS)["protocol"]["predictions"]
    except (DataError, KeyError, TypeError):
        return
    if Path(earlier) != predictions:
        say(f"the earlier results in '{folder}' are replaced: they are of '{earlier}'")


def _checkpoint_name(checkpoint: Path, run: Path) -> str:
    if checkpoint.resolve() == DEMO_CHECKPOINT.resolve():
        return "demo"
    if checkpoint.parent.name != "checkpoints":
        return checkpoint.name
    of_run = checkpoint.resolve().parent.parent
    return checkpoint.name if of_run == run.resolve() else f"{of_run.name}-{checkpoint.name}"


def _own_recipe(run: Path, checkpoint: Path | None) -> Recipe | None:
    """The recipe that the run was trained with; where there is no such run, that of the checkpoint."""
    for path in (run / "recipe.yaml", checkpoint / "recipe.yaml" if checkpoint else None):
        if path is not None and path.is_file():
            try:
                return parse_recipe(path.read_text(encoding="utf-8"), str(path))
            except (MirasolError, OSError, UnicodeDecodeError):
                return None
    return None


def _differences(recipe: Recipe, own: Recipe) -> Iterator[str]:
    """Words for every key that answers depend on and that is not as the run has it."""
    source, own_source = recipe.data.training_sources()[0], own.data.training_sources()[0]
    if source.task != own_source.task:
        yield source.task
    if source.dataset != own_source.dataset:
        yield source.dataset
    elif (shards := source_shards(source, recipe.clip)) != source_shards(own_source, recipe.clip):
        yield "-".join(shards.parts[-2:])
    clip, own_clip = recipe.clip.to_plain(), own.clip.to_plain()
    yield from (f"{key}-{value}" if isinstance(value, int) else key for key, value in clip.items() if value != own_clip.get(key))
    for name in ("video", "audio"):
        if getattr(recipe.data, name) != getattr(own.data, name):
            yield f"with-{name}" if getattr(recipe.data, name) else f"without-{name}"
    if recipe.train.precision != own.train.precision:
        yield recipe.train.precision
    if recipe.eval.decode != own.eval.decode:
        yield recipe.eval.decode
    for key in (*DECODING_KEYS[recipe.eval.decode], "max_tokens"):
        if getattr(recipe.eval, key) != getattr(own.eval, key):
            yield f"{key.replace('_', '-')}-{getattr(recipe.eval, key)}"
