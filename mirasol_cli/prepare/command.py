"""`mirasol prepare`: videos and annotations become shards, step by step."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mirasol_cli.config.paths import data_root, default_shards, shipped_recipes
from mirasol_cli.config.schema import DataRecipe, Recipe
from mirasol_cli.datasets.example import DatasetOptions, Split
from mirasol_cli.datasets.registry import DATASETS, RENDERED, open_dataset
from mirasol_cli.datasets.resolver import VIDEO_SUFFIXES, VideoIndex, is_audio
from mirasol_cli.errors import DataError, EnvironmentProblem, ShardError, TooManyFailures, UsageError
from mirasol_cli.fields import FieldError, check_folder_name
from mirasol_cli.files import disk_problem, sha256_of
from mirasol_cli.prepare import engines
from mirasol_cli.prepare.options import check_options, check_overrides, check_together
from mirasol_cli.prepare.plan import (
    DecodeOptions,
    Origin,
    PlannedWorks,
    SplitPlan,
    bytes_needed,
    check_disk,
    check_existing,
    check_texts,
    group_by_split,
    part_of,
    plan_split,
    take_first,
)
from mirasol_cli.prepare.recipe import recipe_with_front_end
from mirasol_cli.prepare.report import DecodingProgress, Say, finish_split, say_table, split_summary
from mirasol_cli.runtime.console import progress_bar
from mirasol_cli.runtime.folder_lock import folder_lock
from mirasol_cli.runtime.launch import usable_cores
from mirasol_cli.shards.index import INDEX, SplitIndex, record_name, shard_name
from mirasol_cli.shards.reader import verify_split
from mirasol_cli.shards.writer import remove_partials

if TYPE_CHECKING:
    from mirasol_cli.datasets.demo import World

MANIFEST_SUFFIXES = (".jsonl", ".csv", ".json")
MANIFEST_RECIPE = "memorise"
"""The recipe whose geometry a manifest gets, unless another is named."""
PART_LOCK = ".part-{}-of-{}"
"""The folder with the lock of one part."""


def prepare(
    dataset: str,
    *,
    root: Path | None = None,
    out: Path | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    splits: Sequence[str] = (),
    task: str | None = None,
    workers: int | None = None,
    engine: str = "local",
    part: str | None = None,
    merge: bool = False,
    retry_failed: bool = False,
    dry_run: bool = False,
    inspect: int = 0,
    verify: bool = False,
    max_failed: float = 1.0,
    strict: bool = False,
    keep_truncated: bool = False,
    allow_audio_only: bool = False,
    limit: int | None = None,
    options: DatasetOptions | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Decode a data set's clips into shards, and write its texts beside them.

    What is there already is not done again: finished shards stay, and texts are written anew only if they changed.

    Args:
        dataset: a data set's name, or the path of a JSONL or CSV manifest.
        root: folder of annotations and videos; default `data/<dataset>`, or the manifest's own folder.
        out: shard folder; default the recipe's `data.shards`, else `data/<dataset or manifest>/shards/<geometry>`.
        recipe: name or path of the recipe whose `clip:` is the geometry; default the one of the data set's name.
        overrides: `key=value` over the recipe.
        splits, task: only these splits, only this task; default all.
        workers: decoding processes; default the number of cores.
        engine: "local" or "ray".
        part: "I/N": only the shards I, I + N, I + 2 N, ...; `merge` then checks all of them and writes the index.
        retry_failed: try the clips again that failed before.
        dry_run: count, estimate bytes and time, write nothing.
        inspect: contact sheets of this many clips per split.
        verify: compare every file with its checksum; with `retry_failed`, prepare again what is damaged.
        max_failed: percent of the clips that may fail. `strict` counts missing files as failed.
        limit: only the first clips of each split.
        say: where talk goes; default stderr.

    Returns:
        `{"splits": {name: counts}, "out": folder}`, see `prepare.report.split_summary`.

    Raises:
        UsageError, RecipeError: nothing was done.
        DataError, ShardError: annotations or shards are missing or damaged, or of another geometry.
        EnvironmentProblem: disk or engine; finished shards stay.
        TooManyFailures: all is written, but too much failed; its `summary` is what would have been returned.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    mine = part_of(part)
    check_options(engine, limit, max_failed, inspect)
    check_together(
        {
            "--part": part is not None, "--merge": merge, "--retry-failed": retry_failed, "--dry-run": dry_run, "--inspect": inspect > 0,
            "--verify": verify and not retry_failed, "--task": task is not None, "--limit": limit is not None,
        }
    )  # fmt: skip
    chosen = recipe_with_front_end(recipe or recipe_of(dataset, task), overrides)
    manifest = manifest_path(dataset)
    if manifest is None:
        open_dataset(dataset)  # a misspelt name is told before anything else
    check_overrides(overrides, dataset)
    root = root or (manifest.parent if manifest else data_root(dataset))
    by_default = out is None
    out = out or default_out(chosen, dataset, manifest)
    origin = Origin.of(manifest, out if by_default else None)
    if engine == "ray":  # its workers have current folders of their own
        root, out = root.absolute(), out.absolute()
    if verify and not retry_failed:
        return verify_shards(out, splits, say)
    geometry = chosen.clip
    check_existing(out, geometry, repair=verify)

    writes = nullcontext() if dry_run else writing(out, mine, say)
    with writes:
        if dataset in RENDERED and not dry_run:
            render(open_dataset(dataset).WORLD, root, chosen, limit, workers or usable_cores(), say)
        if dataset in RENDERED and dry_run:
            source, found, videos = dry_splits(open_dataset(dataset), root, chosen, limit, task)
        else:
            source, found = read_dataset(dataset, manifest, root, task, options or DatasetOptions())
            allow_audio_only = allow_audio_only or not has_video(source, found)
            videos = VideoIndex(root, audio=allow_audio_only)
        check_texts(out, found, source.NAME, origin, repair=verify)
        plans = [
            plan_split(out / name, take_first(tasks, limit), geometry, videos, source.candidates, retry_failed=retry_failed, repair=verify)
            for name, tasks in group_by_split(found, splits).items()
        ]
        check_found(plans, videos, source)
        say(f"{source.NAME}: {sum(int(plan.expected.sum()) for plan in plans)} clips; licence: {source.LICENCE}")
        for words in passed_over(videos):
            say(words)

        decode = DecodeOptions(workers=workers or usable_cores(), keep_truncated=keep_truncated, allow_audio_only=allow_audio_only)
        if dry_run:
            return {**estimate(plans, decode, mine, retry_failed, out, say), "licence": source.LICENCE}
        try:
            if merge:
                check_parts(plans)
            else:
                write_missing_shards(plans, decode, engine, mine, retry_failed, out, say)
            if mine is None:
                for plan in plans:
                    finish_split(plan, source, origin)
        except OSError as error:
            raise disk_problem(error, Path(error.filename or out)) from error
        summary: dict[str, Any] = {"splits": {plan.name: split_summary(plan) for plan in plans}, "out": str(out), "licence": source.LICENCE}
        say_table(summary["splits"], say)
        if mine is not None:
            say(f"part {part} is done. When all parts are done, run the same command with --merge instead of --part")
        elif inspect:
            from mirasol_cli.prepare.inspect import write_contact_sheets

            summary["contact_sheets"] = [str(path) for path in write_contact_sheets(out, [plan.name for plan in plans], inspect)]
            say(f"contact sheets: {', '.join(summary['contact_sheets'])}")
        check_failures(summary, out, max_failed, strict)
        return summary


# ------------------------------------------------------------------------------------------------ what to prepare


@contextmanager
def writing(out: Path, part: tuple[int, int] | None, say: Say) -> Iterator[None]:
    """Nobody else writes to `out` meanwhile, but other parts beside a part.

    Raises UsageError if another process does; it is named.
    """
    if part is not None:
        with folder_lock(out / PART_LOCK.format(*part), say):
            yield
        return
    with folder_lock(out, say):
        for folder in sorted(out.glob(PART_LOCK.format("*", "*"))):  # parts that still work, or that were killed
            with folder_lock(folder, say):
                pass
            with suppress(OSError):
                folder.rmdir()
        yield


def manifest_path(dataset: str) -> Path | None:
    """The manifest that `dataset` names, or None for a data set's name.

    Raises DataError if it looks like a file and is none.
    """
    path = Path(dataset)
    if dataset in DATASETS:
        return None
    if path.suffix.lower() in MANIFEST_SUFFIXES or path.is_file():
        if not path.is_file():
            raise DataError(f"the manifest '{dataset}' does not exist", "pass a JSONL or CSV file, or the name of a data set")
        return path
    return None


def recipe_of(dataset: str, task: str | None) -> str:
    """The shipped recipe of a data set's name; where its tasks have one each (nextqa-mc, nextqa-oe), the task's, else the first."""
    if dataset not in DATASETS:
        return MANIFEST_RECIPE
    shipped = shipped_recipes()
    of_tasks = [name for name in shipped if name.startswith(f"{dataset}-")]
    candidates = [f"{dataset}-{task}", dataset, *of_tasks]
    return next((name for name in candidates if name in shipped), dataset)


def default_out(recipe: Recipe, dataset: str, manifest: Path | None) -> Path:
    """Where training with the same recipe will look. A manifest gives its name to a recipe that has none of its own for the data."""
    if recipe.data.shards and (manifest or recipe.data.dataset == dataset):
        return Path(recipe.data.shards)
    if manifest is None:
        return default_shards(dataset, recipe.clip)
    if recipe.data.dataset != DataRecipe().dataset:
        return default_shards(recipe.data.dataset, recipe.clip)
    try:
        check_folder_name("dataset", manifest.stem)
    except FieldError as error:
        raise UsageError(f"'{manifest.name}' gives no name for a folder: {error.message}", "name the shard folder with --out") from None
    return default_shards(manifest.stem, recipe.clip)


def read_dataset(
    dataset: str, manifest: Path | None, root: Path, task: str | None, options: DatasetOptions
) -> tuple[ModuleType, list[Split]]:
    """The reader's module and the splits it reads, of one task or all."""
    if manifest is not None:
        from mirasol_cli.datasets import manifest as reader

        return reader, [split for split in reader.read_manifest(manifest, root) if task in (None, split.task)]
    source = open_dataset(dataset)
    if task is not None and task not in source.TASKS:
        raise UsageError(f"{dataset} has no task '{task}'", f"its tasks are {', '.join(source.TASKS)}")
    if not root.is_dir():
        raise DataError(
            f"the folder '{root}' does not exist; it should contain the annotations and videos of {dataset}",
            f"pass the folder with --root; the annotations are published at {source.SOURCE}",
        )
    return source, list(source.read(root, task, options))


def has_video(source: ModuleType, splits: Sequence[Split]) -> bool:
    """Whether the clips have video at all: a set of sound alone says that it has none, and a manifest may name sound files alone."""
    of_set: bool = getattr(source, "HAS_VIDEO", True)
    return of_set and not all(is_audio(clip.video) for split in splits for clip in split.clips)


def render(world: World, root: Path, recipe: Recipe, limit: int | None, workers: int, say: Say) -> None:
    """Draw a world's videos and write its annotations; what is there already stays."""
    with progress_bar("video", say) as show:

        def progress(done: int, videos: int) -> None:
            if done == 1:
                say(f"rendering {videos} videos of {world.title} in '{root}'")
            show(done, videos)

        try:
            world.render(root, seed=recipe.data.seed, clips=_clips_to_render(world, recipe, limit), workers=workers, progress=progress)
        except OSError as error:
            raise disk_problem(error, root) from error


def dry_splits(
    source: ModuleType, root: Path, recipe: Recipe, limit: int | None, task: str | None
) -> tuple[ModuleType, list[Split], VideoIndex]:  # fmt: skip
    """What would be read if the world's videos were rendered."""
    from mirasol_cli.datasets.demo import PlannedVideos

    world: World = source.WORLD
    splits = world.planned(seed=recipe.data.seed, clips=_clips_to_render(world, recipe, limit), task=task)
    return source, splits, PlannedVideos(root)


def _clips_to_render(world: World, recipe: Recipe, limit: int | None) -> int:
    clips = recipe.data.clips or world.clips
    return min(clips, limit or clips)


def check_found(plans: Sequence[SplitPlan], videos: VideoIndex, source: ModuleType) -> None:
    """Raises DataError if there is nothing to do because not one video is there."""
    if any(plan.sources for plan in plans) or any(r.kept for plan in plans for r in plan.records.values()):
        return
    clips = sum(len(plan.clips) for plan in plans)
    if not clips:
        raise DataError(f"the annotations of {source.NAME} below '{videos.root}' name no clip")
    names = [getattr(name, "name", name) for name in source.candidates(next(clip for plan in plans for clip in plan.clips))][:3]
    audio_alone = (
        f"{videos.audio_files} audio files without video were found: --allow-audio-only takes them"
        if videos.audio_files and not len(videos)
        else ""
    )
    files = "videos" if videos.suffixes == VIDEO_SUFFIXES else "files"
    hint = f"put the {files} anywhere below that folder, or give their folder with --root; published: {source.SOURCE}"
    raise DataError(
        f"none of the {clips} {files} of {source.NAME} is below '{videos.root}', where {len(videos)} {files} lie; "
        f"looked for {', '.join(repr(name) for name in names)} and so on",
        "; ".join([*passed_over(videos), *filter(None, [audio_alone]), hint]),
    )


def passed_over(videos: VideoIndex) -> list[str]:
    """What lies below the root and was not looked into, one sentence each: links out of it, folders without permission."""
    words = []
    if videos.outside:
        names = _names(videos.outside)
        words.append(f"links that lead out of '{videos.root}' are not followed ({names}): give what they point to with --root")
    if videos.unreadable:
        words.append(f"folders below '{videos.root}' that may not be read ({_names(videos.unreadable)}): change their permissions")
    return words


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:3])
    return f"{len(names)}: {shown}{', ...' if len(names) > 3 else ''}"


# ------------------------------------------------------------------------------------------------ the work


def write_missing_shards(
    plans: Sequence[SplitPlan], decode: DecodeOptions, engine: str, mine: tuple[int, int] | None, retry_failed: bool, out: Path, say: Say
) -> None:
    """Write the shards that are not there yet, of this part; puts their records into the plans."""
    part = mine or (0, 1)
    works = PlannedWorks(plans, part, decode, retry_failed=retry_failed)
    if not works:
        say(f"nothing to do: all shards in '{out}' are finished")
        _say_failed_before(plans, retry_failed, say)
        return
    check_disk(out, bytes_needed(plans, retry_failed=retry_failed, part=part))
    for plan in plans:
        plan.folder.mkdir(parents=True, exist_ok=True)
        if mine is None:
            remove_partials(plan.folder)
    clips = [clip for plan in plans for clip in plan.clips_to_decode(retry_failed=retry_failed, part=part)]
    progress = DecodingProgress(len(clips), say)
    by_folder = {plan.folder: plan for plan in plans}
    say(f"decoding {len(clips)} clips into {len(works)} shard{'s' * (len(works) > 1)} in '{out}'")
    done = 0
    try:
        with closing(engines.run(engine, works, progress)) as finished:
            for folder, record in finished:
                by_folder[folder].records[record.number] = record
                by_folder[folder].written = True
                done += 1
    except EnvironmentProblem as problem:
        going_on = f"{done} of {len(works)} shards are finished and kept; run the same command to resume"
        raise EnvironmentProblem(problem.message, f"{problem.hint}; {going_on}" if problem.hint else going_on) from problem
    finally:
        progress.close()


def _say_failed_before(plans: Sequence[SplitPlan], retry_failed: bool, say: Say) -> None:
    failed = sum(len(record.failed) for plan in plans for record in plan.records.values())
    if failed and not retry_failed:
        say(f"{failed} clips failed earlier; use --retry-failed to retry them")


def check_parts(plans: Sequence[SplitPlan]) -> None:
    """Raises ShardError unless every shard is there and fits its checksum."""
    absent = [str(plan.slot(number).path) for plan in plans for number in plan.to_do]
    if absent:
        raise ShardError(
            f"{len(absent)} shards are not finished: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}",
            "run the parts that make them (shard k belongs to part k mod N), or the same command without --merge",
        )
    for plan in plans:
        for record in plan.records.values():
            if record.bytes and sha256_of(plan.folder / record.name) != record.sha256:
                raise ShardError(
                    f"'{plan.folder / record.name}' is damaged: its checksum is not the one its part wrote",
                    "delete it and run its part again",
                )


def estimate(
    plans: Sequence[SplitPlan], decode: DecodeOptions, mine: tuple[int, int] | None, retry_failed: bool, out: Path, say: Say
) -> dict[str, Any]:
    """The summary with what would be done, by this part: clips, bytes, and seconds from decoding a few of them."""
    part = mine or (0, 1)
    works = PlannedWorks(plans, part, decode, retry_failed=retry_failed)
    clips = sum(len(plan.clips_to_decode(retry_failed=retry_failed, part=part)) for plan in plans)
    size = bytes_needed(plans, retry_failed=retry_failed, part=part)
    per_clip = engines.seconds_per_clip(works) if clips else 0.0
    seconds = None if per_clip is None else round(clips * per_clip, 1)
    splits = {}
    for plan in plans:
        splits[plan.name] = split_summary(plan)
        expected = splits[plan.name]["expected"] = int(plan.expected.sum())
        missing = splits[plan.name]["missing"] = expected - sum(bool(plan.expected[clip]) for clip in plan.sources)
        splits[plan.name]["share"] = round(1 - missing / max(1, expected), 4)
    say_table(splits, say)
    time = "no video file to estimate the time from" if seconds is None else f"about {seconds / 3600:.2f} hours"
    of_part = f" in part {part[0]}/{part[1]}" if mine else ""
    say(f"to do{of_part}: {len(works)} shards, {clips} clips, {size:,} bytes in '{out}', {time} with {decode.workers} workers")
    check_disk(out, size)
    return {"splits": splits, "out": str(out), "dry_run": {"shards": len(works), "clips": clips, "bytes": size, "seconds": seconds}}


# ------------------------------------------------------------------------------------------------ the end


def check_failures(summary: dict[str, Any], out: Path, max_failed: float, strict: bool) -> None:
    """Raises TooManyFailures if a larger share failed than allowed; missing files count only if `strict`."""
    counts = summary["splits"].values()
    failed = sum(c["failed"] + (c["missing"] if strict else 0) for c in counts)
    expected = sum(c["expected"] for c in counts)
    if failed * 100 > max_failed * expected:
        error = TooManyFailures(
            f"{failed} of {expected} clips failed, more than the {max_failed:g} % allowed; the others are ready in '{out}'",
            "see failures.jsonl of each split for the reasons; use --retry-failed to retry, --max-failed PCT to allow more",
        )
        error.summary = summary
        raise error


def verify_shards(out: Path, splits: Sequence[str], say: Say) -> dict[str, Any]:
    """Compare every file below `out` with its checksum. Raises ShardError that names all damaged files."""
    names = sorted({path.parent.name for pattern in (INDEX, shard_name(0), record_name(0)) for path in out.glob(f"*/{pattern}")})
    finished = [name for name in splits or names if (out / name / INDEX).exists()]
    if not finished or set(splits) - set(names):
        wanted = ", ".join(sorted(set(splits) - set(names)))
        raise ShardError(
            f"'{out}' contains no finished split{' ' + wanted if wanted else ''}", "run the same command without --verify first"
        )
    problems = [f"'{out / name}' holds shards and no {INDEX}" for name in splits or names if name not in finished]
    problems += [problem for name in finished for problem in verify_split(out / name)]
    if problems:
        raise ShardError(
            "\n".join(problems), "the same command with --verify --retry-failed prepares them again; intact clips are not decoded twice"
        )
    summary: dict[str, Any] = {"splits": {}, "out": str(out), "verified": True}
    for name in splits or names:
        index = SplitIndex.read(out / name / INDEX)
        summary["splits"][name] = {**index.counts, "questions": sum(entry.texts for entry in index.tasks.values())}
        say(f"{name}: {len(index.shards)} shards, {index.counts['bytes']:,} bytes are intact")
    return summary
