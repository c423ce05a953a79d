"""Batches on their way to a GPU: copied from pinned memory on a stream of their own, so that the model computes meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from mirasol_cli.model.batch import MediaBatch, TextBatch, TrainingInputs

Parts = tuple[MediaBatch, TextBatch, TrainingInputs]
"""What the model and the losses take."""


@dataclass(frozen=True)
class Sent:
    """Parts whose copies to a GPU have begun."""

    parts: Parts
    done: torch.cuda.Event

    def received(self) -> Parts:
        """The parts, for use on the stream that the model computes on."""
        stream = torch.cuda.current_stream()
        stream.wait_event(self.done)
        for part in self.parts:
            part.used_on(stream)  # else their memory could be given to the next copy while the model reads it
        return self.parts


def send(parts: Parts, device: torch.device) -> Sent:
    """Begin to copy pinned parts to a GPU. Returns at once."""
    media, text, extra = parts
    with torch.cuda.stream(_copies(device)):
        moved = media.to(device), text.to(device), extra.to(device)
        done = torch.cuda.Event()
        done.record()
    return Sent(moved, done)


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream that copies to a GPU go by."""
    return torch.cuda.Stream(device)
