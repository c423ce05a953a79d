"""Every failure a user can meet, each with the exit code of the command-line contract.

A message says what is wrong and where (file, key or value); `hint` says the way out.
"""

from __future__ import annotations

from typing import Any


class MirasolError(Exception):
    """Base of all expected failures. `kind` is the word used in `--json` output."""

    exit_code = 1
    kind = "bug"

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.summary: dict[str, Any] | None = None  # what was reached before the failure, which `--json` prints all the same


class UsageError(MirasolError):
    """A wrong argument or option."""

    exit_code = 2
    kind = "usage"


class RecipeError(UsageError):
    """A recipe that cannot be used; `problems` holds one line per fault, all of them."""

    kind = "recipe"

    def __init__(self, problems: list[str], hint: str | None = None):
        super().__init__("\n".join(problems), hint)
        self.problems = problems


class TooManyFailures(MirasolError):
    """The work is finished, but more samples failed than allowed."""

    exit_code = 3
    kind = "failures"


class DataError(MirasolError):
    """Data, a shard or a checkpoint is missing or corrupt."""

    exit_code = 4
    kind = "data"


class MediaError(DataError):
    """A video that cannot be used. `reason` is a short, stable phrase such as "no video stream"."""

    kind = "media"

    def __init__(self, reason: str, hint: str | None = None, *, stage: str = "decode"):
        super().__init__(reason, hint)
        self.reason, self.stage = reason, stage


class ShardError(DataError):
    """A shard or its index is damaged, or was made for another geometry."""

    kind = "shard"


class CheckpointError(DataError):
    """A checkpoint is missing, incomplete, damaged or does not fit the model."""

    kind = "checkpoint"


class EnvironmentProblem(MirasolError):
    """The machine lacks something: a device, a decoder, disk space, memory."""

    exit_code = 5
    kind = "environment"


class Diverged(MirasolError):
    """Training met a loss or gradient that is not finite."""

    exit_code = 6
    kind = "diverged"


class Interrupted(MirasolError):
    """Stopped by a signal after saving: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""

    kind = "interrupted"
    CTRL_C = 130

    def __init__(self, message: str, exit_code: int, hint: str | None = None):
        super().__init__(message, hint)
        self.exit_code = exit_code
