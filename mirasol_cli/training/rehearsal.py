"""A few real steps on real data, timed and weighed, so that `--dry-run` need not guess; and what to go by where none can be made."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from mirasol_cli.model.config import ModelConfig
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.recipe_schema import Recipe
from mirasol_cli.training.counts import loss_counts
from mirasol_cli.training.data import MicroBatch, OpenSource, TrainingData, training_lines
from mirasol_cli.training.distributed import prepare_blocks
from mirasol_cli.training.memory import peak_bytes, program_bytes
from mirasol_cli.training.optimizer import build_optimizer, clip_gradients
from mirasol_cli.training.start import freeze_parts, given_tokenizer, loss_weights
from mirasol_cli.vocabulary import Vocabulary, train_vocabulary

MOST_CLIPS = 32
"""Clips of a rehearsed batch: more cost time and tell no more."""
VOCABULARY_LINES = 20_000
"""Texts that a vocabulary is trained on for the rehearsal; more make the pieces no longer."""
TIMED_S = 2.0
"""How long steps are repeated."""


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps took, on one process."""

    clips: int
    forward_backward_s: float  # of a batch of `clips`
    update_s: float  # of the optimizer, whatever the batch
    activation_bytes: int | None  # what forward and backward pass of `clips` need besides weights and gradients; None: not known
    program_bytes: int  # of the process without the model; 0: not known

    def step_s(self, clips: int) -> float:
        """Of an optimizer step on `clips` clips, read ahead by the time they are needed."""
        return self.forward_backward_s * clips / self.clips + self.update_s


def data_to_rehearse(recipe: Recipe, sources: list[OpenSource]) -> TrainingData:
    """The data as a run would see them, but for a vocabulary that is trained on some of the texts only."""
    given = given_tokenizer(recipe)
    if given is not None:
        return TrainingData(recipe, sources, Vocabulary.from_file(given))
    lines = islice(training_lines(sources), VOCABULARY_LINES)
    return TrainingData(recipe, sources, Vocabulary(train_vocabulary(lines, recipe.init.vocabulary)))


def rehearse(recipe: Recipe, config: ModelConfig, vocab_size: int, batch: MicroBatch, where: torch.device, *, bf16: bool) -> Rehearsal:
    """Build the model with random weights, and time steps on `batch`: one to warm up, then as many as fit into `TIMED_S`, at least one.

    `train.compile` is left out: compiling takes longer than all the rest. The caller's random state is left as it was.

    Args:
        config: with the heads that the losses need (`with_heads`).
        vocab_size: pieces of the vocabulary that `batch` was encoded with.
        batch: one micro batch; nothing of it is changed.
        where: the model is built on this device.
        bf16: compute in bfloat16, as `train.precision` resolves to on `where`.

    Returns:
        Medians of the timed steps in seconds, and bytes as the first step (on a GPU the second) needed them.
    """
    train, weights, random_state = recipe.train, loss_weights(recipe.loss), torch.random.get_rng_state()
    with torch.device(where):
        model = Mirasol(config, recipe.clip, vocab_size).train()
    freeze_parts(model, recipe)
    prepare_blocks(model, checkpoint_activations=train.checkpoint_activations, compile=False)
    optimizer = build_optimizer(model, train)
    media, text = batch.media.to(where), batch.text.to(where)
    counts = {name: max(1, count) for name, count in loss_counts(batch.media, batch.text, weights, recipe.clip).items()}

    def forward_backward(kept: KeptForBackward | None = None) -> float:
        began = time.perf_counter()
        with torch.autocast(where.type, torch.bfloat16) if bf16 else nullcontext(), kept or nullcontext():
            loss = model(media, text, weights).total(weights, counts)
        loss.backward()
        wait_for(where)
        return time.perf_counter() - began

    def update() -> float:
        began = time.perf_counter()
        clip_gradients(model.parameters(), train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        wait_for(where)
        return time.perf_counter() - began

    held, highest, kept = program_bytes(), peak_bytes(where), KeptForBackward(model)
    forward_backward(kept)
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    # A new high of the process is the whole truth; below an earlier one, what the graph keeps is known (but not under recomputing).
    needed = peak_bytes(where) - held - gradients if held and peak_bytes(where) > highest else 0
    if not train.checkpoint_activations:
        needed = max(needed, kept.bytes)
    update()
    if where.type == "cuda":  # it tells exactly: the highest of the second step, less what lies there before it and its gradients
        torch.cuda.reset_peak_memory_stats(where)
        needed = -torch.cuda.memory_allocated(where) - gradients
    began, runs, updates = time.perf_counter(), [forward_backward()], [update()]
    if where.type == "cuda":
        needed += torch.cuda.max_memory_allocated(where)
    while time.perf_counter() - began < TIMED_S:
        runs.append(forward_backward())
        updates.append(update())
    torch.random.set_rng_state(random_state)
    weights_held = sum(p.nbytes for p in model.parameters()) if where.type == "cpu" else 0
    return Rehearsal(
        len(batch.units),
        sorted(runs)[len(runs) // 2],
        sorted(updates)[len(updates) // 2],
        needed if needed > 0 else None,
        max(0, held - weights_held),
    )


class KeptForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for the backward pass: every storage once, weights left out."""

    def __init__(self, model: torch.nn.Module):
        self.bytes = 0
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matrix_speed(device: torch.device, bf16: bool) -> float:
    """FLOP/s of a large matrix product on this device, the best of several, measured in well under a second."""
    size = 4096 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 and device.type == "cuda" else torch.float32)

    def seconds() -> float:
        began = time.perf_counter()
        for _ in range(5):
            a @ a
        wait_for(device)
        return time.perf_counter() - began

    seconds()
    return 2.0 * size**3 * 5 / max(min(seconds() for _ in range(4)), 1e-9)
