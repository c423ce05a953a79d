"""What every benchmark shares: a quiet machine by CPU-time accounting, alternating samples, medians with spread, reports.

A sample counts as quiet if all processes but this one and its children used next to no CPU while it ran. Samples that were
not are taken again, up to three times as many as wanted; where none was quiet, all are reported and the row says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
sys.path.insert(0, str(ROOT))


# ------------------------------------------------------------------------------------------------------------- measuring


@dataclass
class Timing:
    """Samples of one thing, in seconds."""

    samples: list[tuple[float, bool]] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        quiet = [seconds for seconds, is_quiet in self.samples if is_quiet]
        return quiet or [seconds for seconds, _ in self.samples]

    @property
    def quiet(self) -> int:
        return sum(is_quiet for _, is_quiet in self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        return min(self.seconds)

    @property
    def high(self) -> float:
        return max(self.seconds)

    def plain(self) -> dict[str, Any]:
        return {
            "median_s": round(self.median, 5), "min_s": round(self.low, 5), "max_s": round(self.high, 5),
            "quiet": self.quiet, "samples": len(self.samples),
        }  # fmt: skip

    def text(self) -> str:
        """Median (min to max), with a mark where the machine was never quiet."""
        return f"{short(self.median)} ({short(self.low)}-{short(self.high)}){'' if self.quiet else ' NOISY'}"


def alternate(works: Mapping[str, Callable[[], Any]], rounds: int, *, patience: float = 15.0, warm: bool = True) -> dict[str, Timing]:
    """Time all of `works` in turn (A B C A B C ...), so that what the machine does falls on all alike."""
    timings = {name: Timing() for name in works}
    if warm:
        for work in works.values():
            work()
    for _ in range(3 * rounds):
        for name, work in works.items():
            timings[name].samples.append(sample(work, patience))
        if all(timing.quiet >= rounds for timing in timings.values()):
            break
    return timings


def sample(work: Callable[[], Any], patience: float) -> tuple[float, bool]:
    quiet = wait_for_quiet(patience)
    busy, own, start = busy_seconds(), own_seconds(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    foreign = (busy_seconds() - busy) - (own_seconds() - own)
    return seconds, quiet and foreign < max(0.03, 0.1 * seconds)  # the clock ticks in 0.01 s


def own_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def busy_seconds() -> float:
    """CPU time of all processes, and what the host took away, since boot."""
    with open("/proc/stat") as stat:
        fields = [int(value) for value in stat.readline().split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(patience: float) -> bool:
    """Wait until the whole machine has been idle for 0.3 s, at most `patience` seconds."""
    give_up = time.monotonic() + patience
    while time.monotonic() < give_up:
        before = busy_seconds()
        time.sleep(0.3)
        if busy_seconds() - before < 0.06:
            return True
        time.sleep(0.3)
    return False


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def in_child(script: str | Path, *words: str, timeout: float = 900.0) -> dict[str, Any]:
    """The JSON object that `python script words...` prints last: a fresh process, for peak memory and cold starts."""
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=timeout, env=environment(), check=False
    )
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def environment(**changes: str) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def gemm_gflops(size: int = 2048, rounds: int = 5) -> float:
    """Best rate of a square float32 matrix product with torch's present number of threads: what the machine can do."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    best = min(sample(lambda: a @ b, 3.0)[0] for _ in range(rounds))
    return 2 * size**3 / best / 1e9


# ------------------------------------------------------------------------------------------------------------- reporting


def machine() -> dict[str, Any]:
    versions = {}
    for name in ("torch", "numpy", "safetensors", "decord", "av"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    processor = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor, "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.platform(), "python": platform.python_version(), **versions,
    }  # fmt: skip


@dataclass
class Report:
    """Rows of one benchmark: JSON lines and a Markdown part under results/, and the table on the terminal."""

    name: str
    title: str
    smoke: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def row(self, **values: Any) -> None:
        self.rows.append({"benchmark": self.name, **values})
        print(json.dumps(self.rows[-1]), flush=True)

    def text(self, line: str) -> None:
        self.parts.append(line)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
        self.parts.append("\n".join(lines))

    def write(self, note: str = "") -> None:
        """`note`: what was equal and what was not, for the reader of the table."""
        about = machine()
        words = [Path(word).name if word.startswith("/") else word for word in sys.argv]
        command = " ".join(["python", f"tests/benchmarks/{Path(words[0]).name}", *words[1:]])
        head = f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB; Python {about['python']}"
        versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "numpy", "safetensors", "decord", "av") if name in about)
        text = "\n\n".join([f"## {self.title}", f"`{command}`  ", f"{head}, {versions}, {time.strftime('%Y-%m-%d')}.", *self.parts])
        print(text + ("\n\n" + note if note else ""), file=sys.stderr)
        if self.smoke:
            return
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(text + ("\n\n" + note if note else "") + "\n")
        lines = [json.dumps(row) for row in [{"benchmark": self.name, "machine": about, "command": command}, *self.rows]]
        (RESULTS / f"{self.name}.jsonl").write_text("\n".join(lines) + "\n")


def cell(value: Any) -> str:
    if isinstance(value, Timing):
        return value.text()
    return short(value) if isinstance(value, float) else str(value)


def short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def verdict(value: float, goal: float, *, at_most: bool) -> str:
    """`0.58 (goal <= 0.6, reached)`."""
    reached = value <= goal if at_most else value >= goal
    return f"{short(value)} (goal {'<=' if at_most else '>='} {short(goal)}, {'reached' if reached else 'NOT reached'})"


def arguments(description: str | None, *, rounds: int = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="quiet samples wanted per point")
    parser.add_argument("--patience", type=float, default=15.0, help="seconds to wait for a quiet machine per sample")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--smoke", action="store_true", help="the smallest form, to see that it runs; nothing is written")
    return parser


# ------------------------------------------------------------------------------------------------------- models and batches


def resolved_model(preset: str, *overrides: str) -> Any:
    """(ModelConfig, ClipGeometry) of a preset with recipe overrides, at the default geometry."""
    from mirasol_cli.config.reader import parse_recipe

    text = f"schema: 1\nname: benchmark\ndata: {{dataset: synthetic}}\nmodel: {{preset: {preset}}}\n"
    recipe = parse_recipe(text, "benchmark.yaml", list(overrides))
    return recipe.model, recipe.clip


def random_media(geometry: Any, clips: int, device: str = "cpu") -> Any:
    """A `MediaBatch` of noise in which all is valid."""
    import torch

    from mirasol_cli.model.batch import MediaBatch

    def pixels(*shape: int) -> Any:
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    chunks, audio = geometry.chunks, geometry.audio
    return MediaBatch(
        tubes=tuple(pixels(clips, chunks, n, t.numbers_per_token) for n, t in zip(geometry.tube_tokens, geometry.tubes, strict=True)),
        mel_BTZS=torch.randn(clips, chunks, audio.n_mels, audio.columns, device=device),
        thumbnails=pixels(clips, chunks, 4, 32, 32, 3),
    )


def random_text(clips: int, questions: int, vocabulary: int, *, length: int = 32, target: int = 4, device: str = "cpu") -> Any:
    """Texts of `length` tokens, the last `target` of which carry loss."""
    import torch

    from mirasol_cli.model.batch import TextBatch

    tokens = torch.randint(3, vocabulary, (clips, questions, length), device=device)
    carries = (torch.arange(length, device=device) >= length - target).expand(clips, questions, -1)
    return TextBatch(tokens_BQL=tokens, valid_BQL=torch.ones_like(tokens, dtype=torch.bool), target_BQL=carries)
