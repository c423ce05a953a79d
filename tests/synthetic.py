"""Shards that no video was decoded for, and a model small enough to train in a test.

What a clip shows is a brightness, what it sounds like is a loudness; the texts ask for both, so that a model can learn them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mirasol_cli.config.reader import parse_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.datasets.example import ClipSpan, Split
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.sample import field_shapes
from mirasol_cli.shards.writer import ShardDraft
from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary
from tests.shards.samples import SMALL, write_finished_split

GEOMETRY = replace(SMALL, frames=12, chunks=3)
COLOURS, SOUNDS = ("black", "grey", "white"), ("quiet", "loud")

CLIP_YAML = """
clip:
  frames: 12
  chunks: 3
  size: 32
  tubes: [{kernel: [2, 8, 8], stride: [4, 16, 16], space_to_depth: [2, 1, 1]}, {kernel: [1, 16, 16], stride: [4, 16, 16]}]
  audio: {n_mels: 16, columns: 16}
"""

MODEL_YAML = """
model:
  preset: demo
  encoder: {width: 24, layers: 1, heads: 2, mlp_dim: 32}
  combiner: {width: 24, layers: 1, heads: 2, mlp_dim: 32, num_outputs: 2, memory_tokens: 4}
  latent: {width: 24, layers: 1, heads: 2, mlp_dim: 32}
  reconstruction: {width: 12, layers: 1, heads: 2, mlp_dim: 16}
  text: {width: 24, layers: 2, heads: 2, kv_heads: 2, mlp_dim: 32, cross_attention_every: 1}
"""


def sample(key: str, *, colour: int, audio: int | None, geometry: ClipGeometry = GEOMETRY, view: int = 0) -> dict[str, np.ndarray]:
    """All fields of a clip: pixels around the colour's brightness, a spectrogram around the sound's level (None: no sound stream)."""
    generator = np.random.default_rng(zlib.crc32(f"{key}/{view}".encode()))
    fields: dict[str, np.ndarray] = {}
    for name, (dtype, shape) in field_shapes(geometry).items():
        if name == "thumbnails" or name.startswith("tubes."):
            noise = generator.integers(-20, 21, shape)
            fields[name] = np.clip((30, 128, 225)[colour] + noise, 0, 255).astype(dtype)
        elif name == "mel":
            level = 0.0 if audio is None else (-1.0, 1.0)[audio]
            fields[name] = (level + 0.1 * generator.standard_normal(shape)).astype(dtype)
        elif name == "mel_valid":
            fields[name] = np.full(shape, audio is not None, dtype)
        elif name == "audio_state":
            fields[name] = np.array(0 if audio is None else 2, dtype)
        elif name == "span":
            fields[name] = np.array([0.0, 10.0])
        elif name == "frame_times":
            fields[name] = np.linspace(0, 10, int(np.prod(shape))).reshape(shape)
        else:
            fields[name] = np.ones(shape, dtype)
    return fields


def write_split(
    folder: Path,
    clips: int,
    *,
    geometry: ClipGeometry = GEOMETRY,
    silent_clips: Sequence[int] = (),
    questions: int = 2,
    not_finite: Sequence[int] = (),
    first: int = 0,
) -> None:
    """A finished split `folder` (its name is the split's) with task `qa`.

    Args:
        silent_clips: numbers of clips without a sound stream.
        questions: texts per clip: the colour, then the sound, then repetitions with another wording.
        not_finite: numbers of clips whose spectrogram holds a NaN.
        first: number that colours and names start from, for splits of different clips.
    """
    spans = [ClipSpan(video=f"clip{first + number}.mp4") for number in range(clips)]
    texts: list[dict[str, Any]] = []

    def fill(draft: ShardDraft, position: int, number: int) -> None:
        views = draft.slot.views
        colour, audio = (first + number) % 3, None if number in silent_clips else (first + number) // 3 % 2
        found = [sample(spans[number].key, colour=colour, audio=audio, geometry=geometry, view=view) for view in range(views)]
        if number in not_finite:
            found[0]["mel"][0, 0, 0] = np.nan
        answers = [("what colour is it?", COLOURS[colour]), ("what do you hear?", "nothing" if audio is None else SOUNDS[audio])]
        for k in range(questions):
            question, answer = answers[k % 2]
            texts.append(
                {"id": f"{first + number}-{k}", "clip": number, "question": question + " again" * (k // 2), "answer": answer,
                 "references": [], "choices": [], "type": ("colour", "sound")[k % 2], "context": ""}
            )  # fmt: skip
        draft.add(position, found)

    write_finished_split(folder, spans, fill, texts, geometry=geometry)


def write_texts(folder: Path, split: Split, geometry: ClipGeometry) -> None:
    """A finished split with the clips and texts of a data set's reader, and random media; every third clip is without sound."""
    numbers = {clip: number for number, clip in enumerate(split.clips)}

    def fill(draft: ShardDraft, position: int, number: int) -> None:
        key, audio, views = split.clips[number].key, None if number % 3 == 2 else number % 2, draft.slot.views
        draft.add(position, [sample(key, colour=number % 3, audio=audio, geometry=geometry, view=view) for view in range(views)])

    texts = [text.to_json(numbers[text.clip]) for text in split.texts]
    write_finished_split(folder, split.clips, fill, texts, geometry=geometry, task=split.task, labels=split.labels)


def vocabulary() -> Vocabulary:
    """Trained on the words of these texts."""
    lines = [*COLOURS, *SOUNDS, "nothing", "what colour is it? again", "what do you hear?", "context: question: answer:"]
    return Vocabulary(train_vocabulary(lines, 300))


def recipe(run: Path, shards: Path, *overrides: str) -> Recipe:
    """A recipe for these shards that trains in a second."""
    text = f"""
schema: 1
name: synthetic
data: {{dataset: synthetic, shards: "{shards}", questions_per_clip: 2}}
{CLIP_YAML}{MODEL_YAML}
init: {{vocab_size: 300}}
loss: {{text: 10, latent: 1, video: 1}}
train: {{steps: 6, global_batch_size: 4, lr: 1e-3, checkpoint_every: 100, log_every: 1, keep_checkpoints: 10}}
run: {{dir: "{run}"}}
"""
    return parse_recipe(text, "synthetic.yaml", list(overrides))
