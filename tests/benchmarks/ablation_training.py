"""One run of the ablations: a model trained from nothing behind an encoder that was trained once.

The encoder is that of a checkpoint of the demo world (short clips, another Combiner). Its tokens are computed once per clip and kept;
all that comes after it is the package's own and trained here: Combiner, latents, prediction and reconstruction, text. The order of
clips and questions, augmentation, losses, optimizer and clipping are the package's, too. The rate is constant after its warm-up and
falls to zero over the last fifth, so that a plateau can be told from a rate that ran out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mirasol_cli.batches.collate import media_batch
from mirasol_cli.batches.order import Unit
from mirasol_cli.batches.sources import open_sources
from mirasol_cli.checkpoints.load import load_model
from mirasol_cli.config.paths import source_shards
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.inference.answerer import Answerer, Question
from mirasol_cli.model.batch import MediaBatch
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from mirasol_cli.text.tokenizer import Vocabulary
from mirasol_cli.training.augment import Draw
from mirasol_cli.training.data import TrainingData, sample_generator
from mirasol_cli.training.flops import forward_flops
from mirasol_cli.training.loop import step_seed
from mirasol_cli.training.optimizer import build_optimizer, clip_gradients

DECAY = 0.2
"""Share of the steps over which the rate falls."""
SAVE_EVERY = 100
ENCODER = ("video_tokens", "audio_tokens", "encoder")
CUTS = {"last-chunk": "the last chunk's latents alone", "own-chunk": "no history in the latents", "no-memory": "no memory"}


@dataclass(frozen=True)
class Encoded:
    """A split after the encoder."""

    tokens: Tensor  # bf16 [clips, T, N, D]
    thumbnails: Tensor  # uint8 [clips, T, 4, 32, 32, 3]


def encoded_split(recipe: Recipe, split: ShardSplit, checkpoint: Path, cache: Path) -> Encoded:
    """The tokens of every clip of a split, from `cache` or put there."""
    path = cache / f"{recipe.clip.chunks}-chunks-{split.path.name}.pt"
    if not path.exists():
        model, made = load_model(checkpoint).model.eval(), []
        with torch.inference_mode():
            for clip in range(len(split.clips)):
                media = media_batch([split.media(clip)], recipe.clip)
                made.append((torch.cat([model.encode_video(media), model.encode_audio(media)], dim=2)[0].bfloat16(), media.thumbnails[0]))
        tokens, thumbnails = (torch.stack(parts) for parts in zip(*made, strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save({"tokens": tokens, "thumbnails": thumbnails}, partial)
        partial.rename(path)
    return Encoded(**torch.load(path, weights_only=True, mmap=True))


class BehindEncoder(Mirasol):
    """A model whose encoder's tokens are looked up: `clips` says for which clips of `encoded`."""

    encoded: Encoded
    clips: Sequence[int] = ()

    def encode_video(self, media: MediaBatch) -> Tensor:
        return self.encoded.tokens[list(self.clips)].float()[:, :, : self.geometry.video_tokens]

    def encode_audio(self, media: MediaBatch) -> Tensor:
        return self.encoded.tokens[list(self.clips)].float()[:, :, self.geometry.video_tokens :]


class EncodedData(TrainingData):
    """Batches of clips whose media are looked up by the model."""

    encoded: Encoded

    def _recorded(self, units: Sequence[Unit]) -> tuple[list[Draw], MediaBatch]:
        recipe = self.recipe
        draws = [Draw.of(sample_generator(recipe.train.seed, unit), recipe.train.augment, recipe.clip, 1) for unit in units]
        return draws, looked_up(recipe, self.encoded, [unit.clip for unit in units])


def looked_up(recipe: Recipe, encoded: Encoded, clips: Sequence[int]) -> MediaBatch:
    """What a batch holds besides tokens. All clips of the demo world have video and audio from end to end."""
    batch = MediaBatch(
        tubes=() if recipe.data.modalities["video"] else None,
        mel_BTZS=torch.zeros(len(clips), recipe.clip.chunks, 1, 1) if recipe.data.modalities["audio"] else None,
        thumbnails=encoded.thumbnails[list(clips)],
    )
    return batch.with_hidden()


def rate_at(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate at `step` (from 0)."""
    return min(1.0, (step + 1) / (warmup + 1), (steps - step) / (DECAY * steps))


@dataclass
class Run:
    """One model in training."""

    recipe: Recipe
    model: BehindEncoder
    vocabulary: Vocabulary
    data: EncodedData
    optimizer: torch.optim.Optimizer
    step: int = 0
    curve: tuple[tuple[int, float], ...] = ()  # (step, validation loss of a token)

    def train_step(self) -> None:
        recipe, weights = self.recipe, self.recipe.loss.weights
        (batch,) = self.data.micro_batches(self.step, range(recipe.train.global_batch_size))
        self.model.encoded, self.model.clips = self.data.encoded, [unit.clip for unit in batch.units]
        torch.manual_seed(step_seed(recipe.train.seed, self.step, 0))
        self.model(batch.media, batch.text, weights, batch.extra).total(weights).backward()
        clip_gradients(self.model.parameters(), recipe.train.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.train.lr * group["factor"] * rate_at(self.step, recipe.train.steps, recipe.train.warmup_steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step, "curve": self.curve}
        torch.save(state, partial)
        partial.rename(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.curve = state["step"], tuple(map(tuple, state["curve"]))


def started(overrides: Sequence[str], checkpoint: Path, cache: Path, start: Path | None) -> Run:
    """A new run; `start` holds the weights that it begins with."""
    recipe = load_recipe("demo-long", list(overrides))
    torch.manual_seed(recipe.train.seed)
    loaded = load_model(checkpoint)
    model = BehindEncoder(recipe.model, recipe.clip, loaded.vocabulary.size, recipe.loss.weights)
    if start is not None:
        weights = torch.load(start, weights_only=True)["model"]
        model.load_state_dict({name: weights.get(name, tensor) for name, tensor in model.state_dict().items()})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in ENCODER)
    sources = open_sources(recipe)
    data = EncodedData(recipe, sources, loaded.vocabulary)
    data.encoded = encoded_split(recipe, sources[0].split, checkpoint, cache)
    return Run(recipe, model.train(), loaded.vocabulary, data, build_optimizer(model, recipe.train))


class Examination:
    """The questions of a split, put to a model."""

    def __init__(self, run: Run, split: str, checkpoint: Path, cache: Path):
        recipe = run.recipe
        (source,) = recipe.data.training_sources()
        shards = ShardFolder(source_shards(source, recipe.clip)).split(split)
        self.run, self.encoded = run, encoded_split(recipe, shards, checkpoint, cache)
        self.texts: dict[int, list[dict[str, Any]]] = {}
        for text in shards.texts(source.task):
            self.texts.setdefault(int(text["clip"]), []).append(text)
        self.answerer = Answerer(run.model, run.vocabulary, recipe.eval)

    def _batches(self, cut: str | None) -> Any:
        model, clips = self.run.model.eval(), sorted(self.texts)
        model.encoded = self.encoded
        for first in range(0, len(clips), 32):
            model.clips = clips[first : first + 32]
            encoded = model.encode(looked_up(self.run.recipe, self.encoded, model.clips), cut=cut)
            yield model.text_kv(encoded, cut=cut), [self.texts[clip] for clip in model.clips]
        model.train()

    @torch.inference_mode()
    def loss(self) -> float:
        """Cross-entropy of a token of the answers."""
        nats, tokens = 0.0, 0
        for text_kv, rows in self._batches(None):
            found = self.answerer.loss(
                text_kv, [[(Question(text["question"], text["context"]), text["answer"]) for text in row] for row in rows]
            )
            nats, tokens = nats + found[0], tokens + found[1]
        self.run.model.train()
        return nats / tokens

    @torch.inference_mode()
    def right(self, cut: str | None = None) -> dict[str, list[bool]]:
        """By type: was each answer right, word for word."""
        right: dict[str, list[bool]] = {}
        for text_kv, rows in self._batches(cut):
            answers = self.answerer.answers(text_kv, [[Question(text["question"], text["context"]) for text in row] for row in rows])
            for found, asked in zip(answers, rows, strict=True):
                for answer, text in zip(found, asked, strict=True):
                    right.setdefault(text["type"], []).append(answer.text.strip() == text["answer"])
        return right


def accuracy(right: dict[str, list[bool]]) -> dict[str, Any]:
    everything = [one for found in right.values() for one in found]
    by_type = {name: {"n": len(found), "exact_match": sum(found) / len(found)} for name, found in sorted(right.items())}
    return {"n": len(everything), "exact_match": sum(everything) / len(everything), "by_type": by_type}


def cuts_of(recipe: Recipe) -> list[str]:
    """What can be taken from this model."""
    return [
        *(["last-chunk"] if recipe.model.text.sees == "all" else []),
        *(["own-chunk"] if recipe.model.latent.layers and recipe.model.text.sees != "memory" else []),
        *(["no-memory"] if recipe.model.combiner.kind == "ttm" or recipe.model.combiner.context == "history" else []),
    ]


def perform(
    overrides: Sequence[str], folder: Path, checkpoint: Path, cache: Path, *, scored: bool, start: Path | None = None
) -> dict[str, Any]:
    """Train to the end, going on from what `folder` holds, and examine; the figures of the run."""
    run = started(overrides, checkpoint, cache, start)
    state, steps = folder / "state.pt", run.recipe.train.steps
    folder.mkdir(parents=True, exist_ok=True)
    if state.exists():
        run.load(state)
    validation = Examination(run, "val", checkpoint, cache)
    began = time.process_time()
    while run.step < steps:
        run.train_step()
        if run.step % SAVE_EVERY == 0 or run.step == steps:
            run.curve = (*run.curve, (run.step, validation.loss()))
            run.save(state)
            print(
                json.dumps({"step": run.step, "val_loss": round(run.curve[-1][1], 4), "cpu_s": round(time.process_time() - began)}),
                flush=True,
            )
    figures: dict[str, Any] = {"steps": steps, "curve": [[step, round(loss, 5)] for step, loss in run.curve], **costs(run)}
    if scored:
        test = Examination(run, "test", checkpoint, cache)
        figures |= accuracy(test.right())
        figures["cuts"] = {cut: accuracy(test.right(cut)) for cut in cuts_of(run.recipe)}
    return figures


def costs(run: Run) -> dict[str, Any]:
    """Parameters, and FLOPs of a forward pass for one clip with the recipe's number of questions, as `--dry-run` counts."""
    recipe = run.recipe
    plain = Mirasol(recipe.model, recipe.clip, run.vocabulary.size, recipe.loss.weights)
    flops = forward_flops(plain, **recipe.data.modalities, questions=recipe.data.questions_per_clip)
    return {
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "gflop": sum(flops.values()) / 1e9,
        "gflop_behind_encoder": sum(count for part, count in flops.items() if part not in ENCODER) / 1e9,
        "combiner_gflop": flops["combiner"] / 1e9,
    }
