"""From the order of units to micro batches: media and texts, with augmentation and dropout of modalities.

Everything random about a sample comes from (seed, epoch, clip), so it is the same whichever process makes it, on however many,
before or after a resume. One background thread reads ahead; it holds no state that a checkpoint would have to keep.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mirasol_cli.batches import SOUND, media_batch, text_batch
from mirasol_cli.errors import ShardError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.model.inputs import MediaBatch, TextBatch
from mirasol_cli.prompts import encode_prompt, encode_target, vocabulary_lines
from mirasol_cli.recipe import source_shards
from mirasol_cli.recipe_schema import AugmentRecipe, Recipe, SourceRecipe
from mirasol_cli.shards.format import FAILURES, check_geometry
from mirasol_cli.shards.reader import ShardFolder, ShardSplit
from mirasol_cli.shards.sampler import Unit, UnitOrder, texts_by_clip
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
        samples, plans, rows = [], [], []
        for unit in units:
            source = self.sources[unit.source]
            plan = plan_sample(
                sample_generator(self.recipe.train.seed, unit), self.recipe.train.augment, self.recipe.clip, source.split.views
            )
            samples.append(source.split.media(unit.clip, plan.view))
            plans.append(plan)
            rows.append([self._encode(source.texts[position]) for position in unit.text_indices])
        media = media_batch(samples, self.recipe.clip, sound=self.recipe.data.sound)
        media = apply_plans(media, plans, self.recipe.clip, rebuild_sound=self.recipe.loss.audio > 0)
        return MicroBatch(media, text_batch(rows), tuple(units))

    def _encode(self, text: dict[str, Any]) -> tuple[list[int], list[int]]:
        limits = self.recipe.model.text
        prompt = encode_prompt(self.vocabulary, text["question"], text["context"], limits)
        return prompt.ids, encode_target(self.vocabulary, text["answer"], limits).ids


def training_lines(sources: Sequence[OpenSource]) -> Iterator[str]:
    """All texts that are trained on, as a vocabulary sees them: prompts and answers, in the annotation's order."""
    for source in sources:
        for positions in source.by_clip.values():
            for position in positions:
                text = source.texts[position]
                yield from vocabulary_lines(text["question"], text["answer"], text["context"])


# ------------------------------------------------------------------------------------------------- randomness per sample


@dataclass(frozen=True)
class SamplePlan:
    """What happens to one training sample."""

    view: int
    flip: bool
    gain: float  # contrast factor around mid-grey
    offset: float  # brightness, in units of the full range
    drop_sound: bool
    drop_picture: bool
    dropped_T: Tensor  # bool: chunks that lose sound and picture
    masked_T: Tensor  # bool: chunks replaced by the mask token before the latent model
    mel_bins: tuple[int, int]  # first masked bin, number of masked bins
    mel_columns: tuple[tuple[int, int], ...]  # the same for the columns of each chunk
    stretch: int  # how many times in a row a TTM takes each chunk
    memory_alone: bool  # the text sees no latent


def sample_generator(seed: int, unit: Unit) -> torch.Generator:
    """The only source of randomness of a sample: the same for all questions about a clip in one epoch."""
    key = hashlib.sha256(f"{seed}/{unit.source}/{unit.epoch}/{unit.clip}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def plan_sample(generator: torch.Generator, augment: AugmentRecipe, geometry: ClipGeometry, views: int) -> SamplePlan:
    """Draw everything at once and in a fixed order, so that switching one change off leaves the others as they were."""
    chunks, bins, columns = geometry.chunks, geometry.audio.bins, geometry.audio.columns
    u_view, u_flip, u_gain, u_offset, u_modality, u_drop = torch.rand(6, generator=generator).tolist()
    drop_T, masked_T = torch.rand(chunks, generator=generator), torch.rand(chunks, generator=generator) < augment.mask_latents
    u_mel = torch.rand(2 + 2 * chunks, generator=generator).tolist()
    u_memory, u_stretch = torch.rand(2, generator=generator).tolist()
    # Half of the chunks on average, never all of them: one chunk always stays to be seen.
    dropped_T = (drop_T < 0.5) & (drop_T < drop_T.max()) if u_drop < augment.drop_chunks else torch.zeros(chunks, dtype=torch.bool)
    if chunks == 1 or bool(masked_T.all()):
        masked_T = masked_T & (torch.arange(chunks) > 0)
    return SamplePlan(
        view=int(u_view * views),
        flip=u_flip < augment.flip,
        gain=1 + augment.colour * (u_gain - 0.5),
        offset=augment.colour * (u_offset - 0.5) * 0.5,
        drop_sound=u_modality < augment.drop_modality,
        drop_picture=augment.drop_modality <= u_modality < 2 * augment.drop_modality,
        dropped_T=dropped_T,
        masked_T=masked_T,
        mel_bins=_stretch(u_mel[0], u_mel[1], augment.mask_bins, bins),
        mel_columns=tuple(_stretch(u_mel[2 + 2 * t], u_mel[3 + 2 * t], augment.mask_columns, columns) for t in range(chunks)),
        stretch=1 + int(u_stretch * augment.stretch),
        memory_alone=u_memory < augment.memory_alone,
    )


def _stretch(u_length: float, u_start: float, longest: int, total: int) -> tuple[int, int]:
    length = int(u_length * (min(longest, total) + 1))
    return int(u_start * (total - length + 1)), length


def apply_plans(media: MediaBatch, plans: Sequence[SamplePlan], geometry: ClipGeometry, *, rebuild_sound: bool = False) -> MediaBatch:
    """The batch as the plans change it. A modality is only dropped from clips that also have the other one.

    `rebuild_sound` keeps the spectrogram as it was, for its reconstruction.
    """
    clips, chunks = len(plans), geometry.chunks
    video_BTN = _or_all(media.video_valid_BTN, (clips, chunks, geometry.video_tokens))
    audio_BTN = _or_all(media.audio_valid_BTN, (clips, chunks, geometry.audio_tokens))
    both_B = video_BTN.flatten(1).any(1) & audio_BTN.flatten(1).any(1)
    drop_sound_B = torch.tensor([plan.drop_sound for plan in plans]) & both_B
    drop_picture_B = torch.tensor([plan.drop_picture for plan in plans]) & both_B
    kept_BT1 = ~torch.stack([plan.dropped_T for plan in plans])[:, :, None]
    # A dropped picture or sound is an absent one, so there is no target either; a dropped chunk is there to be predicted.
    target_audio_BTN = audio_BTN & ~drop_sound_B[:, None, None]
    audio_BTN = target_audio_BTN & kept_BT1
    video_BTN = video_BTN & kept_BT1 & ~drop_picture_B[:, None, None]
    mel_BTZS = _mask_mel(media.mel_BTZS, plans)
    thumbnails_BT = _or_all(media.thumbnail_valid_BT, (clips, chunks)) & ~drop_picture_B[:, None]
    masked_BT, flip_B = torch.stack([plan.masked_T for plan in plans]), torch.tensor([plan.flip for plan in plans])
    hidden_B, stretch_B = torch.tensor([plan.memory_alone for plan in plans]), torch.tensor([plan.stretch for plan in plans])
    return replace(
        media,
        tubes=tuple(_recolour(tube, plans) for tube in media.tubes),
        thumbnails=_mirror(_recolour(media.thumbnails, plans), flip_B),
        mel_BTZS=mel_BTZS,
        video_valid_BTN=_or_none(video_BTN),
        audio_valid_BTN=_or_none(audio_BTN),
        thumbnail_valid_BT=_or_none(thumbnails_BT),
        latent_masked_BT=masked_BT if bool(masked_BT.any()) else None,
        stretch_B=stretch_B if bool((stretch_B > 1).any()) else None,
        latents_hidden_B=hidden_B if bool(hidden_B.any()) else None,
        flip_B=flip_B if bool(flip_B.any()) else None,
        target_mel_BTZS=media.mel_BTZS if rebuild_sound and mel_BTZS is not media.mel_BTZS else None,
        target_audio_valid_BTN=target_audio_BTN if rebuild_sound else None,
    )


def _or_all(valid: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape, dtype=torch.bool) if valid is None else valid


def _or_none(valid: Tensor) -> Tensor | None:
    return None if bool(valid.all()) else valid


def _mirror(thumbnails: Tensor, flip_B: Tensor) -> Tensor:
    """Left and right exchanged (the model does the same to the tubes, whose pixels it knows the order of)."""
    return torch.where(flip_B[:, None, None, None, None, None], thumbnails.flip(4), thumbnails) if bool(flip_B.any()) else thumbnails


def _recolour(pixels: Tensor, plans: Sequence[SamplePlan]) -> Tensor:
    """Contrast around mid-grey, then brightness; uint8 in, uint8 out, through a table of the 256 values."""
    if all(plan.gain == 1 and plan.offset == 0 for plan in plans):
        return pixels
    values = torch.arange(256, dtype=torch.float32)
    changed = [
        ((values - 127.5) * plan.gain + 127.5 + 255 * plan.offset).round().clamp(0, 255).to(torch.uint8)[sample.long()]
        for plan, sample in zip(plans, pixels, strict=True)
    ]
    return torch.stack(changed)


def _mask_mel(mel_BTZS: Tensor, plans: Sequence[SamplePlan]) -> Tensor:
    """SpecAugment (Park et al. 2019, frequency and time masking); 0 is the mean of the normalised spectrogram."""
    if all(plan.mel_bins[1] == 0 and not any(length for _, length in plan.mel_columns) for plan in plans):
        return mel_BTZS
    mel_BTZS = mel_BTZS.clone()
    for mel_TZS, plan in zip(mel_BTZS, plans, strict=True):
        first, length = plan.mel_bins
        mel_TZS[:, first : first + length] = 0
        for mel_ZS, (start, columns) in zip(mel_TZS, plan.mel_columns, strict=True):
            mel_ZS[:, start : start + columns] = 0
    return mel_BTZS


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
