"""The recipes of the ablations: each is valid, differs from its reference in just what it claims, and shares its shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mirasol_cli.config.paths import ablation_recipes, default_shards, find_recipe, recipe_header, shipped_recipes
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import RecipeError
from mirasol_cli.model.batch import MediaBatch, TextBatch
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.training.resume import changed_keys

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "ablations"
NO_PREDICTION = {"model.latent.layers", "loss.latent", "loss.video", "train.augment.mask_latents"}
# Recipe -> (what it is an ablation of, every key in which the two differ, besides the name).
CLAIMS: dict[str, tuple[str, set[str]]] = {
    "baseline": ("full", {"model.combiner.kind", *NO_PREDICTION}),
    "no-combiner": ("full", {"model.combiner.kind"}),
    "no-autoregression": ("full", NO_PREDICTION),
    "no-reconstruction": ("full", {"loss.video"}),
    "no-latent-loss": ("full", {"loss.latent"}),
    "no-audio": ("full", {"data.audio"}),
    "history": ("full", {"model.combiner.context"}),
    "ttm": ("full", {"model.combiner.kind"}),
    "perceiver": ("full", {"model.combiner.kind"}),
    "mean": ("full", {"model.combiner.kind"}),
    "pretrain": ("full", {"data.task", "data.questions_per_clip", "loss.text", "loss.latent"}),
    "pretrained": ("full", {"init.checkpoint"}),
    "long-4-ttm": ("long-4-transformer", {"model.combiner.kind", "init.checkpoint"}),
    "long-16-transformer": ("long-4-transformer", {"clip.frames", "clip.chunks"}),
    "long-64-transformer": ("long-4-transformer", {"clip.frames", "clip.chunks"}),
    "long-16-ttm": ("long-4-ttm", {"clip.frames", "clip.chunks"}),
    "long-64-history": ("long-64-transformer", {"model.combiner.context", "init.checkpoint"}),
    "long-64-ttm": ("long-4-ttm", {"clip.frames", "clip.chunks"}),
}
REFERENCES = {"full", "long-4-transformer"}
# How long and how often a run goes.
LENGTH = {"name", "train.steps", "train.checkpoint_every", "train.eval_every", "train.val_clips"}
# The ablations are about a Transformer or a plain Token Turing Machine as Combiner, and clips that the text sees whole.
LONG_MEMORY = {"model.combiner.kind", "model.combiner.write", "train.augment.memory_only", "train.augment.max_chunk_repeats"}


def load(name: str) -> Recipe:
    return load_recipe(str(FOLDER / f"{name}.yaml"))


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == CLAIMS.keys() | REFERENCES
    assert {name.removeprefix("ablations/") for name in ablation_recipes()} == CLAIMS.keys() | REFERENCES


@pytest.mark.parametrize("name", CLAIMS)
def test_differs_in_what_it_claims_and_in_nothing_else(name: str) -> None:
    reference, keys = CLAIMS[name]
    assert set(changed_keys(load(reference), load(name))) == {"name", *keys}


def test_full_is_the_demo_recipe_but_for_its_length_and_its_long_memory() -> None:
    assert set(changed_keys(load_recipe("demo"), load("full"))) <= LENGTH | LONG_MEMORY


def test_long_recipes_are_those_of_the_long_world_but_for_their_length_and_start() -> None:
    changed = set(changed_keys(load_recipe("demo-long"), load("long-16-ttm")))
    assert changed <= {*LENGTH, *LONG_MEMORY, "train.global_batch_size", "train.warmup_steps", "init.checkpoint"}


def test_longer_input_starts_from_the_same_model() -> None:
    for long, start in (("long-4-transformer", "full"), ("long-4-ttm", "ttm"), ("long-64-history", "history")):
        assert load(long).model == load(start).model
        assert load(long).init.checkpoint == load(start).run_dir
    assert load("long-4-ttm").clip == load("ttm").clip
    for kind in ("transformer", "ttm"):
        frames = {chunks: load(f"long-{chunks}-{kind}").clip.frames for chunks in (4, 16, 64)}
        assert frames == {4: 32, 16: 128, 64: 512}


@pytest.mark.parametrize("name", [*sorted(REFERENCES), *CLAIMS])
def test_header_name_and_shards(name: str) -> None:
    recipe, header = load(name), recipe_header(FOLDER / f"{name}.yaml")
    assert recipe.name == f"ablation-{name}"
    assert f"recipes/ablations/{name}.yaml" in header
    assert "Before:" in header
    if name.startswith("long"):
        assert recipe.data.dataset == "demo-long"
        partner = load(name.replace("ttm", "transformer").replace("history", "transformer"))
        assert default_shards("demo-long", recipe.clip) == default_shards("demo-long", partner.clip)
    else:
        # The one folder that `mirasol prepare demo` writes.
        assert recipe.data.dataset == "demo"
        assert recipe.data.shards is None
        assert default_shards("demo", recipe.clip) == default_shards("demo", load_recipe("demo").clip)


def test_found_by_name_from_anywhere_and_not_among_the_recipes_for_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("ablations/no-audio") == load("no-audio")
    assert not [name for name in shipped_recipes() if "ablation" in name]
    with pytest.raises(RecipeError, match="did you mean ablations/no-audio"):
        find_recipe("ablations/no-sudio")


@pytest.mark.parametrize("name", [*sorted(REFERENCES), *CLAIMS])
def test_a_step_reaches_every_parameter(name: str) -> None:
    recipe = load(name)
    clip, weights = recipe.clip, recipe.loss.weights
    torch.manual_seed(0)
    model = Mirasol(recipe.model, clip, 300, weights)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8)

    media = MediaBatch(
        tubes=tuple(pixels(2, clip.chunks, n, t.numbers_per_token) for n, t in zip(clip.tube_tokens, clip.tubes, strict=True)),
        mel_BTZS=torch.randn(2, clip.chunks, clip.audio.n_mels, clip.audio.columns),
        thumbnails=pixels(2, clip.chunks, 4, 32, 32, 3),
    )
    tokens = torch.randint(3, 300, (2, 1, 9))
    text = TextBatch(tokens_BQL=tokens, valid_BQL=torch.ones_like(tokens, dtype=torch.bool), target_BQL=torch.arange(9).expand(2, 1, 9) > 5)
    loss = model(media, text, weights).total(weights)
    loss.backward()
    assert loss.isfinite()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
