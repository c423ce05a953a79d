"""Options of `mirasol prepare` that contradict one another or would change nothing, refused before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mirasol_cli.config.reader import unread_keys
from mirasol_cli.datasets.registry import RENDERED
from mirasol_cli.errors import UsageError

EXCLUSIVE = (
    (
        "--verify",
        "compares all finished files with their checksums, and prepares nothing unless --retry-failed is given",
        ("--dry-run", "--inspect", "--merge", "--part", "--task", "--limit"),
    ),
    ("--merge", "puts finished parts together and decodes nothing", ("--part", "--dry-run", "--retry-failed")),
    ("--dry-run", "writes nothing", ("--inspect",)),
    ("--part", "leaves the split unfinished", ("--inspect",)),
)
"""An option, what it does, and the options that have no meaning beside it."""


def check_options(engine: str, limit: int | None, max_failed: float, inspect: int) -> None:
    """Raises UsageError for values that have no meaning."""
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine {engine}: expected local or ray")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: expected at least 1")
    if not 0 <= max_failed <= 100:
        raise UsageError(f"--max-failed {max_failed}: expected a percentage from 0 to 100")
    if inspect < 0:
        raise UsageError(f"--inspect {inspect}: expected a number of clips")


def check_together(given: Mapping[str, bool]) -> None:
    """Raises UsageError for options of which one would do nothing beside the other; `given` says which are there."""
    for option, does, others in EXCLUSIVE:
        clashing = [other for other in others if given[option] and given[other]]
        if clashing:
            raise UsageError(f"{option} {does}: it cannot be combined with {' and '.join(clashing)}", f"remove {option} or {clashing[0]}")


def check_overrides(overrides: Sequence[str], dataset: str) -> None:
    """Raises UsageError if a recipe key is set that preparing does not read."""
    reads = ["clip", "data.dataset", "data.shards", "init.audio_encoder"]  # an audio encoder's folder sets keys of clip.audio
    reads += ["data.seed", "data.clips"] if dataset in RENDERED else []
    if unread := unread_keys(overrides, reads):
        raise UsageError(
            f"`prepare` does not use {', '.join(unread)}",
            f"remove it; `prepare` takes {', '.join(f'{read}.*' if read == 'clip' else read for read in reads)}",
        )
