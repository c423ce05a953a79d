"""Run folder, panel, extras."""

import builtins
import io
import json
import math
import sys
from pathlib import Path

import pytest

from mirasol_cli.errors import Diverged, EnvironmentProblem, Interrupted
from mirasol_cli.training import run_log
from tests import synthetic

LINE = {"step": 10, "kind": "train", "loss": 2.5, "loss_text": 0.25, "lr": 1e-3, "gradient_norm": 3.0, "clips_per_s": 4.0,
        "questions_per_s": 8.0, "data_wait": 0.1}  # fmt: skip


def folder(tmp_path: Path) -> run_log.RunFolder:
    return run_log.RunFolder(tmp_path / "run", synthetic.recipe(tmp_path / "run", tmp_path), "finetune", 1)


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


def test_not_finite_numbers_are_null(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.begin("", 0)
    run.append({"step": 1, "loss": math.nan, "norm": math.inf})
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "norm": None}


def test_sparkline_and_clock() -> None:
    assert run_log.sparkline([3, 2, 1]) == "█▄▁"
    assert run_log.sparkline([1.0, math.nan, 1.0]) == "▁▁"
    assert run_log.sparkline([]) == ""
    assert len(run_log.sparkline([float(i) for i in range(1000)], width=40)) == 40
    assert run_log.clock(59.9) == "0:59"
    assert run_log.clock(3661) == "1:01:01"


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with run_log.Display("finetune x", 100, 0, main=True) as display:
        display.train(LINE)
        display.evaluation(10, {"exact_match": 0.5}, best=True)
    out, err = capsys.readouterr()
    assert out == ""  # stdout belongs to --json
    assert "step 10/100  loss 2.5000  text 0.25" in err
    assert "validation at step 10: exact_match 0.5  (best)" in err
    with run_log.Display("finetune x", 100, 0, main=False) as display:
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
    with run_log.Display("finetune x", 100, 0, main=True) as display:
        display.note("trained a vocabulary")
        for step in range(1, 11):
            display.train({**LINE, "step": step, "loss": 5.0 - step / 10})
        display.evaluation(10, {"exact_match": 0.5}, best=True)
    shown = screen.getvalue()
    for expected in ("finetune x", "10 / 100", "4.0000", "█", "▁", "8.0 questions/s", "exact_match 0.5", "(best)", "trained a vocabulary"):
        assert expected in shown, expected


@pytest.mark.parametrize(("key", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, module: str) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):  # type: ignore[no-untyped-def]
        if name == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentProblem, match=f"run.{key}") as caught:
        run_log.Extras(synthetic.recipe(tmp_path / "run", tmp_path, f"run.{key}=true"), tmp_path, "finetune")
    assert f"pip install {key}" in (caught.value.hint or "")


def test_status_of_every_end() -> None:
    assert run_log.status_of(Diverged("")) == ("diverged", 6)
    assert run_log.status_of(Interrupted("", 143)) == ("interrupted", 143)
    assert run_log.status_of(EnvironmentProblem("")) == ("failed", 5)
    assert run_log.status_of(KeyboardInterrupt()) == ("interrupted", 130)
    assert run_log.status_of(ValueError()) == ("failed", 1)
