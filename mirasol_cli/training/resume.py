"""Whether a run may resume under a changed recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import RecipeError

CHANGEABLE = (
    "eval.*", "run.*", "data.shards", "data.sources.*.shards", "data.readers",
    "train.checkpoint_every", "train.keep_checkpoints", "train.log_every", "train.eval_every", "train.val_clips", "train.max_skipped_steps",
    "train.micro_batch_size", "train.parallel", "train.shard_size", "train.compile", "train.activation_checkpointing",
)  # fmt: skip
"""Keys that may differ on resume. The last four change how the same step is computed (equal to rounding, no longer to the bit).
`train.micro_batch_size` changes the step itself, but for text and reconstruction: the latent loss takes variance and spread from
the clips that are in memory at once."""

_PATTERNS = [re.compile(re.escape(key).replace(r"\*", r"[^:]*")) for key in CHANGEABLE]


def flatten(plain: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested dicts and lists."""
    if isinstance(plain, dict) and plain:
        for key, value in plain.items():
            yield from flatten(value, f"{prefix}{key}.")
    elif isinstance(plain, list) and plain and isinstance(plain[0], (dict, list)):
        for number, value in enumerate(plain):
            yield from flatten(value, f"{prefix}{number}.")
    else:
        yield prefix[:-1], plain


def changed_keys(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Key -> (value before, value now) for every key that differs; an absent key counts as None."""
    old, new = dict(flatten(before.to_plain())), dict(flatten(now.to_plain()))
    return {key: (old.get(key), new.get(key)) for key in [*old, *(k for k in new if k not in old)] if old.get(key) != new.get(key)}


def check_resumable(before: Recipe, now: Recipe) -> None:
    """Raises RecipeError with one line per key that differs and may not. `train.steps` may only grow."""
    fixed = {key: values for key, values in changed_keys(before, now).items() if not any(p.fullmatch(key) for p in _PATTERNS)}
    if now.train.steps > before.train.steps:
        del fixed["train.steps"]
    if fixed:
        lines = [f"{key}: the run has {_shown(old)}, the recipe now has {_shown(new)}" for key, (old, new) in fixed.items()]
        raise RecipeError(
            ["this run cannot resume with a changed recipe:", *lines],
            "restore these values, or start another run (run.dir=...); only these may change on resume: "
            f"train.steps (to more), {', '.join(CHANGEABLE)}",
        )


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)
