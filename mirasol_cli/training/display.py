"""Progress of a training run: a live panel or plain lines, TensorBoard and W&B."""

from __future__ import annotations

import itertools
import math
import re
import sys
import time
from collections import deque
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import EnvironmentProblem
from mirasol_cli.runtime.console import tell

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: list[float], width: int = 40) -> str:
    """The values as bars of eight heights, averaged down to at most `width`; not-finite ones are left out."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    if len(values) > width:
        edges = [len(values) * i // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    return "".join(_BARS[int((value - low) / (high - low) * 7.999)] if high > low else _BARS[0] for value in values)


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour; from two days on in days, from two years on in years."""
    total = int(seconds)
    for unit, length in (("years", 365 * 86400), ("days", 86400)):
        if total >= 2 * length:
            return f"{total / length:.3g} {unit}"
    hours, minutes, rest = total // 3600, total % 3600 // 60, total % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """Progress on stderr: a live panel on a terminal, one plain line per log interval elsewhere; silent on other processes."""

    def __init__(self, title: str, steps: int, start: int, *, main: bool):
        self.title, self.steps, self.main = title, steps, main
        self._first, self._began = start, time.monotonic()
        self._losses: deque[float] = deque(maxlen=400)
        self._line: Mapping[str, Any] = {}
        self._evaluation = ""
        self._live: Any = None

    def __enter__(self) -> Display:
        if self.main and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        if self.main:
            (self._live.console.print if self._live is not None else tell)(text)

    def train(self, line: Mapping[str, Any]) -> None:
        self._line = line
        self._losses.append(float(line["loss"]))
        if self._live is not None:
            self._live.update(self._panel())
        elif self.main:
            parts = "  ".join(f"{key[5:]} {line[key]:.4g}" for key in line if key.startswith("loss_"))
            tell(
                f"step {line['step']}/{self.steps}  loss {line['loss']:.4f}  {parts}  lr {line['lr']:.2e}  "
                f"{line['clips_per_s']:.1f} clips/s  left {self._left()}"
            )

    def evaluation(self, step: int, metrics: Mapping[str, float], best: bool) -> None:
        shown = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, (int, float)))
        self._evaluation = f"step {step}: {shown}" + ("  (best)" if best else "")
        if self._live is not None:
            self._live.update(self._panel())
        elif self.main:
            tell(f"validation at step {self._evaluation.removeprefix('step ')}")

    def _left(self) -> str:
        done = self._line["step"] - self._first
        return clock((time.monotonic() - self._began) / max(1, done) * (self.steps - self._line["step"]))

    def _panel(self) -> Any:
        from rich.panel import Panel
        from rich.table import Table

        grid, line = Table.grid(padding=(0, 2)), self._line
        if line:
            grid.add_row("step", f"{line['step']} / {self.steps}   left {self._left()}")
            grid.add_row("loss", f"{line['loss']:.4f}  {sparkline(list(self._losses))}")
            grid.add_row("parts", "  ".join(f"{key[5:]} {line[key]:.4g}" for key in line if key.startswith("loss_")))
            grid.add_row("speed", f"{line['clips_per_s']:.1f} clips/s  {line['questions_per_s']:.1f} questions/s")
            grid.add_row("waiting", f"{line['data_wait']:.0%} of the time waiting for data")
            grid.add_row("lr", f"{line['lr']:.2e}   gradient norm {line['gradient_norm']:.3g}")
        if self._evaluation:
            grid.add_row("validation", self._evaluation)
        return Panel(grid, title=self.title, title_align="left")


def check_loggers(recipe: Recipe) -> None:
    """Raises EnvironmentProblem if the recipe asks for TensorBoard or Weights & Biases and it is not installed."""
    for wanted, module, name in (
        (recipe.run.tensorboard, "tensorboard", "TensorBoard"),
        (recipe.run.wandb, "wandb", "Weights & Biases"),
    ):
        if wanted and find_spec(module) is None:
            raise EnvironmentProblem(f"run.{module}: {name} is not installed", f"pip install {module}")


class ExperimentLoggers:
    """TensorBoard and Weights & Biases, where the recipe asks for them; imported only then. To be closed whatever ends the run.

    A resumed run (`step` > 0) goes on in the same curves: TensorBoard drops what was written after `step`, W&B knows the run
    by its name and the time it was `started`.
    """

    def __init__(self, recipe: Recipe, path: Path, stage: str, *, step: int = 0, started: str = ""):
        self._board: Any = None
        self._wandb: Any = None
        check_loggers(recipe)
        if recipe.run.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(path / "tensorboard"), purge_step=step + 1 if step else None)
        if recipe.run.wandb:
            import wandb

            run_id = re.sub(r"[^A-Za-z0-9_-]", "-", f"{recipe.name}-{started}")
            self._wandb = wandb.init(
                project="mirasol", name=recipe.name, id=run_id, dir=str(path), config=recipe.to_plain(), job_type=stage, resume="allow"
            )

    def __enter__(self) -> ExperimentLoggers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, line: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in line.items() if isinstance(value, (int, float)) and key != "step"}
        kind = line.get("kind", "train")
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(f"{kind}/{key}", value, line["step"])
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{key}": value for key, value in numbers.items()}, step=line["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
