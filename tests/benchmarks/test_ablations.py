"""The ablations' plan, statistics and verdicts; a run that is cut; and, in the long form, the runner itself, killed and called again."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ablation_training
from ablation_plan import BY_NAME, CONDITIONS, SAME_AS, next_job, plan, without_dependents
from ablation_report import (
    CLAIMS,
    EQUAL,
    NOISE,
    NOT_RUN,
    NOT_SEEN,
    ONE_SEED,
    SEEN,
    Claim,
    estimate,
    exact_match,
    judge,
    of_type,
    paired,
    points,
    report,
    smallest_effect,
    t_quantile,
    verdict,
)
from ablations import gathered
from mirasol_cli.checkpoints.runs import demo_checkpoint
from mirasol_cli.config.reader import load_recipe
from mirasol_cli.training.resume import changed_keys
from tests import synthetic

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


# ----------------------------------------------------------------------------------------------------------------- plan


def test_every_row_is_a_recipe_and_what_it_names_exists() -> None:
    assert len(BY_NAME) == len(CONDITIONS)
    for condition in CONDITIONS:
        load_recipe("demo-long", list(condition.overrides))
        assert {condition.reference, condition.after} <= {None, *BY_NAME}
    assert {name for claim in CLAIMS for name in (claim.better, claim.worse)} <= BY_NAME.keys()
    assert not SAME_AS.keys() & BY_NAME.keys()
    assert set(SAME_AS.values()) <= BY_NAME.keys()


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("none", {"model.combiner.kind"}), ("mean", {"model.combiner.kind"}), ("history", {"model.combiner.context"}),
        ("no-autoregression", {"model.latent.layers"}), ("no-latent-loss", {"loss.latent"}), ("no-reconstruction", {"loss.video"}),
        ("no-audio", {"data.audio"}), ("last", {"model.text.sees"}), ("ttm", {"model.combiner.kind"}),
    ],
)  # fmt: skip
def test_a_row_changes_one_thing(name: str, changed: set[str]) -> None:
    full, other = (load_recipe("demo-long", list(BY_NAME[row].overrides)) for row in ("full", name))
    assert set(changed_keys(full, other)) == changed


def test_a_cut_leaves_all_conditions_with_about_as_many_seeds() -> None:
    jobs = plan([c.name for c in CONDITIONS], seeds=5)
    for length in range(len(jobs) + 1):
        counts = [sum(job.condition is condition for job in jobs[:length]) for condition in CONDITIONS]
        assert max(counts) - min(counts) <= 1


def test_what_a_run_starts_from_comes_with_it_and_before_it() -> None:
    jobs = plan(["pretrained", "mean"], seeds=2)
    assert [job.condition.name for job in jobs] == ["mean", "captions", "pretrained"] * 2
    for place, job in enumerate(jobs):
        assert job.before is None or job.before in {earlier.key for earlier in jobs[:place]}


def test_a_run_waits_for_what_it_starts_from_and_others_pass_it() -> None:
    waiting = plan(["pretrained", "twice"], seeds=1)
    assert [job.condition.name for job in waiting] == ["twice", "captions", "pretrained"]
    waiting = waiting[2:]  # the others are at work
    assert next_job(waiting, done={("twice", 0)}) is None
    found = next_job(waiting, done={("captions", 0)})
    assert found is not None
    assert found.condition.name == "pretrained"


def test_a_failed_run_takes_along_just_what_starts_from_it() -> None:
    waiting = plan(["pretrained", "mean"], seeds=2)
    kept = without_dependents([waiting[0], *waiting[2:]], waiting[1].key)
    assert [job.key for job in kept] == [("mean", 0), ("mean", 1), ("captions", 1), ("pretrained", 1)]


# ----------------------------------------------------------------------------------------------------------- statistics


def test_quantiles_of_t() -> None:
    assert t_quantile(4) == 2.776  # five seeds
    assert t_quantile(30) == 2.042
    for freedom, known in ((31, 2.0395), (40, 2.0211), (120, 1.9799)):
        assert t_quantile(freedom) == pytest.approx(known, abs=1e-3)
    with pytest.raises(ValueError, match="two seeds"):
        t_quantile(0)


def test_interval_by_hand_and_its_coverage() -> None:
    found = estimate([0.1, 0.2, 0.3])
    assert found is not None
    assert found.mean == pytest.approx(0.2)
    assert found.half == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert estimate([]) is None
    rng, covered = random.Random(0), 0
    for _ in range(2000):
        found = estimate([rng.gauss(3, 2) for _ in range(5)])
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 3 <= found.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_smallest_effect_is_told_from_nothing_in_four_of_five_tries() -> None:
    rng, tries, seen = random.Random(1), 2000, 0
    for _ in range(tries):
        noise = [rng.gauss(0, 1) for _ in range(5)]
        effect = (2.776 + 0.941) * 1 / 5**0.5  # with the spread known
        found = estimate([value + effect for value in noise])
        assert found is not None
        assert found.low is not None
        seen += found.low > 0
    assert seen / tries == pytest.approx(0.8, abs=0.04)
    found = estimate([0.1, 0.2, 0.3, 0.2, 0.2])
    assert found is not None
    assert found.half is not None
    assert smallest_effect(found) == pytest.approx(found.half * (1 + 0.941 / 2.776))


def row(condition: str, seed: int, value: float, **more: Any) -> dict[str, Any]:
    return {
        "condition": condition, "seed": seed, "exact_match": value, "by_type": {"order": {"n": 5, "exact_match": value / 2}}, "n": 10,
        "steps": 400, "gflop": 3.0, "gflop_behind_encoder": 2.0, "combiner_gflop": 1.0, "parameters": 1_000_000,
        "curve": [[280, 0.5], [320, 0.499], [400, 0.4]],
        "cuts": {"own-chunk": {"exact_match": value - 0.2, "by_type": {"order": {"n": 5, "exact_match": value / 4}}}}, **more,
    }  # fmt: skip


def rows_of(**values: list[float]) -> list[dict[str, Any]]:
    return [row(name.replace("_", "-"), seed, value) for name, found in values.items() for seed, value in enumerate(found)]


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by far more than conditions; only the paired difference sees through that. Rows come in any order."""
    rows = rows_of(full=[0.5, 0.7, 0.9], mean=[0.48, 0.68, 0.88])
    rows.append(row("full", 7, 0.1))  # no partner
    for order in itertools.islice(itertools.permutations(rows), 0, 5000, 97):
        found = paired(order, "full", "mean", exact_match)
        assert found is not None
        assert (found.mean, found.half, found.seeds) == (pytest.approx(0.02), pytest.approx(0, abs=1e-9), 3)
    halved = paired(rows, "full", "mean", of_type("order"))
    assert halved is not None
    assert halved.mean == pytest.approx(0.01)
    assert paired(rows, "full", "ttm", exact_match) is None
    assert paired(rows, "full", "mean", of_type("count")) is None


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], NOT_RUN),
        ([0.1], ONE_SEED),
        ([0.02, 0.03, 0.025, 0.02, 0.03], SEEN),
        ([-0.02, -0.03, -0.025, -0.02, -0.03], NOT_SEEN),
        ([0.05, -0.04, 0.01, 0.02, -0.01], NOISE),
        ([0.0, 0.0, 0.0], NOISE),
    ],
)
def test_verdict(differences: list[float], expected: str) -> None:
    assert verdict(estimate(differences)) == expected


def test_at_least_equal_allows_two_points_less_and_no_more() -> None:
    equal = [-0.003, 0.004, 0.0, -0.002, 0.002]
    assert verdict(estimate(equal)) == NOISE
    assert verdict(estimate(equal), EQUAL) == SEEN
    assert verdict(estimate([value - 0.03 for value in equal]), EQUAL) == NOT_SEEN
    assert verdict(estimate([value - 0.02 for value in equal]), EQUAL) == NOISE


def test_a_claim_about_compute_needs_both() -> None:
    rows = [row("ttm", s, 0.8 + s / 100, gflop_behind_encoder=1.5) for s in range(3)] + [row("full", s, 0.7 + s / 100) for s in range(3)]
    claim = Claim("at least equal", "ttm", "full", cheaper=True)
    assert judge(claim, rows) == (SEEN, "+10.0 [+10.0, +10.0]; 1.5 against 2 GFLOP behind the encoder")
    dearer = [{**r, "gflop_behind_encoder": 2.5} if r["condition"] == "ttm" else r for r in rows]
    assert judge(claim, dearer)[0] == NOT_SEEN
    assert judge(claim, []) == (NOT_RUN, "")


def test_report_computes_every_verdict() -> None:
    rows = rows_of(full=[0.80, 0.82, 0.81], mean=[0.70, 0.72, 0.71], no_autoregression=[0.90, 0.92, 0.91])
    text = report(rows)
    assert "| full | the whole model | 3 | 81.0 ± 2.5 | 40.5 ± 1.2 | 2.000 | 1.000 | 1.00 | 0.2 % |" in text
    assert "| mean | full | -10.0 [-10.0, -10.0] | 0.0 | -5.0 [-5.0, -5.0] |" in text
    assert "| full | own-chunk | -20.0 [-20.0, -20.0] | -20.2 [-20.9, -19.6] |" in text
    assert "| a learned Combiner helps: against means | **seen** | full - mean | +10.0 [+10.0, +10.0] |" in text
    assert "| autoregression helps, the text seeing all latents | **not seen** |" in text
    assert "| pretraining helps, at equal totals of steps | **not run** | pretrained - twice |  |" in text
    assert report([]) == "Nothing has been run yet.\n"
    assert report([{"condition": "captions", "seed": 0}]) == "Nothing has been run yet.\n"
    assert points(estimate([0.01])) == "+1.0"
    assert "| 4 | Transformer, M = 2 | 1 | 50.0 | 2.000 | 3.000 |" in report([*rows, row("frontier-M2-4", 0, 0.5)])


def test_results_of_several_files_hold_every_run_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text(json.dumps(row("full", 0, 0.5)) + "\n")
    other.write_text(json.dumps(row("full", 1, 0.5)) + "\n")
    assert len(gathered([one, other])) == 2
    with pytest.raises(SystemExit, match="full, seed 0"):
        gathered([one, other, one])
    with pytest.raises(SystemExit, match=r"missing\.jsonl"):
        gathered([one, tmp_path / "missing.jsonl"])


# ------------------------------------------------------------------------------------------------------------- one run


def test_a_run_that_is_cut_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["clip.frames=16", "clip.chunks=2"]
    clip = load_recipe("demo-long", words).clip
    for number, split in enumerate(("train", "val", "test")):
        synthetic.write_split(tmp_path / "shards" / split, 6, geometry=replace(clip, views=1), first=10 * number)
    monkeypatch.setattr(ablation_training, "SAVE_EVERY", 2)
    overrides = [
        *BY_NAME["ttm"].overrides, *words, f"data.shards={tmp_path / 'shards'}", "train.steps=4", "train.global_batch_size=4",
        "model.combiner.num_outputs=2", "train.warmup_steps=1",
    ]  # fmt: skip

    def run(folder: str) -> dict[str, Any]:
        return ablation_training.perform(overrides, tmp_path / folder, demo_checkpoint(), tmp_path / "tokens", scored=True)

    whole = run("whole")
    assert [step for step, _ in whole["curve"]] == [2, 4]
    assert whole["n"] == sum(part["n"] for part in whole["by_type"].values()) == 12
    assert set(whole["cuts"]) == {"last-chunk", "own-chunk", "no-memory"}

    save = ablation_training.Run.save

    def save_and_fail(one: ablation_training.Run, path: Path) -> None:
        save(one, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ablation_training.Run, "save", save_and_fail)
        run("cut")
    assert run("cut") == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_runner_goes_on_and_ends_with_the_undisturbed_results(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MIRASOL_DATA": str(tmp_path / "data")}
    mirasol = [sys.executable, "-m", "mirasol_cli"]
    subprocess.run([*mirasol, "prepare", "demo-long", "data.clips=16", "--workers", "1"], env=env, check=True)

    def command(out: str) -> list[str]:
        words = ["--only", "full", "mean", "--seeds", "2", "--steps", "120", "--out", str(tmp_path / out)]
        return [sys.executable, str(HERE / "ablations.py"), *words]

    def results(out: str) -> dict[tuple[str, int], dict[str, Any]]:
        lines = (tmp_path / out / "results.jsonl").read_text().splitlines()
        found = {(r["condition"], r["seed"]): r for r in map(json.loads, lines)}
        assert len(found) == len(lines)
        return found

    for kill in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command("killed"), env=env)
        deadline = time.monotonic() + 300
        while not list((tmp_path / "killed" / "runs").glob(f"*/seed-{int(kill == signal.SIGKILL)}/state.pt")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(kill)
        assert process.wait(60) == (143 if kill == signal.SIGTERM else -9)
        assert not (tmp_path / "killed" / "report.md").exists()
    subprocess.run(command("killed"), env=env, check=True)
    before = (tmp_path / "killed" / "results.jsonl").stat().st_mtime_ns
    subprocess.run(command("killed"), env=env, check=True)  # nothing is left to do
    assert (tmp_path / "killed" / "results.jsonl").stat().st_mtime_ns == before
    subprocess.run(command("undisturbed"), env=env, check=True)
    assert results("killed") == results("undisturbed")
    assert len(results("killed")) == 4

    other = subprocess.run([*command("killed"), "--steps", "7"], env=env, check=False, capture_output=True, text=True)
    assert other.returncode == 1
    assert "choose another --out" in other.stderr
