"""A tiny random model with its checkpoint, and made-up splits with any texts, for tests of evaluation and `ask`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mirasol_cli.checkpoints.folder import Contents, write_checkpoint
from mirasol_cli.checkpoints.load import model_tensors
from mirasol_cli.config.reader import dump_recipe
from mirasol_cli.config.schema import DataRecipe, EvalRecipe, Recipe, RunRecipe
from mirasol_cli.datasets.example import ClipSpan
from mirasol_cli.model.config import CombinerConfig, EncoderConfig, LatentConfig, ModelConfig, ReconstructionConfig, TextConfig
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.shards.writer import ShardDraft
from mirasol_cli.text.tokenizer import Vocabulary, train_vocabulary
from tests.shards.samples import SMALL, made_up_views, write_finished_split

WORDS = ["what is it", "a red drum", "a blue bell", "yes", "no", "who plays", "describe the clip", "class one", "class two"]


def tiny_config(combiner: str = "transformer") -> ModelConfig:
    return ModelConfig(
        preset="demo",
        encoder=EncoderConfig(width=24, layers=1, heads=2, mlp_dim=32),
        combiner=CombinerConfig(kind=combiner, width=24, layers=1, heads=2, mlp_dim=32, num_outputs=4, memory_tokens=6),
        latent=LatentConfig(width=24, layers=1, heads=2, mlp_dim=32),
        reconstruction=ReconstructionConfig(width=24, layers=1, heads=2, mlp_dim=32),
        text=TextConfig(width=24, layers=2, heads=2, kv_heads=2, mlp_dim=32, cross_attention_every=1, max_context=24),
    )


def tiny_vocabulary() -> Vocabulary:
    return Vocabulary(train_vocabulary(WORDS * 3, 300))


def tiny_model(seed: int = 0, geometry=SMALL, combiner: str = "transformer") -> Mirasol:
    torch.manual_seed(seed)
    model = Mirasol(tiny_config(combiner), geometry, tiny_vocabulary().size)
    with torch.no_grad():  # far from uniform, so that answers differ between clips and questions
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and name.startswith("text"):
                parameter.mul_(4.0)
    return model.eval()


def tiny_recipe(folder: Path, dataset: str = "manifest", task: str = "qa", **eval_keys) -> Recipe:
    return Recipe(
        name="tiny",
        data=DataRecipe(dataset=dataset, task=task, shards=str(folder / "shards")),
        clip=SMALL,
        model=tiny_config(),
        eval=EvalRecipe(**{"split": "test", "max_tokens": 6, "batch_size": 3, **eval_keys}),
        run=RunRecipe(dir=str(folder / "run")),
    )


def write_tiny_checkpoint(folder: Path, recipe: Recipe, seed: int = 0, combiner: str = "transformer") -> Path:
    """`<folder>/step-00000007`, complete."""
    vocabulary, model = tiny_vocabulary(), tiny_model(seed, recipe.clip, combiner)
    config = {"schema": 1, "clip": recipe.clip.to_plain(), "model": tiny_plain(combiner), "losses": ["text", "latent", "video"]}
    config["vocab_size"] = vocabulary.size
    files = {
        "config.json": json.dumps(config).encode(),
        "recipe.yaml": dump_recipe(recipe).encode(),
        "state.json": json.dumps({"step": 7}).encode(),
        "tokenizer.model": vocabulary.model_bytes,
    }
    return write_checkpoint(folder, 7, Contents(files, {"model": model_tensors(model)}))


def tiny_plain(combiner: str) -> dict:
    from mirasol_cli.fields import to_plain

    return to_plain(tiny_config(combiner))


def write_texts_split(
    folder: Path, texts: list[dict], videos: list[str], *, task: str = "qa", missing: tuple[int, ...] = (), labels: tuple[str, ...] = (),
    geometry=SMALL,
) -> None:  # fmt: skip
    """A finished split of made-up media with the given texts (each with at least id, clip, question and answer)."""
    spans = [ClipSpan(video=video) for video in videos]

    def fill(draft: ShardDraft, position: int, number: int) -> None:
        if number in missing:
            draft.mark_missing(position)
        else:
            draft.add(position, made_up_views(spans[number], geometry, draft.slot.views))

    filled = [{"references": [], "choices": [], "type": "", "context": "", **text} for text in texts]
    write_finished_split(folder, spans, fill, filled, geometry=geometry, task=task, labels=labels)
