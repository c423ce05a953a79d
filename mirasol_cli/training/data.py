"""From the order of units to micro batches: media and texts, with augmentation and dropout of modalities.

Everything random about a sample comes from (seed, epoch, clip), so it is the same whichever process makes it, on however many,
before or after a resume. One background thread reads ahead; it holds no state that a checkpoint would have to keep.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

import torch

from mirasol_cli.batches import SOUND, media_batch, text_batch
from mirasol_cli.errors import ShardError
from mirasol_cli.model.inputs import MediaBatch, TextBatch, TrainingInputs
from mirasol_cli.prompts import encode_prompt, encode_target, vocabulary_lines
from mirasol_cli.recipe import source_shards
from mirasol_cli.recipe_schema import Recipe, SourceRecipe
from mirasol_cli.shards.format import FAILURES, check_geometry
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from mirasol_cli.shards.sampler import Unit, UnitOrder, texts_by_clip
from mirasol_cli.training.augment import Draw, augmented
from mirasol_cli.vocabulary import Vocabulary

Item = TypeVar("Item")


@dataclass(frozen=True)
class OpenSource:
    """One source of the mixture, with its texts in memory and its media on disk."""

    recipe: SourceRecipe
    split: ShardSplit
    texts: list[dict[str, Any]]
    by_clip: dict[int, list[int]]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What is learned from, told by checksums that the index holds: the same data wherever they lie."""
        index, each = self.split.index, self.split.index.clips_per_shard
        read = {clip // each for clip in self.by_clip}
        records = [record for record in index.shards if record.number in read]
        return {
            "source": f"{self.recipe.dataset}/{self.recipe.split}",
            "clips": len(self.by_clip),
            "texts": sum(map(len, self.by_clip.values())),
            "names of the clips": _digest(record.clips_digest for record in records),
            "questions, answers or contexts": index.tasks[self.recipe.task].sha256,
            "pictures or sound": _digest(record.sha256 for record in records),
        }

    @property
    def audible(self) -> int:
        """How many of the clips that are trained on have sound."""
        states = {clip: state for record in self.split.index.shards for clip, state in zip(record.kept, record.audio, strict=True)}
        return sum(states[clip] == SOUND for clip in self.by_clip)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once."""

    media: MediaBatch
    text: TextBatch
    extra: TrainingInputs
    units: tuple[Unit, ...]

    @property
    def questions(self) -> int:
        return sum(len(unit.text_indices) for unit in self.units)


def open_sources(recipe: Recipe) -> list[OpenSource]:
    """The shards and texts of the recipe's mixture.

    Raises:
        ShardError: shards are missing, damaged, of another geometry, or without a text to train on.
    """
    sources = []
    for source in recipe.data.training_sources():
        path = source_shards(source, recipe.clip)
        split = ShardFolder(path).split(source.split)
        check_geometry(recipe.clip, split.geometry, split.path)
        texts = split.texts(source.task)
        by_clip = texts_by_clip(split, texts, recipe.data.limit)
        if not split.kept:
            counts = {name: sum(len(getattr(record, name)) for record in split.index.shards) for name in ("failed", "missing")}
            raise ShardError(
                f"no clip of '{split.path}' could be read: {counts['failed']} failed, {counts['missing']} are missing",
                f"'{split.path / FAILURES}' says why; `mirasol prepare ... --retry-failed` tries them again",
            )
        if not by_clip:
            raise ShardError(
                f"'{split.path}' has no text with an answer for task '{source.task}'", "train on a split with answers (data.split)"
            )
        sources.append(OpenSource(source, split, texts, by_clip))
    return sources


class TrainingData:
    """Micro batches of any step, for any share of the global batch."""

    def __init__(self, recipe: Recipe, sources: Sequence[OpenSource], vocabulary: Vocabulary):
        self.recipe, self.sources, self.vocabulary = recipe, sources, vocabulary
        self.order = UnitOrder(
            [source.by_clip for source in sources],
            [source.recipe.ratio for source in sources],
            recipe.data.questions_per_clip,
            recipe.train.seed,
        )

    @property
    def fingerprint(self) -> list[dict[str, Any]]:
        """Of the clips and texts of all sources in their order."""
        return [source.fingerprint for source in self.sources]

    @cached_property
    def usual_clip_s(self) -> float:
        """Seconds that 95 % of the training clips do not exceed: what `ask` takes for an ordinary length."""
        seconds: list[float] = []
        for source in self.sources:
            records = source.split.index.shards
            lengths = {clip: length for record in records for clip, length in zip(record.kept, record.seconds, strict=True)}
            seconds += [lengths[clip] for clip in source.by_clip]
        return round(sorted(seconds)[int(0.95 * (len(seconds) - 1))], 3)

    def step_units(self, step: int) -> list[Unit]:
        """The units of the global batch of a step (from 0)."""
        batch = self.recipe.train.batch_clips
        return [self.order.unit(i) for i in range(step * batch, (step + 1) * batch)]

    def micro_batches(self, step: int, share: range) -> list[MicroBatch]:
        """The units of `share` (positions in the global batch), at most `train.micro_batch_clips` at once."""
        units = self.step_units(step)
        size = self.recipe.train.micro_batch_clips or len(share)
        pieces = [share[start : start + size] for start in range(0, len(share), size)]
        return [self._micro_batch([units[position] for position in piece]) for piece in pieces]

    def describe(self, unit: Unit) -> dict[str, Any]:
        """Names that a person can look up: data set, split, clip, texts."""
        source = self.sources[unit.source]
        return {
            "dataset": source.recipe.dataset,
            "split": source.recipe.split,
            "clip": source.split.clips[unit.clip]["key"],
            "texts": [source.texts[position]["id"] for position in unit.text_indices],
        }

    def _micro_batch(self, units: Sequence[Unit]) -> MicroBatch:
        augment = self.recipe.train.augment
        samples, draws, rows = [], [], []
        for unit in units:
            source = self.sources[unit.source]
            draw = Draw.of(sample_generator(self.recipe.train.seed, unit), augment, self.recipe.clip, source.split.views)
            samples.append(source.split.media(unit.clip, draw.view))
            draws.append(draw)
            rows.append([self._encode(source.texts[position]) for position in unit.text_indices])
        media = media_batch(samples, self.recipe.clip, sound=self.recipe.data.sound)
        media, extra = augmented(media, draws, self.recipe.clip, keep_audio="audio" in self.recipe.loss.weights)
        return MicroBatch(media, text_batch(rows), extra, tuple(units))

    def _encode(self, text: dict[str, Any]) -> tuple[list[int], list[int]]:
        limits = self.recipe.model.text
        prompt = encode_prompt(self.vocabulary, text["question"], text["context"], limits)
        return prompt.ids, encode_target(self.vocabulary, text["answer"], limits).ids


def sample_generator(seed: int, unit: Unit) -> torch.Generator:
    """The only source of randomness of a sample: the same for all questions about a clip in one epoch."""
    key = hashlib.sha256(f"{seed}/{unit.source}/{unit.epoch}/{unit.clip}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def training_lines(sources: Sequence[OpenSource]) -> Iterator[str]:
    """All texts that are trained on, as a vocabulary sees them: prompts and answers, in the annotation's order."""
    for source in sources:
        for positions in source.by_clip.values():
            for position in positions:
                text = source.texts[position]
                yield from vocabulary_lines(text["question"], text["answer"], text["context"])


# ------------------------------------------------------------------------------------------------------------ reading ahead


class ReadAhead(Generic[Item]):
    """Calls `make(step)` for consecutive steps on one background thread; iterating yields the results in order.

    An exception of `make` is raised at the step it belongs to. `waited_s` sums the time the consumer stood still.
    """

    def __init__(self, make: Callable[[int], Item], steps: range, ahead: int = 2):
        self.waited_s = 0.0
        self._steps = steps
        self._queue: Queue[tuple[Item | None, BaseException | None]] = Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(make,), name="read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead[Item]:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        while True:  # make room, so that a waiting thread sees the flag
            try:
                self._queue.get_nowait()
            except Empty:
                break
        self._thread.join(timeout=10)

    def __iter__(self) -> Iterator[Item]:
        for _ in self._steps:
            start = time.perf_counter()
            item, error = self._queue.get()
            self.waited_s += time.perf_counter() - start
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    def _work(self, make: Callable[[int], Item]) -> None:
        for step in self._steps:
            try:
                result: tuple[Item | None, BaseException | None] = (make(step), None)
            except BaseException as error:
                result = (None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(result, timeout=0.1)
                    break
                except Full:
                    continue
            if self._stop.is_set() or result[1] is not None:
                return
