"""Run folder, panel, extras."""

from __future__ import annotations

import io
import json
import math
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mirasol_cli.checkpoints import runs
from mirasol_cli.errors import Diverged, EnvironmentProblem, Interrupted, UsageError
from mirasol_cli.training import display as training_display
from mirasol_cli.training.loop import train
from tests import synthetic

LINE = {"step": 10, "kind": "train", "loss": 2.5, "loss_text": 0.25, "lr": 1e-3, "gradient_norm": 3.0, "clips_per_s": 4.0,
        "questions_per_s": 8.0, "data_wait": 0.1}  # fmt: skip


def folder(tmp_path: Path) -> runs.RunFolder:
    return runs.RunFolder(tmp_path / "run", synthetic.recipe(tmp_path / "run", tmp_path), "finetune", 1)


def test_metrics_are_cut_back_to_the_step_and_half_lines_dropped(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.begin("schema: 1\n", 0)
    for step in range(1, 6):
        run.append({**LINE, "step": step})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    run.begin("schema: 1\n", 3)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert run.last_metrics()["step"] == 3


def test_what_eval_wrote_is_no_run(tmp_path: Path) -> None:
    run = folder(tmp_path)
    (run.path / "eval" / "test").mkdir(parents=True)  # as `mirasol eval demo --checkpoint demo` leaves it
    run.check_unused()
    (run.path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="not empty"):
        run.check_unused()


def test_not_finite_numbers_are_null(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.begin("", 0)
    run.append({"step": 1, "loss": math.nan, "norm": math.inf})
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "norm": None}


def test_sparkline_and_clock() -> None:
    assert training_display.sparkline([3, 2, 1]) == "█▄▁"
    assert training_display.sparkline([1.0, math.nan, 1.0]) == "▁▁"
    assert training_display.sparkline([]) == ""
    assert len(training_display.sparkline([float(i) for i in range(1000)], width=40)) == 40
    assert training_display.clock(59.9) == "0:59"
    assert training_display.clock(3661) == "1:01:01"
    assert training_display.clock(86400 * 1.5) == "36:00:00"
    assert training_display.clock(86400 * 100) == "100 days"
    assert training_display.clock(837789 * 3600) == "95.6 years"


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with training_display.Display("finetune x", 100, 0, main=True) as display:
        display.train(LINE)
        display.evaluation(10, {"exact_match": 0.5}, best=True)
    out, err = capsys.readouterr()
    assert out == ""  # stdout belongs to --json
    assert "step 10/100  loss 2.5000  text 0.25" in err
    assert "validation at step 10: exact_match 0.5  (best)" in err
    with training_display.Display("finetune x", 100, 0, main=False) as display:
        display.train(LINE)
        display.note("quiet")
    assert capsys.readouterr().err == ""


def test_the_panel_on_a_terminal_shows_loss_speed_and_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with training_display.Display("finetune x", 100, 0, main=True) as display:
        display.note("trained a vocabulary")
        for step in range(1, 11):
            display.train({**LINE, "step": step, "loss": 5.0 - step / 10})
        display.evaluation(10, {"exact_match": 0.5}, best=True)
    shown = screen.getvalue()
    for expected in ("finetune x", "10 / 100", "4.0000", "█", "▁", "8.0 questions/s", "exact_match 0.5", "(best)", "trained a vocabulary"):
        assert expected in shown, expected


@pytest.mark.parametrize("key", ["tensorboard", "wandb"])
def test_missing_extras_are_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 4)
    monkeypatch.setattr(training_display, "find_spec", lambda module: None)
    with pytest.raises(EnvironmentProblem, match=f"^run.{key}: .* is not installed$") as caught:
        train(synthetic.recipe(tmp_path / "run", tmp_path / "shards", f"run.{key}=true"), stage="finetune", device="cpu")
    assert caught.value.exit_code == 5
    assert caught.value.hint == f"pip install {key}"
    assert not (tmp_path / "run").exists()  # so that the same command works once it is installed


class FakeBoard:
    """TensorBoard's writer, as far as it is used."""

    made: ClassVar[list[FakeBoard]] = []

    def __init__(self, folder: str, purge_step: int | None = None):
        self.folder, self.purge_step, self.closed = Path(folder), purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert not self.closed
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


class FakeWandb:
    """The module `wandb`, and the run that its `init` returns."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0

    def init(self, **named: Any) -> FakeWandb:
        self.runs.append(named)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    board, wandb = types.ModuleType("torch.utils.tensorboard"), FakeWandb()
    board.SummaryWriter = FakeBoard  # type: ignore[attr-defined]
    FakeBoard.made.clear()
    monkeypatch.setattr(training_display, "find_spec", lambda module: board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    return wandb


def test_a_run_writes_every_line_to_both_and_goes_on_in_the_same_curves(tmp_path: Path, extras: FakeWandb) -> None:
    synthetic.write_split(tmp_path / "shards" / "train", 4)
    words = ["run.tensorboard=true", "run.wandb=true", "train.steps=4", "train.checkpoint_every=2", "train.eval_every=2"]
    recipe = synthetic.recipe(tmp_path / "run", tmp_path / "shards", *words)

    def lose_the_second(model: object, vocabulary: object, world: object) -> dict[str, float]:
        if FakeBoard.made[0].scalars[-1][2] == 4:
            raise KeyboardInterrupt
        return {"exact_match": 0.5}

    with pytest.raises(Interrupted, match="second Ctrl-C"):
        train(recipe, stage="finetune", device="cpu", validate=lose_the_second)
    (board,) = FakeBoard.made
    assert (board.folder, board.purge_step, board.closed) == (tmp_path / "run" / "tensorboard", None, True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = {(name, step): value for name, value, step in board.scalars}
    for row in rows:
        numbers = {key: value for key, value in row.items() if key not in ("step", "kind")}
        assert numbers
        for key, value in numbers.items():
            assert told[f"{row['kind']}/{key}", row["step"]] == value
    assert told["validation/exact_match", 2] == 0.5
    assert [{f"{row['kind']}/{key}": row[key] for key in row if key not in ("step", "kind")} for row in rows] == [
        values for values, _ in extras.logged
    ]
    assert extras.finished == 1

    assert not (tmp_path / "run" / "checkpoints" / "step-00000004").exists()
    train(recipe, stage="finetune", device="cpu", resume=True)
    assert (FakeBoard.made[1].purge_step, FakeBoard.made[1].closed) == (3, True)
    first, second = extras.runs
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"]["train"]["steps"] == 4


def test_real_tensorboard_events_can_be_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    synthetic.write_split(tmp_path / "shards" / "train", 4)
    words = ["run.tensorboard=true", "train.steps=2"]
    train(synthetic.recipe(tmp_path / "run", tmp_path / "shards", *words), stage="finetune", device="cpu")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([row["loss"] for row in rows])


def test_status_of_every_end() -> None:
    assert runs.status_of(Diverged("")) == ("diverged", 6)
    assert runs.status_of(Interrupted("", 143)) == ("interrupted", 143)
    assert runs.status_of(EnvironmentProblem("")) == ("failed", 5)
    assert runs.status_of(KeyboardInterrupt()) == ("interrupted", 130)
    assert runs.status_of(ValueError()) == ("failed", 1)
