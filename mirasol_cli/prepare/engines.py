"""Where shards are made: in this process with its decoding children, or by Ray, one task per whole shard."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mirasol_cli.errors import EnvironmentProblem
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.decode_pool import DecodePool
from mirasol_cli.prepare.decode import Watch, jobs_of, open_shard_work, requests_of, write_shards
from mirasol_cli.prepare.plan import DecodeOptions, ShardWork
from mirasol_cli.shards.index import ShardRecord

PROBED_FILES = 6
"""Files that a dry run decodes to tell how long the real one takes."""


def open_pool(options: DecodeOptions, geometry: ClipGeometry) -> DecodePool:
    return DecodePool(options.workers, geometry, keep_truncated=options.keep_truncated, allow_audio_only=options.allow_audio_only)


def run(engine: str, works: Sequence[ShardWork], watch: Watch) -> Generator[tuple[Path, ShardRecord], None, None]:
    """Write all shards; yields (folder, record) as they are finished. Output is the same whichever engine made it."""
    yield from run_ray(works, watch) if engine == "ray" else run_local(works, watch)


def run_local(works: Sequence[ShardWork], watch: Watch | None = None) -> Generator[tuple[Path, ShardRecord], None, None]:
    with open_pool(works[0].options, works[0].slot.geometry) as pool:
        yield from write_shards(works, pool, watch)


# ------------------------------------------------------------------------------------------------ Ray


def run_ray(works: Sequence[ShardWork], watch: Watch) -> Generator[tuple[Path, ShardRecord], None, None]:
    """A task per shard: Ray places it, and starts it again where a worker or a node dies; every write is atomic, so that is safe.

    `--workers` is the number of decoding processes, and so of CPUs, of one task. All nodes must see the folders under the same paths.

    Raises EnvironmentProblem: Ray is not installed, or a node does not see the folders.
    """
    try:
        import ray
    except ImportError:
        raise EnvironmentProblem("--engine ray needs the package 'ray', which is not installed", "pip install 'mirasol[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        _probe_folders(ray, works)
        yield from _ray_shards(ray, works, watch)
    finally:
        if started:
            ray.shutdown()


def _ray_shards(ray: Any, works: Sequence[ShardWork], watch: Watch) -> Generator[tuple[Path, ShardRecord], None, None]:
    cpus = min(works[0].options.workers, max(1, int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))))
    task = ray.remote(num_cpus=cpus, max_retries=5, retry_exceptions=False)(one_shard)
    running = {task.remote(work): work for work in works}
    while running:
        (finished,), _ = ray.wait(list(running), num_returns=1)
        work = running.pop(finished)
        try:
            record = ray.get(finished)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        watch(len(work.slot.clips), sum(record.seconds))
        yield work.slot.folder, record


def one_shard(work: ShardWork) -> ShardRecord:
    with closing(run_local([work])) as finished:
        return next(iter(finished))[1]


def _probe_folders(ray: Any, works: Sequence[ShardWork]) -> None:
    """Every node must see the sources, and in the output folder what this process writes there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder, root = works[0].slot.folder, works[0].root
    token = folder / f".probe-{uuid.uuid4().hex}.partial"
    token.touch()
    try:
        task = ray.remote(num_cpus=0)(sees)
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                seen = ray.get(task.options(scheduling_strategy=there).remote([str(root.absolute()), str(token.absolute())]))
                if not all(seen):
                    unseen = folder if seen[0] else root
                    raise EnvironmentProblem(
                        f"node {node['NodeManagerAddress']} does not see the folder '{unseen}'", "all nodes need it under the same path"
                    )
    finally:
        token.unlink(missing_ok=True)


def sees(paths: list[str]) -> list[bool]:
    return [Path(path).exists() for path in paths]


# ------------------------------------------------------------------------------------------------ dry run


def seconds_per_clip(works: Sequence[ShardWork]) -> float | None:
    """Wall seconds per clip with all workers, from decoding one clip each of a few files spread over the work. Writes nothing.

    None: there is no file to try (videos inside of tars are not unpacked for it, those of the demo world may not be rendered yet).
    """
    some = works[:: max(1, len(works) // PROBED_FILES)]
    jobs = [job for work in some for job in jobs_of(open_shard_work(work)) if job.source.member is None and os.path.exists(job.path)]
    chosen = jobs[:: max(1, len(jobs) // PROBED_FILES)][:PROBED_FILES]
    if not chosen:
        return None
    options = works[0].options
    with open_pool(options, works[0].slot.geometry) as pool:
        pool.submit_probe("start", chosen[0].path)  # importing the decoders is not part of the measure
        next(pool.results())
        start = time.monotonic()
        for number, job in enumerate(chosen):
            views = job.filling.work.slot.views
            pool.submit(number, job.path, requests_of(job, None)[:views])
        for _ in pool.results():
            pass
    at_once = min(options.workers, len(chosen))
    return (time.monotonic() - start) * at_once / options.workers / len(chosen)
