"""Everything a run needs before its first step, fresh or resumed.

Weights, in this order: a checkpoint of the run itself (`--resume`), else `init.*` of the recipe, else random from `train.seed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mirasol_cli.batches.sources import OpenSource, open_sources, training_lines
from mirasol_cli.checkpoints.folder import (
    CHECKPOINT_SCHEMA,
    FROZEN,
    Score,
    best_of,
    checkpoints_in,
    is_complete,
    newest_valid,
    remove_unfinished,
    score_of,
    step_name,
    verify,
)
from mirasol_cli.checkpoints.import_plan import LoadReport
from mirasol_cli.checkpoints.load import checked_config, load_weights, model_tensors, read_model, read_tensors, stored_model
from mirasol_cli.checkpoints.parameter_names import first_names
from mirasol_cli.checkpoints.runs import RunFolder, resolve_checkpoint
from mirasol_cli.checkpoints.safetensors_folder import SafetensorsFolder
from mirasol_cli.checkpoints.saver import BackgroundSaver
from mirasol_cli.checkpoints.tensor_files import StoredTensors
from mirasol_cli.config.hub import download, download_all, folder_of, named_folders, not_downloaded
from mirasol_cli.config.reader import RUN_RECIPE, dump_recipe, parse_recipe
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import CheckpointError, DataError, RecipeError, UsageError
from mirasol_cli.fields import FieldError
from mirasol_cli.files import finite, read_json
from mirasol_cli.model.config import LoraConfig
from mirasol_cli.model.lora import kept_by_lora, merge_foreign
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.runtime.console import tell
from mirasol_cli.runtime.device import computes_in_bf16
from mirasol_cli.runtime.distributed import World, parallelise, prepare_blocks
from mirasol_cli.runtime.folder_lock import HeldLock, folder_lock
from mirasol_cli.text.tokenizer import TOKENIZER_FILES, Vocabulary, tokenizer_in, train_vocabulary
from mirasol_cli.training.checks import changed_data, cut_texts, empty_losses
from mirasol_cli.training.data import TrainingData
from mirasol_cli.training.display import check_loggers
from mirasol_cli.training.freezing import freeze
from mirasol_cli.training.optimizer import AveragedWeights, build_optimizer, load_optimizer_tensors, optimizer_tensors, rate_at
from mirasol_cli.training.resume import check_resumable

STATE_SCHEMA = 2


@dataclass
class Run:
    """A run in progress on one process."""

    recipe: Recipe
    stage: str
    world: World
    folder: RunFolder
    data: TrainingData
    vocabulary: Vocabulary
    weights: dict[str, float]  # of the losses that are trained, by name
    model: Mirasol
    runner: nn.Module  # what a step calls: the model, or DDP around it
    optimizer: torch.optim.AdamW
    ema: AveragedWeights | None
    bf16: bool
    step: int = 0  # optimizer steps done
    bad_steps: int = 0  # not-finite steps in a row
    best: Score | None = None
    clip_flops: int | None = None  # of a forward pass of one clip with the texts that it had when they were counted
    taught: set[str] = field(default_factory=set)  # losses that have met something to learn from
    told_empty: set[str] = field(default_factory=set)  # losses of which it was said that they have not
    diagnosed: int | None = None  # step after which the latents were looked at last
    told_slow_save: bool = False
    frozen_of: Path | None = None  # a checkpoint of the run that holds what it does not train
    lock: HeldLock | None = None  # of the run folder; the first process has it
    notes: list[str] = field(default_factory=list)
    saver: BackgroundSaver = field(init=False)

    def __post_init__(self) -> None:
        keep, patience_s = self.recipe.train.keep_checkpoints, self.recipe.run.stop_within_s
        self.saver = BackgroundSaver(self.folder.checkpoints, self.world, keep=keep, check=self._check_lock, patience_s=patience_s)

    def _check_lock(self) -> None:
        if self.lock is not None:
            self.lock.check()


@contextmanager
def started_run(recipe: Recipe, stage: str, world: World, *, resume: bool, accept_data: bool = False) -> Iterator[Run]:
    """The run, whose folder no other process writes to meanwhile.

    Raises:
        UsageError: another process is writing there.
        MirasolError: as `start_run`.
    """
    with ExitStack() as stack:
        lock = world.run_on_rank0(lambda: stack.enter_context(folder_lock(Path(recipe.run_dir), tell)))
        run = start_run(recipe, stage, world, resume=resume, accept_data=accept_data)
        run.lock = lock
        yield run


def start_run(recipe: Recipe, stage: str, world: World, *, resume: bool, accept_data: bool = False) -> Run:
    """Build the run; nothing is written before recipe, data and weights have been found good.

    Args:
        accept_data: go on although the shards hold other data than before; run.json says what has changed.

    Raises:
        UsageError: the run folder is in use and `resume` is false.
        RecipeError: the run cannot go on under this recipe.
        EnvironmentProblem: TensorBoard or W&B is asked for and not installed.
        ShardError, CheckpointError, DataError: what is needed is missing or damaged.
    """
    world.local_slice(recipe.train.global_batch_size)
    world.check_shard_size(recipe.train.shard_size)
    if resume:
        recipe = with_sizes_of_run(recipe)
    else:
        world.run_on_rank0(lambda: find_folders(recipe))
    folder = RunFolder(Path(recipe.run_dir), recipe, stage, world.size)
    check_loggers(recipe)
    notes: list[str] = []
    resumed = _find_resumed(folder, recipe, world, resume, notes)
    sources = open_sources(recipe)
    vocabulary = _vocabulary(recipe, sources, resumed, world, notes)
    data = TrainingData(recipe, sources, vocabulary)
    state = _resumed_state(resumed, recipe, notes)
    accepted = _compare_data(state, data, accept_data, notes) if resumed is not None else []
    notes += world.run_on_rank0(lambda: empty_losses(recipe, sources) + cut_texts(data)) or []

    torch.manual_seed(recipe.train.seed)  # the same first weights on every process
    model = build_model(recipe, vocabulary.size, world.device)
    reports = initialise(model, recipe, vocabulary) if resumed is None else []
    notes += [*map(str, reports), *freeze_parts(model, recipe)]
    if resumed is None:
        notes += frozen_at_random(model, recipe, reports)
    bf16 = computes_in_bf16(recipe.train.precision, world.device)
    prepare_blocks(model, activation_checkpointing=recipe.train.activation_checkpointing, compile=recipe.train.compile)
    runner = parallelise(model, world, recipe.train.parallel, bf16=bf16, shard_size=recipe.train.shard_size)
    if resumed is not None:  # sharded by now: each process reads its own rows
        load_weights(model, stored_model(resumed), str(resumed))
    optimizer = build_optimizer(model, recipe.train)
    ema = AveragedWeights(model, recipe.train.ema_decay) if recipe.train.ema_decay > 0 else None
    if resumed is not None:
        load_optimizer_tensors(optimizer, StoredTensors(resumed, "optimizer"), str(resumed / "optimizer.safetensors"))
        if ema is not None:
            ema.load(StoredTensors(resumed, "ema"), str(resumed / "ema.safetensors"))
    run = Run(
        recipe, stage, world, folder, data, vocabulary, recipe.loss.weights, model, runner, optimizer, ema, bf16,
        step=state["step"], bad_steps=state["bad_steps"], notes=notes, frozen_of=resumed,
    )  # fmt: skip
    best = best_of(checkpoints_in(folder.checkpoints))
    run.best = score_of(best) if best else None
    world.run_on_rank0(lambda: folder.begin(dump_recipe(recipe), run.step, accepted))
    return run


def build_model(recipe: Recipe, vocab_size: int, device: torch.device | str) -> Mirasol:
    """The model with random weights on `device`. Raises RecipeError where its sections do not go together."""
    try:
        with torch.device(device):
            return Mirasol(recipe.model, recipe.clip, vocab_size, recipe.loss.weights)
    except FieldError as error:
        raise RecipeError([f"the sections model and clip are incompatible: {error.message}"]) from error


# ------------------------------------------------------------------------------------------------------------- resuming


def with_sizes_of_run(recipe: Recipe) -> Recipe:
    """The recipe with the sizes of the run that it resumes, where the model folders that gave them (`init.*`) are gone: a run needs
    them for its first step only."""
    path = Path(recipe.run_dir) / RUN_RECIPE
    named = (recipe.init.video_encoder, recipe.init.audio_encoder, recipe.init.text_decoder)
    if not path.is_file() or all(name is None or folder_of(name).is_dir() for name in named):
        return recipe
    before = parse_recipe(path.read_text(encoding="utf-8"), str(path))
    if before.init != recipe.init:
        return recipe
    return replace(recipe, model=before.model, clip=replace(recipe.clip, audio=before.clip.audio))


def _find_resumed(folder: RunFolder, recipe: Recipe, world: World, resume: bool, notes: list[str]) -> Path | None:
    """The verified checkpoint to go on from, the same on every process."""

    def find() -> Path | None:
        if not resume:
            folder.check_unused()
            return None
        for name in remove_unfinished(folder.checkpoints):
            notes.append(f"removed '{name}', left unfinished by a killed process")
        newest = newest_valid(folder.checkpoints)
        if newest is not None:
            path = newest / "recipe.yaml"
            check_resumable(parse_recipe(path.read_text(encoding="utf-8"), str(path)), recipe)
            stage = read_json(newest / "state.json").get("stage")
            if stage != folder.stage:
                raise CheckpointError(f"'{folder.path}' is a {stage} run", f"resume it with `mirasol {stage}`, or choose another run.dir")
        return newest

    newest = world.run_on_rank0(find)
    number = int(newest.name.removeprefix("step-")) if newest else -1
    number = int(world.sum([number if world.is_main else 0])[0])
    if number < 0:
        if resume:
            notes.append(f"no checkpoint in '{folder.checkpoints}' yet: starting from step 0")
        return None
    notes.append(f"resuming after step {number}")
    return folder.checkpoints / step_name(number)


def _resumed_state(resumed: Path | None, recipe: Recipe, notes: list[str]) -> dict[str, Any]:
    if resumed is None:
        return {"step": 0, "bad_steps": 0}
    state: dict[str, Any] = read_json(resumed / "state.json")
    if state.get("schema") != STATE_SCHEMA:
        raise CheckpointError(f"'{resumed / 'state.json'}' has schema {state.get('schema')!r}", "use a matching mirasol")
    before = state["steps"]
    if recipe.train.steps > before:
        old, new = (recipe.train.lr * rate_at(state["step"], replace(recipe.train, steps=n)) for n in (before, recipe.train.steps))
        notes.append(
            f"train.steps is {recipe.train.steps} now, {before} before: from step {state['step'] + 1} on, the learning rate is that of "
            f"a run of {recipe.train.steps} steps ({new:.3g} there instead of {old:.3g})"
        )
    return state


def _compare_data(state: Mapping[str, Any], data: TrainingData, accept: bool, notes: list[str]) -> list[str]:
    """What has changed in the data since the checkpoint. Raises CheckpointError if that was not accepted."""
    changes = changed_data(state["data"], data.fingerprint)
    if changes and not accept:
        raise CheckpointError(
            f"the data differ from those the run was trained on: {' | '.join(changes)}",
            "restore the shards; or add --accept-data if they were repaired or retried on purpose; or start another run "
            "(run.dir=...) with init.checkpoint set to this one",
        )
    notes += [f"continuing with changed data (--accept-data): {change}" for change in changes]
    return changes


# --------------------------------------------------------------------------------------------------------- a fresh start


def _vocabulary(recipe: Recipe, sources: list[OpenSource], resumed: Path | None, world: World, notes: list[str]) -> Vocabulary:
    """The checkpoint's own; else `init.tokenizer`, `init.checkpoint`'s, `init.text_decoder`'s, else trained on the training texts."""
    if resumed is not None:
        return Vocabulary.from_file(tokenizer_in(resumed) or resumed / TOKENIZER_FILES[0])
    given = given_tokenizer(recipe)
    if given is not None:
        return Vocabulary.from_file(given)

    # Trained once and handed out, since nothing may depend on every machine having the same SentencePiece.
    made = world.run_on_rank0(lambda: train_vocabulary(training_lines(sources), recipe.init.vocab_size))
    vocabulary = Vocabulary(world.broadcast_bytes(made))
    notes.append(f"trained a vocabulary of {vocabulary.size} pieces on the training texts")
    return vocabulary


def given_tokenizer(recipe: Recipe) -> Path | None:
    """The tokenizer file that the recipe's `init` leads to, or None: there is none, or it is not downloaded yet (`not_downloaded`).

    Raises DataError if it is named but missing, CheckpointError if so is the text decoder.
    """
    init = recipe.init
    if init.tokenizer is not None:
        named, key = folder_of(init.tokenizer), "init.tokenizer"
    elif init.checkpoint is not None:
        named, key = resolve_checkpoint(init.checkpoint), "init.checkpoint"
    elif init.text_decoder is not None:
        named, key = folder_of(init.text_decoder), "init.text_decoder"
    else:
        return None
    path = named if key == "init.tokenizer" and named.is_file() else tokenizer_in(named)
    if path is None and key.removeprefix("init.") in not_downloaded(init):
        return None
    if path is None and key == "init.text_decoder":
        SafetensorsFolder(named)  # where it is no model folder at all, this says so
    if path is None:
        expected = named if key == "init.tokenizer" and not named.is_dir() else f"{named}/{' or '.join(TOKENIZER_FILES)}"
        raise DataError(f"{key}: there is no tokenizer '{expected}'", "give a SentencePiece model or a tokenizer.json with init.tokenizer")
    if init.text_decoder is not None and key != "init.text_decoder":
        decoder = folder_of(init.text_decoder)
        theirs = tokenizer_in(decoder)
        known = [file.read_bytes() for name in TOKENIZER_FILES if (file := decoder / name).is_file()]
        if theirs is not None and path.read_bytes() not in known:
            raise UsageError(
                f"{key} leads to '{path}', which is another vocabulary than the one that init.text_decoder was trained with, '{theirs}'",
                f"remove {key} or init.text_decoder",
            )
    return path


def check_init(recipe: Recipe) -> None:
    """Raises UsageError where two of the recipe's `init` would fill the same part of the model."""
    if recipe.init.video_encoder is not None and recipe.init.audio_encoder is not None and recipe.model.encoder.share:
        raise UsageError(
            "init.video_encoder and init.audio_encoder would both fill the encoder that audio and video share",
            "set model.encoder.share=false, or give only one of them",
        )


def find_folders(recipe: Recipe) -> None:
    """Download what `init` names of the hub, and open every model folder, before anything else is done.

    Raises CheckpointError where one is missing or damaged, and as `download`.
    """
    download_all(recipe.init)
    for key, name in named_folders(recipe.init).items():
        if key != "tokenizer":
            SafetensorsFolder(folder_of(name))


def check_folders(model: Mirasol, recipe: Recipe) -> None:
    """Whether the model folders that `init` names fit, as far as they are here, without reading weights; `model` may have no memory.

    Raises CheckpointError: one is missing, incomplete, of another family or of other sizes.
    """
    from mirasol_cli.checkpoints.import_encoders import check_audio_encoder, check_video_encoder
    from mirasol_cli.checkpoints.import_text import check_text_decoder

    checks = {"video_encoder": check_video_encoder, "audio_encoder": check_audio_encoder, "text_decoder": check_text_decoder}
    named, elsewhere = named_folders(recipe.init), not_downloaded(recipe.init)
    for key in checks.keys() & named.keys() - elsewhere.keys():
        checks[key](model, folder_of(named[key]))


def initialise(model: Mirasol, recipe: Recipe, vocabulary: Vocabulary) -> list[LoadReport]:
    """Fill the parts of the model that `init` names, later ones over earlier ones; returns a report of each source."""
    from mirasol_cli.checkpoints.import_encoders import load_audio_encoder, load_video_encoder
    from mirasol_cli.checkpoints.import_text import load_text_decoder

    check_init(recipe)
    init, reports = recipe.init, list[LoadReport]()
    if init.checkpoint is not None:
        reports.append(load_fitting(model, resolve_checkpoint(init.checkpoint), vocabulary))
    if init.video_encoder is not None:
        reports.append(load_video_encoder(model, download(init.video_encoder)))
    if init.audio_encoder is not None:
        reports.append(load_audio_encoder(model, download(init.audio_encoder)))
    if init.text_decoder is not None:
        reports.append(load_text_decoder(model, download(init.text_decoder)))
    return reports


PER_PIECE = ("text.embed_tokens.", "text.lm_head.")
"""Tensors with a row for every piece of the vocabulary."""


def load_fitting(model: Mirasol, checkpoint: Path, vocabulary: Vocabulary) -> LoadReport:
    """Copy every tensor of the same name and shape (averaged weights where there are any); says what stayed random.

    What has a row per piece is left out if the checkpoint's vocabulary is not `vocabulary`: equal shapes mean nothing there.

    Raises:
        CheckpointError: it is damaged, or nothing of it fits.
    """
    verify(checkpoint, ("model", FROZEN, "ema"))
    config = checked_config(checkpoint) if (checkpoint / "config.json").is_file() else {}
    tensors = {**read_model(checkpoint), **(read_tensors(checkpoint, "ema") or {})}
    merged = merge_foreign(tensors, LoraConfig.from_plain(config.get("model", {}).get("lora", {})), model)
    own = model_tensors(model)
    theirs = tokenizer_in(checkpoint)
    foreign = PER_PIECE if theirs is not None and theirs.read_bytes() != vocabulary.model_bytes else ()
    fitting = {name for name in own if name in tensors and tensors[name].shape == own[name].shape and not name.startswith(foreign)}
    learned = {name for name, _ in model.named_parameters()}
    if not fitting & learned:
        raise CheckpointError(f"init.checkpoint: no tensor of '{checkpoint}' fits this model", "use the model section of its recipe")
    with torch.no_grad():
        for name in fitting:
            own[name].copy_(tensors[name])
    fresh, unused = sorted(own.keys() - fitting), sorted(tensors.keys() - fitting)
    said = ["its embeddings are not used: its vocabulary differs from this run's"] if foreign else []
    said += [f"LoRA's products of {merged} maps are merged into their weights"] if merged else []
    return LoadReport(str(checkpoint), tuple(sorted(fitting)), (), tuple(fresh), tuple(unused), "; ".join(said))


def freeze_parts(model: Mirasol, recipe: Recipe) -> list[str]:
    """Apply `freeze`, and freeze what no loss reaches, so that every trainable parameter gets a gradient on every process."""
    notes = []
    kept = kept_by_lora(model, recipe.model.lora)
    if kept:
        parameters = dict(model.named_parameters())
        for name in kept:
            parameters[name].requires_grad_(False)
        learned = sum(p.numel() for name, p in parameters.items() if name.endswith((".lora_a", ".lora_b")))
        notes.append(
            f"LoRA of rank {recipe.model.lora.rank}: {learned:,} parameters are trained; the {sum(parameters[n].numel() for n in kept):,} "
            f"of {', '.join(recipe.model.lora.parts)}, are frozen"
        )
    if recipe.freeze:
        notes.append(str(freeze(model, recipe.freeze)))
    for name, there in recipe.data.modalities.items():
        if not there:
            apart = [] if recipe.model.encoder.share else [f"{name}_encoder"]
            modules = [model.get_submodule(part) for part in (f"{name}_tokens", *apart)]
            count = sum(len(list(module.requires_grad_(False).parameters())) for module in modules)
            notes.append(f"{count} tensors used only for {name} are not trained, because data.{name} is false")
    if not any(OBJECTIVES[name].reads_text for name in recipe.loss.weights):
        unread = list(model.text.parameters())
        model.text.requires_grad_(False)
        notes.append(f"{len(unread)} tensors of the text decoder are not trained, because loss.text is 0")
    return notes


def frozen_at_random(model: Mirasol, recipe: Recipe, reports: Iterable[LoadReport]) -> list[str]:
    """A sentence if the recipe freezes what no source has filled: it would stay random."""
    filled = {name.partition(" (")[0] for report in reports for name in (*report.loaded, *report.resized)}
    unread = tuple(f"{modality}_" for modality, there in recipe.data.modalities.items() if not there)
    chosen = kept_by_lora(model, recipe.model.lora) | set(freeze(model, recipe.freeze).names)
    random = [name for name, _ in model.named_parameters() if name in chosen - filled and not name.startswith(unread)]
    if not random:
        return []
    return [f"frozen with random values, because nothing in `init` provides them: {first_names(random)}"]


# --------------------------------------------------------------------------------------------------------------- saving


def save_run(run: Run, validation: Mapping[str, float] | None = None) -> None:
    """Begin to save the step just done, and rotate when that is done (`BackgroundSaver`). All processes call this together."""
    run.saver.wait()
    frozen = _frozen_once(run)
    shared = run.world.run_on_rank0(lambda: _shares(run.frozen_of, frozen)) if frozen else False
    frozen_of = run.frozen_of if frozen and run.world.sum([float(bool(shared))])[0] else None
    everything = model_tensors(run.model)
    tensors = {"model": {name: tensor for name, tensor in everything.items() if name not in frozen}}
    tensors["optimizer"] = optimizer_tensors(run.optimizer)
    if run.ema is not None:
        tensors["ema"] = run.ema.values
    if frozen and frozen_of is None:
        tensors[FROZEN] = {name: everything[name] for name in frozen}
    run.saver.start(run.step, small_files(run, validation), tensors, frozen_of)
    run.frozen_of = run.folder.checkpoints / step_name(run.step)


def _frozen_once(run: Run) -> list[str]:
    """Parameters that the recipe freezes: they never change, so that all checkpoints of the run share one copy of them."""
    if not run.recipe.freeze and not run.recipe.model.lora.parts:
        return []
    return [name for name, parameter in run.model.named_parameters() if not parameter.requires_grad]


def _shares(checkpoint: Path | None, frozen: list[str]) -> bool:
    """Whether the checkpoint holds just these tensors as its frozen ones."""
    return checkpoint is not None and is_complete(checkpoint) and set(StoredTensors(checkpoint, FROZEN)) == set(frozen)


def small_files(run: Run, validation: Mapping[str, float] | None) -> dict[str, bytes]:
    """The files beside the tensors; no clock time in them, so that equal runs write equal bytes."""
    config = {
        "schema": CHECKPOINT_SCHEMA,
        "clip": run.recipe.clip.to_plain(),
        "model": run.recipe.to_plain()["model"],
        "losses": list(run.weights),
        "vocab_size": run.vocabulary.size,
        "usual_clip_s": run.data.usual_clip_s,
    }
    state = {
        "schema": STATE_SCHEMA, "stage": run.stage, "step": run.step, "steps": run.recipe.train.steps, "bad_steps": run.bad_steps,
        "data": run.data.fingerprint, "validation": finite(validation),
    }  # fmt: skip
    return {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "recipe.yaml": dump_recipe(run.recipe).encode(),
        **run.vocabulary.files,
        "state.json": (json.dumps(state, indent=2) + "\n").encode(),
    }
