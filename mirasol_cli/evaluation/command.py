"""What `mirasol eval` does: predictions of a checkpoint (or of a file), scored by the benchmark's protocol, with controls and a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirasol_cli.checkpoints.runs import checkpoint_folder
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import CheckpointError, DataError, UsageError
from mirasol_cli.evaluation.controls import CONTROLS, RENAMED, applicable
from mirasol_cli.evaluation.cut_texts import cut_notes
from mirasol_cli.evaluation.folders import announce_other_predictions, clear_other_results, evaluation_folder
from mirasol_cli.evaluation.job import EvaluationJob, Options
from mirasol_cli.evaluation.predict import PREDICTIONS, Plan, Progress, finish_predictions, is_finished, read_finished, write_predictions
from mirasol_cli.evaluation.protocols import score_row
from mirasol_cli.evaluation.results import align_to_questions, control_summary, question_ids, results_of
from mirasol_cli.evaluation.submissions import read_predictions, write_submission
from mirasol_cli.files import sha256_of, write_json, write_jsonl
from mirasol_cli.runtime.folder_lock import folder_lock

if TYPE_CHECKING:
    from mirasol_cli.checkpoints.load import LoadedModel
    from mirasol_cli.inference.answerer import Answerer
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.runtime.distributed import World
    from mirasol_cli.shards.reader import ShardSplit


Say = Callable[[str], None]


def evaluate(recipe: Recipe, options: Options, *, say: Say = lambda _: None, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate and write `<run>/eval/<split>/` = results.json, predictions.jsonl, report.html (and submission.json).

    The folder's name also says what is not the run's best checkpoint, task and decoding, or not all questions (`evaluation_folder`).
    Each control gets its own subfolder with results.json and predictions.jsonl. Returns what results.json holds;
    in the further processes of a distributed run nothing.

    Raises:
        UsageError: an unknown control, or another evaluation is writing to the same folder.
        ShardError, CheckpointError, DataError: shards, checkpoint or predictions are missing, damaged or do not fit the recipe.
    """
    unknown = [control for control in options.controls if control not in (*CONTROLS, "all")]
    if unknown:
        now = RENAMED.get(unknown[0])
        hint = f"it was renamed to {now}" if now else f"use one of {', '.join(CONTROLS)}, or all"
        raise UsageError(f"unknown control '{unknown[0]}'", hint)
    job = EvaluationJob.of(recipe, options)
    if options.predictions:
        return _rescore(job, options, say)
    return _run(job, options, say, progress)


# ------------------------------------------------------------------------------------------------------------ with a model


def _run(job: EvaluationJob, options: Options, say: Say, progress: Progress | None) -> dict[str, Any]:
    from mirasol_cli.runtime.device import resolve_device
    from mirasol_cli.runtime.distributed import joined_world

    recipe = job.recipe
    split = job.open_split()
    path = checkpoint_folder(recipe, options.checkpoint)
    job = replace(job, folder=evaluation_folder(job, options, path, _best_of_run(recipe)))
    with ExitStack() as stack:
        with joined_world(resolve_device(options.device), recipe.run.process_group_timeout_s) as world:
            lock = world.run_on_rank0(lambda: stack.enter_context(folder_lock(job.folder, say)))
            loaded, answers = _answer_all(job, split, path, options, world, say, progress)
        if lock is None:  # the first process has it, and scores
            return {}
        lock.check()
        return _score(job, split, loaded, answers, options, say)


@dataclass(frozen=True)
class Answers:
    """The rows of predictions with everything shown, and those of every control."""

    plan: Plan
    rows: list[dict]
    controls: dict[str, list[dict]]
    notes: list[str]


def _answer_all(
    job: EvaluationJob, split: ShardSplit, path: Path, options: Options, world: World, say: Say, progress: Progress | None
) -> tuple[LoadedModel, Answers]:
    """Load the checkpoint and answer the split, as it is and with every control. All processes do this together."""
    from mirasol_cli.checkpoints.load import load_model
    from mirasol_cli.inference.answerer import Answerer

    recipe = job.recipe
    loaded = load_model(path)
    model = for_geometry(loaded, recipe)
    chosen = applicable(options.controls, model.config)
    answerer = Answerer(
        model,
        loaded.vocabulary,
        recipe.eval,
        world.device,
        video=recipe.data.video,
        audio=recipe.data.audio,
        precision=recipe.train.precision,
    )
    say(f"checkpoint '{path}', step {loaded.step}; split '{job.split}' of '{job.shards}'")
    plan = _plan(job, split, options)
    notes = world.run_on_rank0(lambda: cut_notes(plan, answerer)) or []
    for note in notes:
        say(note)
    origin = _origin(job, split, path, options)
    world.run_on_rank0(lambda: clear_other_results(job.folder, origin, say))

    show = progress if world.is_main else None
    rows = _answered(plan, answerer, origin, job.folder, world, show)
    controls = {}
    for control in CONTROLS:
        altered, own, folder = replace(plan, control=control), {**origin, "control": control}, job.folder / control
        asked = control in chosen
        if asked or _is_finished(folder, own, world):  # what was answered before stays in the results
            say(f"control {control}" if asked else f"control {control}: answers already exist")
            controls[control] = _answered(altered, answerer, own, folder, world, show)
    return loaded, Answers(plan, rows, controls, notes)


def _answered(plan: Plan, answerer: Answerer, origin: dict, folder: Path, world: World, progress: Progress | None) -> list[dict]:
    """The rows of one plan, each process answering its share; what was finished before is read."""
    batch = answerer.settings.batch_size
    if not _is_finished(folder, origin, world):
        world.run_on_rank0(lambda: folder.mkdir(parents=True, exist_ok=True))
        write_predictions(folder, plan, answerer, origin, rank=world.rank, size=world.size, progress=progress)
        world.barrier()
        world.run_on_rank0(lambda: finish_predictions(folder, plan, batch, world.size, origin))
    return read_finished(folder, plan)


def _is_finished(folder: Path, origin: dict, world: World) -> bool:
    """`is_finished`, as the first process finds it."""
    finished = world.run_on_rank0(lambda: is_finished(folder, origin))
    return world.sum([bool(finished)])[0] > 0


def _score(job: EvaluationJob, split: ShardSplit, loaded: LoadedModel, answers: Answers, options: Options, say: Say) -> dict[str, Any]:
    """The figures of all answers, written and returned."""
    recipe, rows = job.recipe, answers.rows
    provenance = {
        "checkpoint": str(loaded.path), "step": loaded.step, "averaged_weights": loaded.averaged, "limit": options.limit,
        "decode": _decoding_words(recipe), "frames": recipe.clip.frames, "chunks": recipe.clip.chunks, "size": recipe.clip.size,
        **recipe.data.modalities,
    }  # fmt: skip
    results = results_of(job, rows, answers.plan.labels, options, provenance, split)
    results["notes"] += answers.notes
    if answers.controls:
        results["controls"] = {"none": control_summary(rows, None, rows, job.protocol)}
        alone = replace(options, baseline=None)
        for control, control_rows in answers.controls.items():
            control_results = results_of(job, control_rows, answers.plan.labels, alone, {**provenance, "control": control}, split)
            results["controls"][control] = control_results["control"] = control_summary(control_rows, control, rows, job.protocol)
            write_json(job.folder / control / "results.json", control_results)
    return _finish(job, results, rows, options, split, say, answers.notes)


def _best_of_run(recipe: Recipe) -> Path | None:
    try:
        return checkpoint_folder(recipe, "best")
    except CheckpointError:
        return None


def _plan(job: EvaluationJob, split: ShardSplit, options: Options) -> Plan:
    sample = job.subset.clips if job.subset else None
    seed = job.recipe.eval.seed
    return Plan.of(split, job.task, job.protocol, sample=sample, limit=options.limit, seed=seed)


def for_geometry(loaded: LoadedModel, recipe: Recipe) -> Mirasol:
    """The checkpoint's model for the recipe's clips: other numbers of frames and chunks need no other parameters.

    Raises CheckpointError where the weights belong to other tubes or spectrograms.
    """
    from mirasol_cli.model.mirasol import Mirasol

    if loaded.geometry == recipe.clip:
        return loaded.model
    differences = "; ".join(loaded.geometry.differences(recipe.clip))
    if loaded.geometry.tubes != recipe.clip.tubes or loaded.geometry.audio != recipe.clip.audio:
        raise CheckpointError(
            f"the checkpoint '{loaded.path}' was trained on other clips than the recipe describes: {differences} "
            "(checkpoint here, recipe there)",
            "evaluate it with the recipe it was trained with",
        )
    model = Mirasol(loaded.model.config, recipe.clip, loaded.vocabulary.size)
    try:
        model.load_state_dict(loaded.model.state_dict())
    except RuntimeError:
        raise CheckpointError(
            f"the checkpoint '{loaded.path}' does not match the recipe: {differences}", "use the recipe it was trained with"
        ) from None
    return model.eval()


def _origin(job: EvaluationJob, split: ShardSplit, checkpoint: Path, options: Options) -> dict[str, Any]:
    """What the predictions depend on: a changed entry makes them anew."""
    return {
        "checkpoint": sha256_of(checkpoint / "manifest.json"), "split": sha256_of(split.path / "index.json"), "task": job.task,
        "eval": dataclasses.asdict(job.recipe.eval), "clip": job.recipe.clip.to_plain(), **job.recipe.data.modalities,
        "precision": job.recipe.train.precision, "device": options.device, "control": None, "limit": options.limit,
        "subset": dataclasses.asdict(job.subset) if job.subset else None,
    }  # fmt: skip


def _decoding_words(recipe: Recipe) -> str:
    settings = recipe.eval
    extra = {
        "greedy": "",
        "sample": f", temperature {settings.temperature}, top-p {settings.top_p}, seed {settings.seed}",
        "beam": f", {settings.beams} beams",
    }[settings.decode]
    return f"{settings.decode}{extra}, at most {settings.max_tokens} tokens"


# -------------------------------------------------------------------------------------------------- scoring, with or without


def _rescore(job: EvaluationJob, options: Options, say: Say) -> dict[str, Any]:
    """Score a predictions file. The split's shards, where they are at hand, say what was asked and what is missing."""
    assert options.predictions is not None
    if options.controls:
        raise UsageError("--control and --predictions cannot be combined: a control runs a model", "use one of them")
    labels: tuple[str, ...] = ()
    split: ShardSplit | None = None
    try:
        split = job.open_split()
        plan, known = _plan(job, split, options), question_ids(split, job.task)
    except DataError as error:
        say(f"scored without the split itself: {error.message}")
        stored = read_predictions(options.predictions).values()
        number = {video: clip for clip, video in enumerate(dict.fromkeys(str(row["video"]) for row in stored))}
        rows = [score_row({"clip": number[str(row["video"])], "answer": None, **row}, job.protocol) for row in stored]
    else:
        labels = plan.labels
        given = read_predictions(options.predictions, plan.questions(), known)
        rows = align_to_questions(given, plan.questions(), frozenset(split.kept.tolist()), job.protocol)
    job = replace(job, folder=evaluation_folder(job, options, None, None))
    with folder_lock(job.folder, say):
        announce_other_predictions(job.folder, options.predictions, say)
        write_jsonl(job.folder / PREDICTIONS, rows)
        provenance = {"predictions": str(options.predictions), "limit": options.limit}
        results = results_of(job, rows, labels, options, provenance, split)
        return _finish(job, results, rows, options, split, say)


def _finish(
    job: EvaluationJob, results: dict, rows: list[dict], options: Options, split: ShardSplit | None, say: Say, told: Sequence[str] = ()
) -> dict[str, Any]:
    """Write submission, results and report, and say what a reader of the figures has to know, but for the notes `told` before."""
    folder = job.folder
    write_submission(folder, job.dataset, job.task, rows)
    write_json(folder / "results.json", results)
    if options.report:
        from mirasol_cli.evaluation.report.html import write_report

        write_report(folder / "report.html", results, rows, run_dir=Path(job.recipe.run_dir), split=split)
    if split:
        prepared = results["prepared"]
        say(f"{prepared['present']} of {prepared['clips']} clips of split '{split.name}' are available ({prepared['share']:.1%})")
    if job.subset:
        say(f"{job.split}: {results['subset']['clips']} clips of '{job.subset.split}', {job.subset.purpose}")
    if results["limited"]:
        say(f"limited to the first {options.limit} clips: these are not results of the whole split")
    for note in results["notes"]:
        if note not in told:
            say(note)
    if results["missing"]:
        say(f"{results['missing']} of {results['n']} questions refer to missing clips and count as wrong")
    if results["unanswered"]:
        say(f"{results['unanswered']} of {results['n']} questions have no prediction in '{options.predictions}' and count as wrong")
    say(f"results in '{folder}'")
    return results
