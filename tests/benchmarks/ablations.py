"""The ablations of recipes/ablations: two single-threaded runs at a time, resumable, and their tables.

    mirasol prepare demo
    python tests/benchmarks/ablations.py [--only NAME ...] [--seeds 5] [--steps N] [--out DIR]
    python tests/benchmarks/ablations.py --report [RESULTS.jsonl ...]

Every run is trained and evaluated by the same commands that a user types; DIR/results.jsonl gets a line when it is done. Called
again, it goes on: what has a line is skipped, a run that was cut goes on from its checkpoint. `--long` runs the series on clips
of a minute (data set demo-long), after the runs that it starts from.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
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

from ablation_plan import BY_NAME, CONDITIONS, Job, next_job, plan, without_dependents
from ablation_report import report
from common import ROOT, environment
from mirasol_cli.errors import MirasolError

RESULTS = "results.jsonl"


class RunFailed(Exception):
    """A command of a run ended with an error."""


@dataclass
class Runner:
    """One call: where results go, how long each run is, and the processes at work."""

    out: Path
    steps: dict[str, int | None]  # series -> steps, None for the recipe's own
    lock: int = -1  # file descriptor of the lock, which every child holds, too
    children: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False

    def run_dir(self, name: str, seed: int) -> Path:
        return self.out / "runs" / name / f"seed-{seed}"

    def settings(self, job: Job) -> list[str]:
        """What is this run's own in its recipe, but for paths."""
        from mirasol_cli.config.reader import load_recipe

        words = [f"train.seed={job.seed}", "train.keep_checkpoints=1"]
        steps = self.steps[job.condition.series]
        if steps is not None:
            warmup = load_recipe(str(ROOT / job.condition.recipe)).train.warmup_steps
            words += [f"train.steps={steps}", f"train.warmup_steps={min(warmup, steps // 4)}"]
        return words

    def paths(self, job: Job) -> list[str]:
        """Its folder, and what it starts from."""
        from mirasol_cli.checkpoints.runs import resolve_checkpoint

        words = [f"run.dir={self.run_dir(job.condition.name, job.seed)}"]
        if job.condition.after:
            before = self.run_dir(job.condition.after, job.seed)
            if job.condition.takes == "tokenizer":
                words.append(f"init.tokenizer={resolve_checkpoint(before) / 'tokenizer.model'}")
            else:
                words.append(f"init.checkpoint={before}")
        return words

    def fingerprint(self, job: Job) -> str:
        """Of the recipe as it is run, so that results of another one are not taken for its own."""
        from mirasol_cli.config.reader import load_recipe

        recipe = load_recipe(str(ROOT / job.condition.recipe), self.settings(job))
        return hashlib.sha256(json.dumps(recipe.to_plain(), sort_keys=True).encode()).hexdigest()[:16]

    def perform(self, job: Job) -> dict[str, Any]:
        """Train and evaluate; the line of results.jsonl. Raises RunFailed."""
        try:
            return self.trained_and_evaluated(job)
        except (MirasolError, OSError, KeyError) as problem:
            raise RunFailed(f"{type(problem).__name__}: {problem}") from problem

    def trained_and_evaluated(self, job: Job) -> dict[str, Any]:
        folder = self.run_dir(*job.key)
        resumed = (folder / "checkpoints").is_dir()
        words = [*self.settings(job), *self.paths(job)]
        start = time.perf_counter()
        self.mirasol(job, job.condition.stage, str(ROOT / job.condition.recipe), "--resume", words)
        seconds = None if resumed else round(time.perf_counter() - start, 1)
        row = {"condition": job.condition.name, "seed": job.seed, "recipe": self.fingerprint(job), "seconds": seconds}
        if job.condition.scored:
            self.mirasol(job, "eval", str(folder), "--json", [])
        return row | costs(folder) | (scores(folder) if job.condition.scored else {})

    def mirasol(self, job: Job, command: str, subject: str, option: str, words: list[str]) -> None:
        """One command on one thread; what it says goes to DIR/logs."""
        log = self.out / "logs" / f"{job.condition.name}-seed-{job.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        line = [sys.executable, "-m", "mirasol_cli", command, subject, option, "--threads", "1", "--device", "cpu"]
        with open(log, "a") as file:
            if self.stopping:
                raise RunFailed("stopped")
            child = subprocess.Popen(
                [*line, *words], stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=(self.lock,),
                env=environment(OMP_NUM_THREADS="1"),
            )  # fmt: skip
            self.children.add(child)
            code = child.wait()
            self.children.discard(child)
        if code:
            raise RunFailed(f"`mirasol {command}` ended with {code}; the end of '{log}':\n{log.read_text()[-800:]}")

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
                    child.terminate()  # it saves a checkpoint and ends
                raise
        return good


def scores(run: Path) -> dict[str, Any]:
    """From results.json of the run's evaluation on the test split."""
    from mirasol_cli.files import read_json

    results = read_json(run / "eval" / "test" / "results.json")
    by_type = {name: {key: part[key] for key in ("n", "exact_match")} for name, part in results["by_type"].items()}
    return {"n": results["n"], "exact_match": results["metrics"]["exact_match"], "by_type": by_type}


def costs(run: Path) -> dict[str, Any]:
    """Steps, parameters, and FLOPs of a forward pass for one clip with the recipe's number of questions, as `--dry-run` counts."""
    import torch

    from mirasol_cli.checkpoints.runs import resolve_checkpoint
    from mirasol_cli.config.reader import load_recipe
    from mirasol_cli.files import read_json
    from mirasol_cli.model.mirasol import Mirasol
    from mirasol_cli.training.dry_run import TARGET_TOKENS, TEXT_TOKENS
    from mirasol_cli.training.flops import forward_flops

    checkpoint = resolve_checkpoint(run)
    recipe, vocabulary = load_recipe(str(checkpoint / "recipe.yaml")), read_json(checkpoint / "config.json")["vocab_size"]
    with torch.device("meta"):
        model = Mirasol(recipe.model, recipe.clip, vocabulary, recipe.loss.weights)
    flops = forward_flops(model, questions=recipe.data.questions_per_clip, tokens=TEXT_TOKENS, targets=TARGET_TOKENS)
    return {
        "steps": recipe.train.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflop": sum(flops.values()) / 1e9,
        "combiner_gflop": flops["combiner"] / 1e9,
    }


# --------------------------------------------------------------------------------------------------------- the command


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
    times = Counter((row["condition"], row["seed"], row["steps"]) for row in rows)
    if twice := [f"{name}, seed {seed}, {steps} steps" for (name, seed, steps), count in times.items() if count > 1]:
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


def check_rows(runner: Runner, jobs: list[Job], rows: list[dict[str, Any]]) -> None:
    """Refuse to mix results of different recipes."""
    recipes = {(row["condition"], row["seed"]): row["recipe"] for row in rows}
    others = [str(job) for job in jobs if recipes.get(job.key, runner.fingerprint(job)) != runner.fingerprint(job)]
    if others:
        raise SystemExit(f"'{runner.out}' holds results of other recipes or steps ({'; '.join(others[:4])} ...): choose another --out")


def check_shards(jobs: list[Job]) -> None:
    """Every shard folder that is needed, before any run."""
    from mirasol_cli.config.paths import default_shards
    from mirasol_cli.config.reader import load_recipe

    missing = {}
    for job in jobs:
        recipe = load_recipe(str(ROOT / job.condition.recipe))
        folder = default_shards(recipe.data.dataset, recipe.clip)
        if not all((folder / split / "index.json").is_file() for split in ("train", "test")):
            missing[folder] = f"'{folder}' holds no shards yet: mirasol prepare {recipe.data.dataset} --recipe {job.condition.recipe}"
    if missing:
        raise SystemExit("\n".join(missing.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", nargs="+", metavar="NAME", choices=list(BY_NAME), help="these recipes, and those they start from")
    which.add_argument("--long", action="store_true", help="the series on clips of a minute")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps of each run; default: its recipe's")
    parser.add_argument("--long-steps", type=int, help="the same for the runs on clips of a minute")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), metavar="DIR")
    parser.add_argument(
        "--report", nargs="*", type=Path, metavar="FILE", help="print the tables of these results (default: DIR's), and run nothing"
    )
    args = parser.parse_args()
    if args.report is not None:
        print(report(gathered(args.report) if args.report else recorded(args.out / RESULTS)), end="")
        return

    series = "long" if args.long else "parts"
    names = args.only or [condition.name for condition in CONDITIONS if condition.series == series]
    jobs = plan(names, args.seeds)
    check_shards(jobs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = args.out.resolve()
    with only_one(out) as lock:
        runner, rows = Runner(out, {"parts": args.steps, "long": args.long_steps}, lock), recorded(out / RESULTS)
        check_rows(runner, jobs, rows)
        good = runner.run(jobs, rows, args.processes)
    (out / "report.md").write_text(report(rows))
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
