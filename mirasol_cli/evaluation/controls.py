"""Controls: the same questions with an input removed or replaced, which show whether the model uses it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mirasol_cli.batches.masking import with_chunks_in_order, without_audio, without_video
from mirasol_cli.errors import UsageError

if TYPE_CHECKING:
    from mirasol_cli.model.config import ModelConfig

MEDIA_CONTROLS = ("no-audio", "no-video", "text-only", "shuffle-chunks", "swap-media")
MODEL_CONTROLS = ("own-chunk", "no-memory", "last-chunk")
"""What the model carries from chunk to chunk is cut: the latents see their own chunk alone, the Combiner's memory starts anew in every
chunk, the text sees the last chunk alone."""
CONTROLS = MEDIA_CONTROLS + MODEL_CONTROLS
RENAMED = {"no-sound": "no-audio", "no-picture": "no-video"}
"""Control by its name before the first release -> its name now."""


def apply_control(sample: dict[str, Any], control: str | None, clip: int, seed: int) -> dict[str, Any]:
    """The sample as the control shows it. `swap-media` exchanges whole samples and what the model carries is not in them, so neither
    changes anything here."""
    if control == "no-audio":
        return without_audio(sample)
    if control == "no-video":
        return without_video(sample)
    if control == "text-only":
        return without_audio(without_video(sample))
    if control == "shuffle-chunks":
        return with_chunks_in_order(sample, chunk_order(len(sample["mel"]), clip, seed))
    return sample


def applicable(asked: Sequence[str], config: ModelConfig) -> list[str]:
    """The controls to run; `all` leaves out those that this model has nothing for.

    Raises UsageError for one that is asked for by name and would change nothing by construction.
    """
    combiner = config.combiner
    carries = combiner.kind == "ttm" or (combiner.kind == "transformer" and combiner.context == "history")
    pointless = {}
    if not carries:
        pointless["no-memory"] = f"the Combiner '{combiner.kind}' of this checkpoint carries nothing from chunk to chunk"
    if not config.latent.layers:
        pointless["own-chunk"] = "this checkpoint has no latent layers (model.latent.layers: 0)"
    if config.text.sees != "all":
        pointless["last-chunk"] = f"the text of this checkpoint sees no more (model.text.sees: {config.text.sees})"
    for control in asked:
        if control in pointless:
            raise UsageError(f"--control {control}: {pointless[control]}", "remove it")
    return [control for control in CONTROLS if control in asked or ("all" in asked and control not in pointless)]


def chunk_order(chunks: int, clip: int, seed: int) -> list[int]:
    """A random order of the chunks that is not the true one (with a single chunk there is no other)."""
    rng = random.Random(f"shuffle-chunks/{seed}/{clip}")
    order = list(range(chunks))
    while chunks > 1 and order == sorted(order):
        rng.shuffle(order)
    return order


def derangement(clips: Sequence[int], seed: int) -> dict[int, int]:
    """Clip -> the clip whose media it is shown: one random cycle, so that no clip keeps its own. Raises UsageError for one clip."""
    if len(clips) < 2:
        raise UsageError(
            f"--control swap-media needs at least two clips with media, and of these {len(clips)} can be shown", "evaluate more clips"
        )
    ring = list(clips)
    random.Random(f"swap-media/{seed}").shuffle(ring)
    return dict(zip(ring, ring[1:] + ring[:1], strict=True))
