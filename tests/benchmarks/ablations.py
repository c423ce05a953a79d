"""The ablations: what the parts of the model are worth on clips of a minute, two single-threaded runs at a time, resumable.

    mirasol prepare demo-long data.clips=1600
    python tests/benchmarks/ablations.py [--only NAME ...] [--seeds 5] [--out DIR]
    python tests/benchmarks/ablations.py --report [RESULTS.jsonl ...]

Rows and runs: ablation_plan.py. One run: ablation_training.py. DIR/results.jsonl gets a line when a run is done. Called again, it goes
on: what has a line is skipped, a run that was cut goes on from its last save. The frontier (`--frontier`) also needs

    mirasol prepare demo-long data.clips=1600 clip.frames=32 clip.chunks=4
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablation_plan import BY_NAME, FRONTIER, PARTS, STEPS, Job, next_job, plan, without_dependents
from ablation_report import report
from common import environment

RESULTS = "results.jsonl"


class RunFailed(Exception):
    """A run ended with an error."""


@dataclass
class Runner:
    """One call: where results go, and the processes at work."""

    out: Path
    checkpoint: Path | None = None  # that has the encoder; None: the one that ships
    steps: int = STEPS  # of a row
    lock: int = -1  # file descriptor of the lock, which every child holds, too
    children: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False

    def run_dir(self, name: str, seed: int) -> Path:
        return self.out / "runs" / name / f"seed-{seed}"

    def here(self, job: Job) -> dict[str, Any]:
        """The run in this process; the line of results.jsonl."""
        import torch

        from ablation_training import perform
        from mirasol_cli.checkpoints.runs import demo_checkpoint

        torch.set_num_threads(1)
        condition = job.condition
        overrides = [*condition.overrides, f"train.seed={job.seed}", f"train.steps={condition.steps(self.steps)}"]
        start = self.run_dir(*job.before) / "state.pt" if job.before else None
        figures = perform(
            overrides,
            self.run_dir(*job.key),
            self.checkpoint or demo_checkpoint(),
            self.out / "tokens",
            scored=condition.scored,
            start=start,
        )
        return {"condition": condition.name, "seed": job.seed, "overrides": list(condition.overrides), **figures}

    def perform(self, job: Job) -> dict[str, Any]:
        """The run in a process of its own, on one thread; what it says goes to DIR/logs. Raises RunFailed."""
        log = self.out / "logs" / f"{job.condition.name}-seed-{job.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = ["--run", job.condition.name, str(job.seed), "--out", str(self.out), "--steps", str(self.steps)]
        words += ["--checkpoint", str(self.checkpoint)] if self.checkpoint else []
        with open(log, "a") as file:
            if self.stopping:
                raise RunFailed("stopped")
            child = subprocess.Popen(
                [sys.executable, __file__, *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                pass_fds=(self.lock,), env=environment(OMP_NUM_THREADS="1"),
            )  # fmt: skip
            self.children.add(child)
            code = child.wait()
            self.children.discard(child)
        if code:
            raise RunFailed(f"it ended with {code}; the end of '{log}':\n{log.read_text()[-800:]}")
        return json.loads(log.read_text().splitlines()[-1])

    def run(self, jobs: list[Job], rows: list[dict[str, Any]], processes: int) -> bool:
        """All jobs that have no row yet; each row is on the disk before the next job starts. False where any failed."""
        from mirasol_cli.files import write_jsonl

        done = {(row["condition"], row["seed"]) for row in rows}
        waiting = [job for job in jobs if job.key not in done]
        say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them done")
        working: dict[Future[dict[str, Any]], Job] = {}
        good = True
        with ThreadPoolExecutor(processes) as pool:
            try:
                while waiting or working:
                    while len(working) < processes and (job := next_job(waiting, done)):
                        waiting.remove(job)
                        working[pool.submit(self.perform, job)] = job
                    finished, _ = wait(working, return_when=FIRST_COMPLETED)
                    for future in finished:
                        job = working.pop(future)
                        try:
                            row = future.result()
                        except RunFailed as problem:
                            say(f"FAILED {job}: {problem}")
                            waiting, good = without_dependents(waiting, job.key), False
                            continue
                        rows.append(row)
                        write_jsonl(self.out / RESULTS, rows)
                        done.add(job.key)
                        result = f"{row['exact_match']:.1%}" if job.condition.scored else "done"
                        say(f"{job}: {result}; {len(waiting) + len(working)} to go")
            except BaseException:
                self.stopping = True
                for child in list(self.children):
                    child.terminate()  # what it has saved stays
                raise
        return good


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def recorded(file: Path) -> list[dict[str, Any]]:
    """The lines of a results.jsonl; none before the first run is done."""
    from mirasol_cli.files import read_jsonl

    return read_jsonl(file) if file.is_file() else []


def gathered(files: list[Path]) -> list[dict[str, Any]]:
    """The lines of several results: every run once."""
    if missing := [str(file) for file in files if not file.is_file()]:
        raise SystemExit(f"there are no results {', '.join(missing)}")
    rows = [row for file in files for row in recorded(file)]
    times = Counter((row["condition"], row["seed"]) for row in rows)
    if twice := [f"{name}, seed {seed}" for (name, seed), count in times.items() if count > 1]:
        raise SystemExit(f"the results hold some runs twice ({'; '.join(twice[:4])}): they would count as seeds of their own")
    return rows


@contextmanager
def only_one(out: Path) -> Iterator[int]:
    """A lock on DIR, held by this process and by every run it starts: those of a killed call end before the next one begins."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for runs that are still at work in '{out}'")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def check_rows(out: Path, rows: list[dict[str, Any]], steps: int) -> None:
    """Refuse to mix results of different rows or steps."""
    others = [f"{row['condition']}, seed {row['seed']}" for row in rows if not is_of_plan(row, steps)]
    if others:
        raise SystemExit(f"'{out}' holds results of other settings ({'; '.join(others[:4])} ...): choose another --out")


def is_of_plan(row: dict[str, Any], steps: int) -> bool:
    condition = BY_NAME.get(row["condition"])
    return condition is not None and row["steps"] == condition.steps(steps) and tuple(row["overrides"]) == condition.overrides


def check_shards(jobs: list[Job]) -> None:
    """Every shard folder that is needed, before any run."""
    from mirasol_cli.config.paths import default_shards
    from mirasol_cli.config.reader import load_recipe

    missing = {}
    for chunks in sorted({job.condition.chunks for job in jobs}):
        words = [] if chunks == 16 else [f"clip.frames={8 * chunks}", f"clip.chunks={chunks}"]
        folder = default_shards("demo-long", load_recipe("demo-long", words).clip)
        if not all((folder / split / "index.json").is_file() for split in ("train", "val", "test")):
            missing[folder] = f"'{folder}' holds no shards yet: mirasol prepare demo-long data.clips=1600 {' '.join(words)}"
    if missing:
        raise SystemExit("\n".join(missing.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", metavar="NAME", choices=list(BY_NAME), help="these rows, and those they start from")
    which.add_argument("--frontier", action="store_true", help="quality against FLOPs, at 4 and 16 chunks")
    which.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help="(used by the script itself)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS, help="of a row")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, help="of the demo world, whose encoder all runs share; default: the one that ships")
    parser.add_argument(
        "--report", nargs="*", type=Path, metavar="FILE", help="print the tables of these results (default: DIR's), and run nothing"
    )
    args = parser.parse_args()
    if args.report is not None:
        print(report(gathered(args.report) if args.report else recorded(args.out / RESULTS)), end="")
        return
    out = args.out.resolve()
    if args.run:
        print(json.dumps(Runner(out, args.checkpoint, args.steps).here(Job(BY_NAME[args.run[0]], int(args.run[1])))))
        return

    jobs = plan(args.only or [condition.name for condition in (FRONTIER if args.frontier else PARTS)], args.seeds)
    check_shards(jobs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with only_one(out) as lock:
        runner, rows = Runner(out, args.checkpoint, args.steps, lock), recorded(out / RESULTS)
        check_rows(out, rows, args.steps)
        good = runner.run(jobs, rows, args.processes)
    (out / "report.md").write_text(report(rows))
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
