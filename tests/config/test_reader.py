"""Recipes: the safe YAML reading, strict mapping, overrides, presets, errors all at once, and the way back to YAML."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirasol_cli.config.paths import default_shards, find_recipe, recipe_header, shipped_recipes
from mirasol_cli.config.reader import dump_recipe, known_keys, load_recipe, nearest_key, parse_recipe
from mirasol_cli.config.renamed import RENAMED, RETIRED
from mirasol_cli.config.schema import DataRecipe, InitRecipe, RatesRecipe, Recipe, RunRecipe, SourceRecipe, TrainRecipe
from mirasol_cli.config.yaml import dump_value, parse_scalar, parse_yaml
from mirasol_cli.errors import RecipeError
from mirasol_cli.fields import FieldError
from mirasol_cli.geometry import CHUNK_TUBES, TUBEVIT_TUBES, ClipGeometry, Tube
from mirasol_cli.model.config import PRESETS
from mirasol_cli.sample import bytes_per_clip

HEAD = "schema: 1\nname: x\n"


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


# ---------------------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1e4", 1e4), ("1.", 1.0), (".5", 0.5), ("-2.5E+3", -2500.0), ("+7", 7), ("012", 12), ("0", 0),
        ("on", "on"), ("NO", "NO"), ("yes", "yes"), ("off", "off"), ("y", "y"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"), ("1_000", "1_000"), ("e5", "e5"), (".", "."), ("true", True), ("False", False), ("null", None), ("~", None),
        ("nan", "nan"), ("=", "="), ("<<", "<<"), ("-", "-"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_scalars_of_a_file_and_of_the_command_line_read_the_same(text: str, value: object) -> None:
    given_on_command_line = parse_scalar(text, "here").content
    assert (given_on_command_line, type(given_on_command_line)) == (value, type(value))
    if text not in ("-", "="):  # a lone "-" opens a list in a file; "=" has no place there
        in_file = parse_yaml(f"key: {text}\n", "f").get("key")
        assert in_file is not None
        assert (in_file.content, type(in_file.content)) == (value, type(value))


def test_overrides_take_quoted_text_lists_and_sections() -> None:
    assert parse_scalar("'1e-4'", "o").content == "1e-4"
    assert [item.content for item in parse_scalar("[encoder, 2]", "o").content] == ["encoder", 2]
    assert parse_scalar("a: b # c", "o").content == "a: b # c"
    assert parse_scalar("", "o").content is None


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "empty"),
        ("schema: 1\nname: !!python/object:os.system x\n", "r.yaml:2: the tag"),
        ("schema: 1\nname: &a x\nrun: {dir: *a}\n", "r.yaml:2: anchors and aliases"),
        ("schema: 1\nname: [\n", "r.yaml:3"),
        ("- a\n", "is a set of `section: ...` lines, not a list"),
        ("schema: 1\n--- \nname: x\n", "r.yaml:2"),
        ("? [a]\n: b\n", "a key must be a word"),
        ("[" * 5000, "nested too deeply"),
        ("#" * (1 << 20) + "\n", "too many"),
    ],
)
def test_text_that_is_no_recipe_gets_one_sentence_with_its_line(text: str, fragment: str) -> None:
    (problem,) = problems(text)
    assert fragment in problem


def test_every_key_given_twice_is_named_with_both_lines() -> None:
    found = problems(HEAD + "train:\n  lr: 1\n  lr: 2\nname: y\n")
    assert [re.findall(r"r\.yaml:(\d+)", line) for line in found] == [["5", "4"], ["6", "2"]]


# ---------------------------------------------------------------------------------------------- strict mapping


def test_all_errors_come_at_once_each_with_file_line_and_fix() -> None:
    text = HEAD + "data: {audio: off}\nclip:\n  frames: 100\n  chunks: 16\n"
    text += "train:\n  learning_rate: 1e-4\n  betas: [1]\n  lr: -3\nmodle: {}\n"
    found = "\n".join(problems(text, "foo", "model.combiner.kind=tmt", "eval.beams=2.5", "init.checkpoint=3"))
    for line in (
        "r.yaml:3: `data.audio` is true or false; the text 'off' was given; write false",
        "r.yaml:6: `clip.chunks`: 100 frames do not divide into 16 equal chunks",
        "r.yaml:8: unknown key `train.learning_rate`; did you mean `train.lr`?",
        "r.yaml:9: `train.betas` takes 2 values; 1 were given",
        "r.yaml:10: `train.lr`: -3.0 must be greater than 0",
        "r.yaml:11: unknown key `modle`; did you mean `model`?",
        "'foo' is not key=value",
        "'model.combiner.kind=tmt': `model.combiner.kind`: 'tmt' is not one of transformer, ttm,",
        "'eval.beams=2.5': `eval.beams` is a whole number; 2.5 was given",
        "'init.checkpoint=3': `init.checkpoint` is text; the number 3 was given; put it in quotes",
    ):
        assert line in found
    assert found.count("\n") == 9


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "train.lr"), ("train.global_bach_size", "train.global_batch_size"), ("clip.frame", "clip.frames"), ("batch_size",
        "train.global_batch_size"),
        ("model.combinner", "model.combiner"), ("eval.dcode", "eval.decode"), ("train.drop_modality", "train.augment.drop_modality"),
        ("zzzzzz", None),
    ],
)  # fmt: skip
def test_nearest_key(key: str, meant: str | None) -> None:
    assert nearest_key(key) == meant


def test_an_unknown_key_without_a_near_one_lists_the_known_ones() -> None:
    (problem,) = problems(HEAD + "run: {zzzzzz: 1}\n")
    assert "known here: dir, tensorboard" in problem


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("schema: 2\nname: x\nnew_section: 1\n", "r.yaml:1: `schema` 2 is not supported; this version of mirasol reads schema 1"),
        ("schema: true\nname: x\n", "`schema` true is not supported"),
        ("name: x\n", "`schema: 1` is missing"),
        ("schema: 1\n", "`name` is missing"),
        ("schema: 1\nname: ../../x\n", "`name`: '../../x' cannot name a folder"),
        (HEAD + "data: {dataset: ..}\n", "`data.dataset`: '..' cannot name a folder"),
        (HEAD + "data: {sources: [{dataset: /etc}]}\n", "`data.sources.0.dataset`"),
        (HEAD + "data: {fold: 6}\n", "`data.fold`: 6 is above data.folds, 5"),
        (HEAD + "data: {fold: 1, split: fold2}\n", "`data.split`: 'fold2' is not read, since data.fold names the splits to train on"),
        (HEAD + "data: {fold: 1, sources: [{dataset: a}]}\n", "`data.fold`: a fold of which source?"),
        (HEAD + "data: {audio: false, video: false}\n", "`data.video`: data.audio and data.video are both false"),
        (HEAD + "train: 3\n", "`train` is a section with the keys steps, global_batch_size"),
        (HEAD + "freeze: text\n", "`freeze` is a list, such as [a, b]; the text 'text' was given"),
        (HEAD + "freeze: [1]\n", "`freeze.0` is text; the number 1 was given"),
        (HEAD + "clip: {tubes: chunks}\n", "'chunks' is not one of chunk, tubevit"),
        (HEAD + "clip: {tubes: [{kernel: [1, 2], stride: [1, 1, 1]}]}\n", "`clip.tubes.0.kernel` takes 3 values"),
        (HEAD + "clip: {tubes: [{kernel: [0, 2, 2], stride: [1, 1, 1]}]}\n", "`clip.tubes.0`: tube 0x2x2 has a size below 1"),
        (HEAD + "clip: {size: 8}\n", "8 is below the least allowed value 16"),
        (HEAD + "train: {lr: .inf}\n", "must be a finite number; .inf was given"),
        (HEAD + f"train: {{steps: {'9' * 5000}}}\n", "must be a finite number"),
        (HEAD + f"train: {{steps: {'9' * 320}}}\n", "must be a finite number"),
        (HEAD + f"train: {{lr: {'9' * 320}}}\n", "must be a finite number"),
        (HEAD + f"train: {{seed: {'9' * 30}}}\n", "whole number"),
        (HEAD + "train: {betas: [1.5, 0.9]}\n", "`train.betas`: 1.5 is not in [0, 1)"),
        (HEAD + "train: {betas: [0.9, 1]}\n", "`train.betas`: 1.0 is not in [0, 1)"),
        (HEAD + "train: {betas: [-0.1, 0.9]}\n", "`train.betas`: -0.1 is not in [0, 1)"),
        (HEAD + "train: {compile: 1}\n", "`train.compile` is true or false; the number 1 was given"),
        (HEAD + "train: {steps: true}\n", "`train.steps` is a whole number; true was given"),
        (HEAD + "train: {steps: null}\n", "`train.steps` is a whole number; null was given"),
        (HEAD + "loss: {text: 0, latent: 0, video: 0}\n", "there is nothing to train"),
        (HEAD + "model: {encoder: {width: 100, heads: 3}}\n", "`model.encoder.heads`: width 100 is not divisible by 3 heads"),
        (
            HEAD + "train:\n  augment:\n    memory_only: 0.5\n",
            "r.yaml:5: `train.augment.memory_only`: the Combiner 'transformer' has no memory, which this trains",
        ),
        (HEAD + "model: {preset: huge}\n", "'huge' is not one of demo, small, base, mirasol3b"),
    ],
)
def test_a_wrong_value_says_what_was_given_and_what_is_expected(text: str, fragment: str) -> None:
    assert any(fragment in problem for problem in problems(text)), problems(text)


def test_values_that_are_allowed() -> None:
    recipe = parse_recipe(HEAD + "train: {steps: 1e4, lr: 1, micro_batch_size: null}\neval:\n", "r")
    assert (recipe.train.steps, type(recipe.train.steps)) == (10000, int)
    assert (recipe.train.lr, type(recipe.train.lr)) == (1.0, float)
    assert recipe.train.micro_batch_size is None
    assert recipe.eval == Recipe(name="x").eval  # a section whose keys are all commented out
    assert recipe.run_dir == "runs/x"


def test_tubes_by_name_and_as_a_list() -> None:
    assert parse_recipe(HEAD, "r").clip.tubes == CHUNK_TUBES
    assert parse_recipe(HEAD + "clip: {tubes: tubevit, frames: 32, chunks: 1}\n", "r").clip.tubes == TUBEVIT_TUBES
    listed = parse_recipe(HEAD + "clip: {tubes: [{kernel: [1, 16, 16], stride: [8, 16, 16]}]}\n", "r").clip.tubes
    assert listed == (Tube(kernel=(1, 16, 16), stride=(8, 16, 16)),)


def test_preset_lies_below_the_recipe_and_the_command_line_on_top() -> None:
    text = HEAD + "model: {preset: demo, text: {layers: 7}, encoder: null}\n"
    model = parse_recipe(text, "r", ["model.text.layers=9", "model.latent.layers=0"]).model
    demo = PRESETS["demo"]
    assert (model.text.layers, model.latent.layers) == (9, 0)
    assert (model.text.width, model.encoder.width) == (demo["text"]["width"], demo["encoder"]["width"])
    assert parse_recipe(text, "r").model.text.layers == 7
    assert parse_recipe(text, "r", ["model.preset=small"]).model.encoder.width == PRESETS["small"]["encoder"]["width"]


def test_overrides_reach_into_lists_and_later_ones_win() -> None:
    text = HEAD + "data: {sources: [{dataset: a}, {dataset: b}]}\n"
    recipe = parse_recipe(text, "r", ["data.sources.1.ratio=3", "train.lr=1", "train.lr=2", "freeze=[text]", "run.dir="])
    assert recipe.data.sources[1] == SourceRecipe(dataset="b", ratio=3.0)
    assert (recipe.train.lr, recipe.freeze, recipe.run.dir) == (2.0, ("text",), None)
    assert "`data.sources`" in problems(text, "data.sources.7.ratio=3")[0]


# ---------------------------------------------------------------------------------------------- writing


TRICKY = ["1e-4", "null", "on", "012", "1:30", ".inf", "true", "~", "-", "? a", "#", "", "1.", "[a]", "a: b"]
any_path = st.none() | st.text(max_size=12)
recipes = st.builds(
    lambda name, paths, lr, steps, betas, freeze, sources, clip, compile: Recipe(
        name=name,
        data=DataRecipe(shards=paths[0], sources=tuple(SourceRecipe(dataset="d", shards=path) for path in sources)),
        clip=clip,
        init=InitRecipe(checkpoint=paths[1], tokenizer=paths[2]),
        freeze=tuple(freeze),
        train=TrainRecipe(lr=lr, steps=steps, betas=betas, compile=compile),
        run=RunRecipe(dir=paths[3]),
    ),
    name=st.from_regex(r"[a-z0-9.eE+-]{1,8}x", fullmatch=True),
    paths=st.tuples(any_path, any_path, any_path, any_path),
    lr=st.floats(1e-12, 1e6),
    steps=st.integers(1, 2**62),
    betas=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
    freeze=st.lists(st.text(max_size=8) | st.sampled_from(TRICKY), max_size=3),
    sources=st.lists(any_path, max_size=2),
    clip=st.sampled_from([ClipGeometry(), ClipGeometry(frames=32, chunks=1, tubes=TUBEVIT_TUBES), ClipGeometry(tubes=CHUNK_TUBES[:2])]),
    compile=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(recipe=recipes, explain=st.booleans())
def test_what_is_written_reads_back_equal(recipe: Recipe, explain: bool) -> None:
    assert parse_recipe(dump_recipe(recipe, explain=explain), "dump") == recipe


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
def test_any_text_survives_writing_and_reading(text: str) -> None:
    value = parse_yaml(f"key: {dump_value(text)}\n", "f").get("key")
    assert value is not None
    assert value.content == text


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab:,[]{}&*!#|>-? '\"\n\t%@`1.e", max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text, "f")


def test_explain_carries_the_help_of_every_key() -> None:
    written = dump_recipe(Recipe(name="x"), explain=True)
    assert "  lr: 5.0e-05  # peak learning rate" in written
    assert written.startswith("schema: 1")
    lines = [line.strip() for line in written.splitlines()]
    keys = [key for key in known_keys() if not key.startswith(("model.video_encoder.", "model.audio_encoder."))]  # null: not there
    assert all(any(line.startswith(f"{key.rpartition('.')[2]}:") for line in lines) for key in keys)
    assert len(lines) == len(keys)


@pytest.mark.parametrize(
    ("section", "wrong"), [(InitRecipe, {"vocab_size": 3}), (RatesRecipe, {"text": -1.0}), (RunRecipe, {"process_group_timeout_s": 0.0})]
)
def test_a_section_made_in_python_is_checked_as_one_from_a_file(section: type, wrong: dict) -> None:
    with pytest.raises(FieldError, match=next(iter(wrong))):
        section(**wrong)


def test_an_old_key_is_refused_with_its_name_of_today() -> None:
    text = HEAD + "train:\n  batch_clips: 4\n  augment: {stretch: 2}\ndata: {sound: false}\n"
    assert problems(text, "model.text.mlp=8") == [
        "'model.text.mlp=8': `model.text.mlp` was renamed to `model.text.mlp_dim`",
        "r.yaml:4: `train.batch_clips` was renamed to `train.global_batch_size`",
        "r.yaml:5: `train.augment.stretch` was renamed to `train.augment.max_chunk_repeats`",
        "r.yaml:6: `data.sound` was renamed to `data.audio`",
    ]


def test_old_keys_are_none_of_today_and_their_replacements_are() -> None:
    assert not {*RENAMED, *RETIRED} & set(known_keys())
    assert set(RENAMED.values()) <= set(known_keys())


def test_a_key_that_is_gone_says_what_to_do() -> None:
    assert len(RETIRED) > 2
    for key, what in RETIRED.items():
        assert problems(HEAD, f"{key}=1") == [f"'{key}=1': `{key}` is not a recipe key: {what}"]


# ---------------------------------------------------------------------------------------------- shipped recipes

EXPECTED = [
    "activitynet", "activitynet-512", "activitynet-public",
    "audioset", "captions", "demo", "demo-long", "demo-pretrain", "epic-sounds", "esc10", "esc50",
    "kinetics-sounds", "memorise", "msrvtt", "msvd", "nextqa-mc", "nextqa-oe", "paper-activitynet",
    "paper-activitynet-ttm", "paper-pretrain", "pretrain", "vggsound", "vggsound-public",
]  # fmt: skip


def test_the_shipped_recipes_are_these() -> None:
    assert list(shipped_recipes()) == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_each_shipped_recipe_loads_and_has_a_header_that_runs(name: str) -> None:
    path = find_recipe(name)
    recipe = load_recipe(name)
    header = recipe_header(path)
    assert recipe.name == name
    assert bytes_per_clip(recipe.clip) > 0
    for heading in ("Before:", "Run:", "Several GPUs:", "Override:"):
        assert heading in header, f"{path} lacks {heading}"
    words = re.findall(r"(?:^|\s)([a-z_]+(?:\.[a-z_]+)+)=(\S*)", header)
    assert words, f"{path} shows no override"
    known = set(known_keys())
    assert {key for key, _ in words} <= known
    load_recipe(name, [f"{key}={value}" for key, value in words])  # the shown overrides are right ones


def test_the_headers_that_name_a_figure_say_where_it_comes_from_and_that_we_did_not_run_it() -> None:
    with_figures = [name for name in EXPECTED if "Paper:" in recipe_header(find_recipe(name))]
    assert with_figures == [
        name for name in EXPECTED if not name.startswith("demo") and name not in ("captions", "memorise", "paper-pretrain", "pretrain")
    ]
    for name in with_figures:
        header = recipe_header(find_recipe(name))
        assert re.search(r"\[(QUOTED|NF|BLOG)\]", header), name
        assert "not run by us" in header.lower(), name


def test_geometry_of_the_shipped_recipes() -> None:
    sizes = {name: (load_recipe(name).clip.frames, load_recipe(name).clip.chunks) for name in EXPECTED}
    for name in ("msrvtt", "msvd", "activitynet", "nextqa-mc", "nextqa-oe"):
        assert sizes[name] == (128, 16)
        assert load_recipe(name).data.audio is False
        assert load_recipe(name, ["data.audio=true"]).data.audio is True
    for name in ("vggsound", "kinetics-sounds", "epic-sounds", "audioset"):
        assert sizes[name] == (32, 4)
        assert load_recipe(name).data.audio is True
    assert sizes["activitynet-512"] == (512, 64)
    assert load_recipe("activitynet-512").model == load_recipe("activitynet").model
    assert load_recipe("epic-sounds").clip.min_span_s == 10
    memorise = load_recipe("memorise")
    assert (memorise.clip.frames, memorise.clip.chunks, memorise.clip.size) == (32, 4, 112)
    assert (memorise.data.audio, memorise.eval.split, memorise.model.preset) == (True, "train", "demo")


def test_pretrain_and_captions_agree_on_the_shards() -> None:
    pretrain, captions = load_recipe("pretrain"), load_recipe("captions")
    for source in pretrain.data.training_sources():
        if source.dataset == captions.data.dataset:
            assert default_shards(source.dataset, pretrain.clip) == default_shards("captions", captions.clip)
            return
    pytest.fail("the pretrain recipe does not use the captions")


def test_a_name_that_is_wrong_lists_near_ones() -> None:
    with pytest.raises(RecipeError, match="did you mean activitynet or activitynet-512") as caught:
        find_recipe("activitynetqa")
    assert caught.value.hint == "run `mirasol recipes ls` to list them"
    with pytest.raises(RecipeError, match=r"the recipe file 'my\.yaml'"):
        find_recipe("my.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        find_recipe("/")


def test_a_recipe_file_is_read_from_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# header\n" + HEAD)
    assert load_recipe(str(tmp_path / "mine.yaml"), ["train.lr=1"]).train.lr == 1
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(str(tmp_path / "bad.yaml"))


def test_default_shards_follow_geometry_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIRASOL_DATA", raising=False)
    assert default_shards("msvd", ClipGeometry()) == Path("data/msvd/shards/128f-16c-224px")
    monkeypatch.setenv("MIRASOL_DATA", "/big")
    assert default_shards("msvd", ClipGeometry(views=2)) == Path("/big/msvd/shards") / ClipGeometry(views=2).folder_name


def test_every_key_has_a_help_text_or_a_plain_name() -> None:
    keys = known_keys()
    assert len(keys) == len(set(keys)) > 120
    assert {field.name for field in dataclasses.fields(Recipe)} <= set(keys)


def test_recipes_are_read_without_torch_numpy_or_typer() -> None:
    code = "import sys; from mirasol_cli.config.reader import load_recipe; load_recipe('demo'); "
    code += "print([m for m in ('torch', 'numpy', 'typer', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    assert done.stdout.strip() == "[]"
