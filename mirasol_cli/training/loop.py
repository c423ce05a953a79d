"""The one training loop, for `pretrain` and `finetune` alike: the stages differ by recipe only.

A step, on every process:

    read its share of the global batch (the next ones are read ahead)
    count the items of each loss over all micro batches and processes
    forward and backward of each micro batch; gradients are summed over processes in the last one
    agree: did any process see a loss that is not finite, or a signal?
    clip, step the optimizer, update the averaged weights
    log, validate, save where it is time; stop where a signal asks for it
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mirasol_cli.checkpoints.folder import checkpoints_in, is_complete, score_of_validation
from mirasol_cli.checkpoints.load import empty_model, model_tensors
from mirasol_cli.checkpoints.runs import status_of
from mirasol_cli.config.schema import Recipe
from mirasol_cli.errors import DataError, Diverged, Interrupted, MirasolError
from mirasol_cli.files import write_json
from mirasol_cli.model.losses import Losses
from mirasol_cli.model.mirasol import Mirasol
from mirasol_cli.model.objectives import OBJECTIVES
from mirasol_cli.runtime.device import resolve_device
from mirasol_cli.runtime.distributed import World, gradient_sync, is_sharded, joined_world, whole_tensors
from mirasol_cli.runtime.launch import torchrun_kill_delay_s
from mirasol_cli.runtime.signals import SIGTERM, STOPS, SignalFlags
from mirasol_cli.text.tokenizer import Vocabulary
from mirasol_cli.training.data import MicroBatch
from mirasol_cli.training.display import Display, ExperimentLoggers
from mirasol_cli.training.flops import forward_flops
from mirasol_cli.training.memory import out_of_memory, peak_bytes, peak_flops_per_s
from mirasol_cli.training.optimizer import clip_gradients, set_rate
from mirasol_cli.training.setup import Run, save_run, started_run

DIAGNOSED_EVERY = 100
"""Steps between looks at the latents (effective rank and the like), which cost as much as some steps do."""
Validate = Callable[[Mirasol, Vocabulary, World], Mapping[str, float]]
"""Metrics of the model on held-out clips, the same on every process; all of them call it together. The best checkpoint is the one with
the highest `exact_match`, of equals that with the lowest `loss`, of equals the latest."""


def train(
    recipe: Recipe,
    *,
    stage: str,
    resume: bool = False,
    accept_data: bool = False,
    limit: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    validate: Validate | None = None,
) -> dict[str, Any]:
    """Train to `train.steps`, on this process of the process group that the environment describes.

    Args:
        stage: `pretrain` or `finetune`; written down, and checked on resume.
        resume: go on from the run's newest checkpoint; without one, start.
        accept_data: go on though the shards hold other data than before.
        limit: train on the first clips only (`data.limit`).
        device: auto, cpu, cuda or mps.
        threads: of torch on the CPU; None leaves torch's choice.
        validate: called on every process, with the model in evaluation mode and averaged weights where there are any.

    Returns:
        {"run": folder, "step": steps done, "metrics": of the last log line and validation}

    Raises:
        Interrupted: a signal asked to stop; a checkpoint was saved.
        Diverged: a loss or gradient was not finite; no weight has changed by it.
        MirasolError: as `started_run`; EnvironmentProblem where disk or memory is full.
    """
    if limit is not None:
        recipe = replace(recipe, data=replace(recipe.data, limit=limit))
    if threads is not None:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    with joined_world(where, recipe.run.process_group_timeout_s) as world, SignalFlags() as signals:
        return _run_to_end(recipe, stage, world, signals, validate, resume=resume, accept_data=accept_data)


def _run_to_end(
    recipe: Recipe, stage: str, world: World, signals: SignalFlags, validate: Validate | None, *, resume: bool, accept_data: bool
) -> dict[str, Any]:
    """A function of its own, so that the model and its communication are gone before the process group is."""
    with started_run(recipe, stage, world, resume=resume, accept_data=accept_data) as run, _outcome_written(run):
        with run.saver:
            metrics = _train(run, signals, validate)
        world.barrier()  # no process leaves while another still talks to it
    return {"run": str(run.folder.path), "step": run.step, "metrics": metrics}


@contextmanager
def _outcome_written(run: Run) -> Iterator[None]:
    """run.json says how the run ended, whatever ends it; out of memory and out of reach get messages that help."""
    try:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            problem = out_of_memory(error, run) or run.world.no_answer(error)
            if problem is None:
                raise
            raise problem from error
        except KeyboardInterrupt:
            newest = checkpoints_in(run.folder.checkpoints)
            raise Interrupted(
                f"stopped by a second Ctrl-C in step {run.step + 1} without saving",
                Interrupted.CTRL_C,
                f"resume after step {int(newest[-1].name.removeprefix('step-'))}" if newest else "there is no checkpoint yet",
            ) from None
    except BaseException as error:
        if run.world.is_main:
            status, code = status_of(error)
            text = error.message if isinstance(error, MirasolError) else f"{type(error).__name__}: {error}"
            run.folder.end(status, code, run.step, text)
        raise
    if run.world.is_main:
        run.folder.end("finished", 0, run.step)


def _train(run: Run, signals: SignalFlags, validate: Validate | None) -> dict[str, Any]:
    train, world = run.recipe.train, run.world
    share = world.local_slice(train.global_batch_size)
    extras = world.run_on_rank0(
        lambda: ExperimentLoggers(run.recipe, run.folder.path, run.stage, step=run.step, started=run.folder.started)
    )
    interval, metrics = MetricWindow(), run.folder.last_metrics() if world.is_main else {}
    run.model.train()
    with (
        extras or nullcontext(),
        Display(f"{run.stage} {run.recipe.name}", train.steps, run.step, main=world.is_main) as display,
        run.data.ahead(range(run.step, train.steps), share, world.device) as ahead,
    ):
        for note in run.notes:
            display.note(note)
        for batches in ahead:
            result = train_step(run, batches, signals)
            interval.add(result)
            if run.step % train.log_every == 0 or run.step == train.steps:
                for note in interval.empty_losses(run):
                    display.note(note)
                if extras is not None:  # the first process has them; what a line costs, the others do not pay
                    line = {"step": run.step, "kind": "train", **interval.line(run, result, ahead.waited_s)}
                    metrics.update(line)
                    run.folder.append(line)
                    extras.write(line)
                    display.train(line)
                    for note in slow_save(run):
                        display.note(note)
                interval, ahead.waited_s = MetricWindow(), 0.0
            validation, improved = None, False
            if validate is not None and train.eval_every and (run.step % train.eval_every == 0 or run.step == train.steps):
                validation = _validate(run, validate)
                score = score_of_validation(validation)
                improved = score is not None and (run.best is None or score >= run.best)  # of equals the latest
                run.best = score if improved else run.best
                metrics["validation"] = validation
                if extras is not None:
                    line = {"step": run.step, "kind": "validation", **validation}
                    run.folder.append(line)
                    extras.write(line)
                display.evaluation(run.step, validation, best=improved)
                interval.restart()
            if result.save_failed:
                run.saver.wait()  # raises, on every process
            if result.stop and run.step < train.steps:
                raise _stopped(run, result.stop, signals, validation)
            due = run.step % train.checkpoint_every == 0 or run.step == train.steps
            if due or improved or result.save:
                began = time.perf_counter()
                save_run(run, validation)
                interval.stood_still_s += time.perf_counter() - began
                interval.restart()
    return metrics


def slow_save(run: Run) -> Iterator[str]:
    """Where a save takes longer than is left after SIGTERM, one sentence that says so; once."""
    seconds, limit, setting = run.saver.seconds, run.recipe.run.stop_within_s, "run.stop_within_s (and the scheduler's warning)"
    if (delay := torchrun_kill_delay_s()) is not None and delay < limit:
        limit, setting = delay, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT, after which torchrun kills its processes"
    if seconds is not None and seconds > limit and not run.told_slow_save:
        run.told_slow_save = True
        yield f"a save takes {seconds:.0f} s, more than the {limit:g} s available after SIGTERM: raise {setting}"


def _stopped(run: Run, code: int, signals: SignalFlags, validation: Mapping[str, float] | None) -> Interrupted:
    """Save the step just done, if that is done before the scheduler kills; a save under way is waited for in any case."""
    run.saver.wait()
    asked, needed = signals.since_stop_s, run.saver.seconds or 0.0
    late = code == SIGTERM and run.saver.step is not None and asked + needed > run.recipe.run.stop_within_s
    if run.world.sum([float(late)])[0]:
        return Interrupted(
            f"stopped by {STOPS[code]} after step {run.step}; the newest checkpoint is of step {run.saver.step}: another one, which takes "
            f"about {needed:.0f} s, was not to be done within the {run.recipe.run.stop_within_s:g} s of run.stop_within_s",
            code,
            "resume with --resume; let the scheduler warn earlier (SLURM: --signal=TERM@SECONDS) and say so in run.stop_within_s",
        )
    if run.saver.step != run.step:
        save_run(run, validation)
        run.saver.wait()
    return Interrupted(f"stopped by {STOPS[code]} after step {run.step}; a checkpoint was saved", code, "resume with --resume")


# ------------------------------------------------------------------------------------------------------------- one step


@dataclass
class StepResult:
    """What one step tells, the same on every process but for `losses` and `text_shape`."""

    means: dict[str, float]  # loss parts over the global batch, of those that it holds anything for
    loss: float
    norm: float
    rate: float
    clips: int
    questions: int
    skipped: bool
    save: bool
    save_failed: bool  # on some process, the save under way
    stop: int  # exit code asked for by a signal, or 0
    losses: Losses  # of this process's last micro batch, for diagnostics
    text_shape: tuple[int, ...]  # B Q L of the same
    clipped: bool  # the gradient was longer than `train.max_grad_norm`
    shares: dict[str, float] | None  # of each loss in the encoders' gradient, where it was measured


def train_step(run: Run, batches: list[MicroBatch], signals: SignalFlags) -> StepResult:
    """One optimizer step on the global batch, of which `batches` are this process's share.

    Raises:
        Diverged: not finite, and `train.max_skipped_steps` allows no (further) skip.
    """
    train, world, device = run.recipe.train, run.world, run.world.device
    torch.manual_seed(step_seed(train.seed, run.step, world.rank))  # dropout needs no state in the checkpoint
    names = list(run.weights)
    local = [
        sum(float(OBJECTIVES[name].count(batch.media, batch.text, batch.extra, run.recipe.clip)) for batch in batches) for name in names
    ]
    *totals, questions = world.sum([*local, sum(batch.questions for batch in batches)])
    counts = {name: total or 1.0 for name, total in zip(names, totals, strict=True)}

    balance_due = train.balance_every > 0 and run.step % train.balance_every == 0
    shares: dict[str, float] | None = None
    sums = torch.zeros(len(batches), len(names), dtype=torch.float32, device=device)
    for number, batch in enumerate(batches):
        with gradient_sync(run.runner, last=number == len(batches) - 1):
            with torch.autocast(device.type, torch.bfloat16) if run.bf16 else nullcontext():
                media, text, extra = batch.on(device)
                losses = run.runner(media, text, run.weights, extra)
                # DDP and FSDP take the mean over processes; the loss is a sum over them.
                loss = losses.total(run.weights, counts) * world.size
            if balance_due and number == len(batches) - 1:
                shares = losses.gradient_shares(run.weights, counts)
            losses.tokens_BTND = None
            loss.backward()
        for name, part in losses.parts.items():
            sums[number, names.index(name)] = part.sum.detach()

    agreed = Agreement.reach(world, sums, signals, save_failed=run.saver.failed)
    means = {name: total / counts[name] for name, total, count in zip(names, agreed.sums, totals, strict=True) if count}
    norm = clip_gradients(run.model.parameters(), train.max_grad_norm)
    rate = set_rate(run.optimizer, run.step, train)
    skipped = any(agreed.bad) or not math.isfinite(norm)
    if skipped:
        run.optimizer.zero_grad()
        _not_finite(run, agreed.bad, len(batches))
    else:
        run.optimizer.step()
        run.optimizer.zero_grad()
        if run.ema is not None:
            run.ema.update(run.model, run.step)
        run.bad_steps = 0
    run.step += 1
    return StepResult(
        means=means,
        loss=math.nan if skipped else sum(run.weights[name] * mean for name, mean in means.items()),
        norm=norm,
        rate=rate,
        clips=train.global_batch_size,
        questions=int(questions),
        skipped=skipped,
        save=agreed.save,
        save_failed=agreed.save_failed,
        stop=agreed.stop,
        losses=losses,
        text_shape=batches[-1].text.tokens_BQL.shape,
        clipped=0 < train.max_grad_norm < norm,
        shares=shares,
    )


@dataclass(frozen=True)
class Agreement:
    """What all processes know of a step after its backward passes, by one sum over them."""

    sums: list[float]  # of every loss over the global batch; what is not finite is left out
    bad: list[bool]  # for every micro batch of every process, in rank order: a loss was not finite
    save: bool  # a signal asked some process for a checkpoint
    save_failed: bool  # the save under way has met an error on some process
    stop: int  # exit code that a signal asked some process for, or 0

    @staticmethod
    def reach(world: World, sums: Tensor, signals: SignalFlags, *, save_failed: bool = False) -> Agreement:
        """`sums`: of this process's [micro batches, losses]. All processes call this together."""
        micro_batches = len(sums)
        bad = [0.0] * (world.size * micro_batches)
        bad[world.rank * micro_batches : (world.rank + 1) * micro_batches] = (~torch.isfinite(sums).all(dim=1)).double().tolist()
        flags = [float(signals.save), float(save_failed), *(float(signals.stop == code) for code in STOPS)]
        signals.save = False
        own = [value if math.isfinite(value) else 0.0 for value in sums.sum(dim=0).double().tolist()]
        save, failed, *rest = world.sum([*flags, *bad, *own])
        stops, rest = rest[: len(STOPS)], rest[len(STOPS) :]
        return Agreement(
            sums=rest[len(bad) :],
            bad=[value > 0 for value in rest[: len(bad)]],
            save=save > 0,
            save_failed=failed > 0,
            stop=next((code for code, asked in zip(STOPS, stops, strict=True) if asked), 0),
        )


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of the model's own randomness (dropout, stochastic depth) in one step of one process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:7], "little")


def _not_finite(run: Run, bad: list[bool], micro_batches: int) -> None:
    """Write down what was in the batch; raise Diverged unless this step may be skipped. No weight has changed yet."""
    run.bad_steps += 1
    train, world = run.recipe.train, run.world
    path = run.folder.path / f"bad-step-{run.step + 1:08d}.json"

    def write() -> None:
        units = run.data.step_units(run.step)
        each = len(units) // world.size
        size = train.micro_batch_size or each
        rows = []
        for position, unit in enumerate(units):
            rank, place = divmod(position, each)
            found = bad[rank * micro_batches + place // size]
            rows.append({**run.data.describe(unit), "process": rank, "loss_not_finite": found})
        write_json(path, {"step": run.step + 1, "skipped_in_a_row": run.bad_steps, "clips": rows})

    world.run_on_rank0(write)
    if run.bad_steps > train.max_skipped_steps:
        what = "a loss" if any(bad) else "the gradient norm"
        raise Diverged(
            f"{what} is not finite in step {run.step + 1}; the step was not applied. The clips of the batch are listed in '{path}'",
            "resume with --resume and allow skipped steps (train.max_skipped_steps=3), or start another run (run.dir=...) from its "
            f"weights (init.checkpoint={run.folder.path}) with a lower train.lr"
            if any(is_complete(path) for path in checkpoints_in(run.folder.checkpoints))
            else "no checkpoint exists yet: start another run (run.dir=...) with a lower train.lr",
        )


# ---------------------------------------------------------------------------------------------------- validation, logging


def _validate(run: Run, validate: Validate) -> dict[str, float]:
    """The metrics, of which every process computes its share, on the averaged weights where there are any."""
    with _validated_model(run) as model, torch.no_grad():
        return {key: float(value) for key, value in validate(model, run.vocabulary, run.world).items()}


@contextmanager
def _validated_model(run: Run) -> Iterator[Mirasol]:
    """The model in evaluation mode with the weights that `eval` would use. All processes enter together.

    Of a sharded model every process gets a whole copy meanwhile, in the type that products are computed in: each answers other
    questions, and what one of them gathered by itself would leave its order of collectives different from the others'.
    """
    if is_sharded(run.model):
        weights = {**model_tensors(run.model), **(run.ema.values if run.ema is not None else {})}
        model = empty_model(run.recipe.model, run.recipe.clip, run.vocabulary.size, run.model.losses)
        model.load_state_dict(whole_tensors(weights, torch.bfloat16 if run.bf16 else None), assign=True)
        yield model.to(run.world.device).eval()
        return
    run.model.eval()
    if run.ema is not None:
        run.ema.swap(run.model)
    try:
        yield run.model
    finally:
        if run.ema is not None:
            run.ema.swap(run.model)
        run.model.train()


@dataclass
class MetricWindow:
    """Steps since the last log line."""

    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    stood_still_s: float = 0.0  # for saves
    steps: int = 0
    skipped: int = 0
    clipped: int = 0
    shares: dict[str, float] | None = None
    clips: int = 0
    questions: int = 0
    loss: float = 0.0
    means: dict[str, list[float]] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        now = time.perf_counter()
        self.seconds += now - self.began
        self.began = now
        self.clips += result.clips
        self.questions += result.questions
        if result.skipped:
            self.skipped += 1
            return
        self.steps += 1
        self.clipped += result.clipped
        self.shares = result.shares or self.shares
        self.loss += result.loss
        for name, mean in result.means.items():
            self.means.setdefault(name, []).append(mean)

    def empty_losses(self, run: Run) -> list[str]:
        """A sentence for every loss that has met nothing to learn from since the run began, once.

        Raises:
            DataError: that is so of all losses.
        """
        run.taught |= self.means.keys()
        wanted = list(run.weights)
        if self.steps and not run.taught:
            raise DataError(
                f"no loss ({', '.join(f'loss.{name}' for name in wanted)}) had anything to learn from in the first {run.step} steps",
                "train on other clips, or give another loss a weight",
            )
        new = [name for name in wanted if self.steps and name not in run.taught | run.told_empty]
        run.told_empty |= set(new)
        return [f"loss.{name} had nothing to learn from in the first {run.step} steps" for name in new]

    def restart(self) -> None:
        """Leave what just happened (a validation, a save) out of the speed."""
        self.began = time.perf_counter()

    def line(self, run: Run, result: StepResult, waited_s: float) -> dict[str, Any]:
        """What metrics.jsonl says about these steps: mean losses, rates per second, diagnostics of the last micro batch."""
        steps, seconds = max(1, self.steps), max(self.seconds, 1e-9)
        line: dict[str, Any] = {
            "loss": self.loss / steps if self.steps else math.nan,
            **{f"loss_{name}": sum(self.means[name]) / len(self.means[name]) for name in run.weights if name in self.means},
            "lr": result.rate, "gradient_norm": result.norm, "skipped_steps": self.skipped,
            "clipped_steps": self.clipped / steps, **{f"share_{name}": share for name, share in (self.shares or {}).items()},
            "clips_per_s": self.clips / seconds, "questions_per_s": self.questions / seconds,
            "data_wait": min(1.0, waited_s / seconds), "save_wait_s": self.stood_still_s, "peak_bytes": peak_bytes(run.world.device),
        }  # fmt: skip
        last = run.step == run.recipe.train.steps
        if not result.skipped and (run.diagnosed is None or last or run.step >= run.diagnosed + DIAGNOSED_EVERY):
            line.update(result.losses.diagnostics)
            run.diagnosed = run.step
        if (peak := peak_flops_per_s(run.world.device, run.bf16)) is not None:
            if run.clip_flops is None:
                questions, length = max(1, round(result.questions / result.clips)), result.text_shape[2]
                run.clip_flops = sum(forward_flops(run.model, **run.recipe.data.modalities, questions=questions, tokens=length).values())
            line["mfu"] = 3 * run.clip_flops * line["clips_per_s"] / (peak * run.world.size)
        return line
