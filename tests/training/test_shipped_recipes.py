"""Every shipped recipe takes a real step on its own data set, shrunk by overrides alone.

The annotation is read as published by the data set's own reader, its clips lie in the default shard folder; only the media
are random. Frames and chunks, mixture, losses, kinds of layers and the way of training stay those of the recipe.
"""

import json
import math
from pathlib import Path

import pytest

from mirasol_cli.checkpoints import load, runs
from mirasol_cli.config.paths import default_shards, shipped_recipes, source_shards
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.datasets.example import DatasetOptions, Split
from mirasol_cli.datasets.manifest import read_manifest
from mirasol_cli.datasets.registry import open_dataset
from mirasol_cli.datasets.splits import share_clips
from mirasol_cli.errors import RecipeError
from mirasol_cli.training.dry_run import dry_run
from mirasol_cli.training.loop import train
from tests import synthetic
from tests.checkpoints.pretrained import imported_transformers, published_config, save_encoder, save_text
from tests.datasets.excerpts import write
from tests.text.test_json_tokenizer import save as save_tokenizer

PRETRAINED = ("pretrain", "paper-pretrain", "captions", "demo-pretrain")
"""Recipes of the first stage; all others are finetuned."""

SHRUNK = (
    "clip.size=32",
    "clip.tubes=[{kernel: [2, 8, 8], stride: [4, 16, 16], space_to_depth: [2, 1, 1]}, {kernel: [1, 16, 16], stride: [4, 16, 16]}]",
    "clip.audio.n_mels=16", "clip.audio.columns=16",
    "model.encoder.width=24", "model.encoder.layers=1", "model.encoder.heads=2", "model.encoder.mlp_dim=32",
    "model.combiner.width=24", "model.combiner.layers=1", "model.combiner.heads=2", "model.combiner.mlp_dim=32",
    "model.combiner.num_outputs=2", "model.combiner.memory_tokens=4",
    "model.latent.width=24", "model.latent.layers=1", "model.latent.heads=2", "model.latent.mlp_dim=32",
    "model.reconstruction.width=12", "model.reconstruction.layers=1", "model.reconstruction.heads=2", "model.reconstruction.mlp_dim=16",
    "model.text.width=24", "model.text.layers=2", "model.text.heads=2", "model.text.kv_heads=2", "model.text.mlp_dim=32",
    "model.text.cross_attention_every=2",
    "init.vocab_size=400", "train.global_batch_size=4", "train.steps=1", "train.warmup_steps=0",
)  # fmt: skip

MAPS = {"video_tokens": "maps.0.weight", "audio_tokens": "map.weight"}

NEXT = "video,frame_count,width,height,question,answer,qid,type"
EPIC = "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,description,class,class_id"
QUESTIONS = [
    {"answer": answer, "id": n, "question": f"what does the {n} do?", "video_id": n // 2}
    for n, answer in enumerate(["run", "cook", "sing", "NA"])
]
ANNOTATIONS: dict[str, dict[str, str]] = {
    "activitynet": {
        "train_q.json": json.dumps([{"video_name": f"v{n // 2}", "question": f"is it {n}", "question_id": f"v{n}"} for n in range(6)]),
        "train_a.json": json.dumps([{"answer": "yes", "type": n, "question_id": f"v{n}"} for n in range(6)]),
    },
    "msrvtt": {"train_qa.json": json.dumps([{**row, "category_id": 1} for row in QUESTIONS])},
    "msvd": {"train_qa.json": json.dumps(QUESTIONS)},
    "nextqa": {
        "mc/train.csv": f"{NEXT},a0,a1,a2,a3,a4\n12,9,6,4,why,1,0,CW,sit,run,cry,eat,go\n13,9,6,4,how,4,1,CH,a,b,c,d,by car\n",
        "oe/train.csv": f"{NEXT}\n12,9,6,4,why,to cry,0,CW\n34,9,6,4,is it,yes,0,DB\n",
    },
    "vggsound": {"vggsound.csv": "".join(f'id{n},{n},"{label}",train\n' for n, label in enumerate(("singing", "people marching", "dog")))},
    "kinetics-sounds": {"train.csv": "label,youtube_id,time_start,time_end,split,is_cc\nsinging,a,0,10,train,0\nbowling,b,5,15,train,0\n"},
    "epic-sounds": {
        "EPIC_Sounds_train.csv": f"{EPIC}\na0,P1,P01_01,0:00:40.0,0:00:52.0,0,0,x,zip,42\na1,P1,P01_01,0:00:20.0,0:00:21.0,0,0,x,tap,5\n"
    },
    "audioset": {
        "balanced_train_segments.csv": '# x\n--id, 30.000, 40.000, "/m/1,/m/2"\n--full, 20.000, 30.000, "/m/1"\n',
        "class_labels_indices.csv": 'index,mid,display_name\n0,/m/1,"Male speech, man speaking"\n1,/m/2,Dog\n',
    },
    "esc50": {
        "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n"
        + "".join(
            f"{fold}-{fold}{n}-A-{n}.wav,{fold},{n},{label},True,{fold}{n},A\n"
            for fold in range(1, 6)
            for n, label in enumerate(("dog", "rain"))
        )
    },
    "captions": {
        "train_val_videodatainfo.json": json.dumps(
            {
                "videos": [{"video_id": f"video{n}", "split": "train", "id": n} for n in range(3)],
                "sentences": [{"sen_id": n, "video_id": f"video{n}", "caption": f"a dog runs {n} times"} for n in range(3)],
            }
        )
    },
}
MANIFEST = [{"video": f"{n}.mp4", "caption": f"dog {n}", "question": "what runs?", "answer": "a dog"} for n in range(3)]


def lines(*keys: str) -> str:
    """The manifest with `video` and these keys alone."""
    return "\n".join(json.dumps({key: row[key] for key in ("video", *keys)}) for row in MANIFEST)


RENDERED = {f"{split}.jsonl": lines("question", "answer") for split in ("train", "val", "test")}
RENDERED |= {f"{split}-captions.jsonl": lines("caption") for split in ("train", "val", "test")}


def train_split(dataset: str, task: str, name: str, folder: Path) -> Split:
    """The training texts of one task, and the clips that all tasks of the split share, as `prepare` sees them."""
    if dataset == "manifest":
        splits = read_manifest(write(folder, {"my.jsonl": lines("caption", "question", "answer")}) / "my.jsonl")
    else:
        splits = open_dataset(dataset).read(write(folder / dataset, dict(ANNOTATIONS.get(dataset, RENDERED))), task, DatasetOptions())
    return next(split for split in share_clips(splits) if (split.name, split.task) == (name, task))


def step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[dict, Path]:
    """One step of the recipe under `words`: its log line and its run folder."""
    monkeypatch.setenv("MIRASOL_DATA", str(tmp_path / "data"))
    recipe = load_recipe(name, [*SHRUNK, f"run.dir={tmp_path}/run", *words])
    for source in recipe.data.training_sources():
        split = train_split(source.dataset, source.task, source.split, tmp_path / "annotations")
        path = source_shards(source, recipe.clip)
        assert path == default_shards(source.dataset, recipe.clip)
        synthetic.write_texts(path / source.split, split, recipe.clip)
    stage = "pretrain" if name in PRETRAINED else "finetune"
    result = train(recipe, stage=stage, device="cpu", threads=1)
    assert result["step"] == 1
    return result["metrics"], tmp_path / "run"


FROM_PUBLIC_WEIGHTS = ("activitynet-public", "vggsound-public")


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name not in FROM_PUBLIC_WEIGHTS])
def test_each_recipe_takes_one_real_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = load_recipe(name)
    line, run = step(name, tmp_path, monkeypatch)
    assert math.isfinite(line["loss"])
    assert line["gradient_norm"] > 0
    assert line["questions_per_s"] > 0
    weights = {part: weight for part, weight in vars(shipped.loss).items() if part != "label_smoothing" and weight}
    assert line["loss"] == pytest.approx(sum(weight * line[f"loss_{part}"] for part, weight in weights.items()), rel=1e-5)
    loaded = load.load_model(runs.resolve_checkpoint("latest", run))
    assert (loaded.geometry.frames, loaded.geometry.chunks) == (shipped.clip.frames, shipped.clip.chunks)
    assert loaded.recipe.model.combiner.kind == shipped.model.combiner.kind
    assert loaded.recipe.data == shipped.data
    moments = load.read_tensors(runs.resolve_checkpoint("latest", run), "optimizer")
    assert moments is not None
    reached = {key.removeprefix("exp_avg/") for key, value in moments.items() if key.startswith("exp_avg/") and bool(value.any())}
    parts = {parameter.split(".")[0] for parameter in reached}
    assert {"encoder", "combiner", "latent", "objectives", "text"} <= parts
    assert ("video_tokens" in {p.split(".")[0] for p in reached if p != "video_tokens.absent"}) == shipped.data.video
    assert ("audio_tokens" in {p.split(".")[0] for p in reached if p != "audio_tokens.absent"}) == shipped.data.audio


@pytest.mark.parametrize("name", FROM_PUBLIC_WEIGHTS)
def test_the_sizes_in_a_recipe_are_those_of_the_models_that_it_names(name: str, tmp_path: Path) -> None:
    """So that nothing changes when they are downloaded."""
    written, folders = load_recipe(name), {}
    with imported_transformers() as hf:
        for key in ("video_encoder", "audio_encoder", "text_decoder"):
            folders[key] = tmp_path / key
            published_config(hf, getattr(written.init, key)).save_pretrained(folders[key])
    found = load_recipe(name, [f"init.{key}={path}" for key, path in folders.items()])
    assert (found.model, found.clip) == (written.model, written.clip)


@pytest.mark.parametrize("name", FROM_PUBLIC_WEIGHTS)
def test_a_dry_run_of_public_weights_needs_no_download_and_estimates_less_than_24_gb(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRASOL_DATA", str(tmp_path))
    monkeypatch.setattr("mirasol_cli.config.hub.folder_of", Path)  # as on a machine where nothing was downloaded
    lines = list[str]()
    found = dry_run(load_recipe(name, ["train.precision=bf16"]), stage="finetune", device="cpu", say=lines.append)
    assert found["memory_bytes"] < 16 * 2**30  # half of it again would still fit
    assert found["parameters"]["trainable"] < 0.15 * found["parameters"]["total"]
    assert sum("is not downloaded yet: these are the sizes in the recipe" in line for line in lines) == 3
    assert "vocabulary: 151,665 pieces (as init.vocab_size says, until init.text_decoder is here)" in lines


@pytest.mark.parametrize(
    ("name", "audio", "frozen"),
    [
        ("vggsound-public", "ast", {"video_encoder", "audio_encoder", "text"}),
        ("activitynet-public", "whisper", {"video_encoder", "audio_encoder", "audio_tokens", "text"}),
    ],
)
def test_from_public_weights(
    name: str, audio: str, frozen: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step from folders of the families that the recipe names, and of small sizes, which go before the recipe's own."""
    init = {key: tmp_path / key for key in ("video_encoder", "audio_encoder", "text_decoder")}
    with imported_transformers() as hf:
        save_encoder(hf, init["video_encoder"], "siglip", image_size=32)
        sizes = {"num_mel_bins": 16} | ({"max_source_positions": 8, "d_model": 16} if audio == "whisper" else {"max_length": 26})
        save_encoder(hf, init["audio_encoder"], audio, **sizes)
        pieces = json.loads(save_tokenizer(init["text_decoder"], "qwen").read_text())["model"]["vocab"]
        save_text(hf, init["text_decoder"], "qwen-2", vocab_size=len(pieces) + 3)
    shrunk = [word for word in SHRUNK if not word.startswith(("model.encoder.", "model.text.", "clip.audio.n_mels", "init."))]
    words = [*shrunk, *(f"init.{key}={path}" for key, path in init.items()), "clip.audio.columns=16", f"run.dir={tmp_path}/run"]
    monkeypatch.setenv("MIRASOL_DATA", str(tmp_path / "data"))
    recipe = load_recipe(name, words)
    (source,) = recipe.data.training_sources()
    split = train_split(source.dataset, source.task, source.split, tmp_path / "annotations")
    synthetic.write_texts(source_shards(source, recipe.clip) / source.split, split, recipe.clip)
    result = train(recipe, stage="finetune", device="cpu", threads=1)
    assert math.isfinite(result["metrics"]["loss"])
    latest = runs.resolve_checkpoint("latest", tmp_path / "run")
    held, still = load.read_tensors(latest, "model"), load.read_tensors(latest, "frozen")
    assert held is not None
    assert still is not None
    assert {key.split(".")[0] for key in still} == frozen
    assert ("audio_encoder.output_proj.weight" in held) == (audio == "whisper")  # as wide as the video's, or not
    adapted = {key.split(".")[0] for key in held if key.endswith("lora_b")}
    assert adapted == frozen - ({"audio_encoder", "audio_tokens"} if audio == "whisper" else set())
    said = capsys.readouterr().err
    assert "random values" not in said
    assert load.load_model(latest).recipe.model.text.cross_attention_every == 4


def test_pretraining_on_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second source beside the captions, three to one, as the recipe's header says."""
    sources = "[{dataset: captions, task: caption, ratio: 3}, {dataset: nextqa, task: oe, ratio: 1}]"
    line, run = step("pretrain", tmp_path, monkeypatch, f"data.sources={sources}")
    assert math.isfinite(line["loss"])
    recipe = load.load_model(runs.resolve_checkpoint("latest", run)).recipe
    assert [source.ratio for source in recipe.data.training_sources()] == [3, 1]


def test_the_questions_come_without_sound_and_with_it_by_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, words in enumerate(([], ["data.audio=true"])):
        _, run = step("msrvtt", tmp_path / str(number), monkeypatch, *words)
        moments = load.read_tensors(runs.resolve_checkpoint("latest", run), "optimizer")
        assert moments is not None
        assert ("exp_avg/audio_tokens.map.weight" in moments) == bool(words)  # what is left out is frozen


@pytest.mark.parametrize("name", ["vggsound", "epic-sounds", "kinetics-sounds", "audioset"])
@pytest.mark.parametrize(("left_out", "tokens"), [("video", "video_tokens"), ("audio", "audio_tokens")])
def test_one_modality_by_one_key(name: str, left_out: str, tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run = step(name, tmp_path, monkeypatch, f"data.{left_out}=false")
    moments = load.read_tensors(runs.resolve_checkpoint("latest", run), "optimizer")
    assert moments is not None
    reached = {part for part in ("video_tokens", "audio_tokens") if f"exp_avg/{part}.{MAPS[part]}" in moments}
    assert reached == {"video_tokens", "audio_tokens"} - {tokens}
    assert f"data.video=false run.dir=runs/{name}-audio" in shipped_recipes()[name].read_text()  # its comment says so


@pytest.mark.parametrize("name", ["esc10", "esc50"])
def test_sets_of_sound_alone_have_nothing_to_see(name: str) -> None:
    assert load_recipe(name).data.modalities == {"video": False, "audio": True}
    with pytest.raises(RecipeError, match=r"data\.audio and data\.video are both false; there is nothing to see or hear"):
        load_recipe(name, ["data.audio=false"])


def test_every_fold_trains_on_the_other_four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("esc10", ["data.fold=3"])
    assert [source.split for source in recipe.data.training_sources()] == ["fold1", "fold2", "fold4", "fold5"]
    assert (recipe.eval_split, recipe.run_dir) == ("fold3", "runs/esc10-fold3")
    assert load_recipe("esc10", ["data.fold=3", "eval.split=fold1", "run.dir=runs/x"]).eval_split == "fold1"
    assert load_recipe("esc10").clip == load_recipe("esc50").clip  # one `prepare` serves both
    step("esc10", tmp_path, monkeypatch, "data.fold=3")
    trained = load.load_model(runs.resolve_checkpoint("latest", tmp_path / "run")).recipe
    assert trained.data.fold == 3
