"""An open implementation of Mirasol3B: video, audio and text in, text out.

import mirasol_cli as mirasol

model = mirasol.load("runs/demo")
print(model.ask("clip.mp4", "what is playing?"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from pathlib import Path

    from mirasol_cli.inference.session import Model


def load(checkpoint: str | Path, *, device: str = "auto") -> Model:
    """A model from a checkpoint folder or a run folder (its best checkpoint); `demo` is the one in the package.

    The model's `ask(video, question, context="", start_s=None, end_s=None, why=False)` returns a reply whose `str` is the
    answer. The reply also holds the log-probability, warnings and timings. The last video stays encoded.

    Raises:
        mirasol_cli.errors.CheckpointError: it is missing, incomplete or damaged.
        mirasol_cli.errors.EnvironmentProblem: the device is not available.
    """
    from mirasol_cli.inference.session import load as load_checkpoint  # torch is imported here, not with the package

    return load_checkpoint(checkpoint, device=device)
