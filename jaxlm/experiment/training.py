"""A whole training run: prepare, resume or begin, fit, test, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import optax

from jaxlm.core import config as configs
from jaxlm.core.errors import UserError
from jaxlm.core.hosts import here
from jaxlm.core.joining import terminable
from jaxlm.core.mesh import replicated
from jaxlm.core.pages import give_back
from jaxlm.core.programs import keep_programs
from jaxlm.core.schema import ConfigError, flatten_dict, to_dict
from jaxlm.experiment.ahead import Ahead, compile_ahead
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.digests import DIGESTS
from jaxlm.experiment.ending import finish, show_again
from jaxlm.experiment.layout import settled
from jaxlm.experiment.parameters import new_params
from jaxlm.experiment.prepare import (
    Prepared,
    describe,
    describe_on_disk,
    phase_line,
    prepare,
)
from jaxlm.experiment.scoring import check_metric, score, scorer, validate
from jaxlm.experiment.signals import signals
from jaxlm.experiment.workdir import claim, empty
from jaxlm.train.checkpoints import Checkpoints
from jaxlm.train.evaluator import Evaluator
from jaxlm.train.loop import Diverged, Due, fit
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.progress import Progress
from jaxlm.train.recorded import read_status
from jaxlm.train.records import RunRecords
from jaxlm.train.schedule import make_schedule
from jaxlm.train.state import State, States


def train(
    config: ExperimentConfig,
    workdir: str | Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train by a config, resuming what the workdir holds; returns the final metrics.

    Raises:
      UserError: something in the config, the data or the workdir that a user can mend.
    """
    keep_programs()
    workdir = Path(workdir)
    hosts = here()
    check_policy(config)
    check_alike(config, workdir, overwrite)
    config = settled(config, None if overwrite else workdir, say)
    with claim(workdir, config, overwrite, say):
        if not overwrite and hosts.decide(lambda: is_finished(workdir)):
            return show_again(config, workdir, say)
        # One process compares with what the workdir has: it alone changes that.
        compared = workdir if hosts.first and not overwrite else None
        run = prepare(config, compared, say)
        check_metric(config, run.parts.task)
        with jax.set_mesh(run.parts.mesh):
            states = make_states(run)
            may_resume = not overwrite and hosts.decide(
                (workdir / "checkpoints").exists
            )
            with compile_ahead(run, states, new=not may_resume) as ahead:
                state = None if may_resume else first_state(run, states)
                # Only now: a config, or weights, that are refused cost no old run.
                if hosts.first:
                    if overwrite:
                        empty(workdir, say)
                    (workdir / DIGESTS).unlink(missing_ok=True)  # of the files before
                    # config.json before all else: it says that the rest is a run's.
                    configs.write(workdir / configs.FILE, config, configs.versions())
                    describe_on_disk(run, workdir)
                hosts.barrier()
                facts = {"examples_per_step": round(run.plan.examples_per_step, 2)}
                go_on = config.checkpoint.on_error == "go_on"
                with (
                    RunRecords(
                        workdir, hosts.first, facts, go_on=go_on, say=say
                    ) as records,
                    terminable(),
                ):
                    go = partial(
                        _train, run, states, ahead, state, workdir, records, say
                    )
                    return _watched(go, len(run.plan), workdir, records, say)


def is_finished(workdir: Path) -> bool:
    """Whether nothing is left to do there."""
    return (read_status(workdir) or {}).get("state") == "finished"


def check_policy(config: ExperimentConfig) -> None:
    """Refuse to go on without a checkpoint that only some processes could write.

    Raises:
      ConfigError: there are several, and ``checkpoint.on_error`` is ``go_on``.
    """
    if here().count > 1 and config.checkpoint.on_error == "go_on":
        raise ConfigError(
            "checkpoint.on_error",
            f"'go_on' is not allowed with {here().count} processes, of which some may"
            " have written their part; allowed: stop",
        )


def check_alike(config: ExperimentConfig, workdir: Path, overwrite: bool) -> None:
    """Refuse processes of unlike runs, each of which would wait for the others.

    Raises:
      UserError: they differ in more than how many threads read data.
    """
    values = flatten_dict(to_dict(config), "config.")
    values.pop("config.data.workers")
    flags = {"--workdir": str(workdir), "--overwrite": overwrite}
    here().alike(flags | values)


def make_states(run: Prepared) -> States:
    """What makes the states of a run, and its optimizer; nothing is computed yet."""
    parts, optimizer = run.parts, run.parts.config.optimizer
    return States(
        make_optimizer(optimizer, schedule_of(run)),
        run.phases,
        parts.model.shapes,
        parts.shardings,
        replicated(parts.mesh),
    )


def schedule_of(run: Prepared) -> optax.Schedule:
    """The learning rate of a run, by step."""
    config = run.parts.config
    peak = config.optimizer.learning_rate
    return make_schedule(config.schedule, peak, len(run.plan))


def first_state(run: Prepared, states: States) -> State:
    """The state before the first step.

    Raises:
      UserError: the pretrained weights are unsound, or do not fit the model.
    """
    params = new_params(run.parts, run.checkpoint)
    state = states.new(params, run.parts.config.seed + 1)
    del params
    give_back()
    return state


def _watched(
    go: Callable[[], dict[str, Any]],
    total: int,
    workdir: Path,
    records: RunRecords,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What ``go`` gives; its end stands in status.json however it comes."""

    def end(state: Literal["failed", "stopped"], step: int, reason: str) -> None:
        try:
            records.write_status(state, step, total, reason=reason)
        except OSError as problem:  # which must not hide why the run ends
            say(f"{problem.filename} is not written: {problem.strerror}")

    hosts = here()
    hosts.last_words(lambda reason: end("failed", reached(records), reason))
    try:
        return go()
    except Diverged as problem:
        end("failed", problem.step, str(problem))
        raise UserError(
            f"{problem}; lower config.optimizer.learning_rate; the checkpoints in"
            f" {workdir} are from before"
        ) from problem
    except (KeyboardInterrupt, SystemExit) as signal:
        end("stopped", reached(records), type(signal).__name__)
        raise
    except BaseException as problem:
        cause = hosts.cause(problem)
        end("failed", reached(records), f"{type(cause).__name__}: {cause}")
        if cause is problem:
            raise
        raise cause from problem


def reached(records: RunRecords) -> int:
    """The step of the last training line; 0 where the lines cannot be read."""
    try:
        lines = records.read()
    except UserError:
        return 0
    return max((line["step"] for line in lines if line["split"] == "train"), default=0)


def _train(
    run: Prepared,
    states: States,
    ahead: Ahead,
    state: State | None,
    workdir: Path,
    records: RunRecords,
    say: Callable[[str], None],
) -> dict[str, Any]:
    describe(run, say)
    config, parts = run.parts.config, run.parts
    total, headline = len(run.plan), parts.task.headline
    programs = ahead.programs
    evaluator = programs.evaluator
    with Checkpoints(
        workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        score=scorer(config, headline),
        clean=True,
        go_on=records.go_on,
        say=say,
    ) as checkpoints:
        resumed = False
        if state is None:
            state, resumed = begin(run, states, checkpoints, say)
        start = int(state.step)
        if records.enabled and not resumed:  # killed before it saved: all over
            (workdir / "metrics.jsonl").unlink(missing_ok=True)
        records.rewind(start if resumed else -1)
        if records.enabled and reached(records) < start:
            say(
                f"{workdir}/metrics.jsonl has no training line of step {start}: some"
                " are lost, which changes nothing but the curves"
            )
        elapsed = seconds_so_far(records)
        began = time.perf_counter() - elapsed
        records.write_status("running", start, total)
        if not resumed and config.evaluate.at_start:
            wait(ahead.scoring)
            score_before(run, evaluator, state, records, say)
        wait(ahead.training)
        with (
            Progress(
                total, start_step=start, epochs=len(run.plan.epoch_ends)
            ) as progress,
            signals() as stopped,
        ):
            state = fit(
                state,
                programs.step,
                programs.loader,
                Due(
                    run.plan,
                    config.evaluate,
                    config.checkpoint,
                    config.train.log_every_steps,
                ),
                schedule=jax.jit(schedule_of(run)),  # one program, not one for each +
                evaluate=validate(
                    run,
                    evaluator,
                    records,
                    progress.say,
                    lambda batch: (
                        not stopped.between()
                        and not stopped.while_waiting(programs.scores(batch))
                    ),
                ),
                checkpoints=checkpoints,
                records=records,
                progress=progress,
                headline=headline.removeprefix("-"),
                turns=turns(run, states, progress.say),
                elapsed=elapsed,
                stopped=stopped,
                ready=lambda number, batch: (
                    not stopped.while_waiting(programs.trains(number, batch))
                ),
            )
        if stopped.agreed() or int(state.step) < total:
            if int(state.step):
                say(
                    f"stopped and saved at step {int(state.step)} of {total}; started"
                    " again, it goes on"
                )
            raise stopped.error()
        return finish(run, state, checkpoints, evaluator, records, began, say)


def score_before(
    run: Prepared,
    evaluator: Evaluator,
    state: State,
    records: RunRecords,
    say: Callable[[str], None],
) -> None:
    """Score the held-out data before the first step."""
    for split in ("validation", "test"):
        if split in run.data:
            say(f"scoring {split} before the first step")
            score(evaluator, state, run.data[split], split, records)


def turns(
    run: Prepared, states: States, say: Callable[[str], None]
) -> dict[int, Callable[[State], State]]:
    """By the step after which each phase but the first begins: how it does."""

    def enter(state: State, phase: int) -> State:
        say(phase_line(run, phase))
        return states.enter(state, phase)

    later = list(enumerate(run.phases.begins))[1:]
    return {step: partial(enter, phase=phase) for phase, step in later}


def seconds_so_far(records: RunRecords) -> float:
    """How long a run has trained."""
    lines = records.read()
    seconds = [line.get("seconds") for line in lines if line["split"] == "train"]
    return max((each for each in seconds if each is not None), default=0.0)


def begin(
    run: Prepared,
    states: States,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
) -> tuple[State, bool]:
    """The newest whole checkpoint's state, or a new one; and whether it is resumed."""
    state = checkpoints.restore_latest(states.abstract, say)
    if state is not None:
        say(f"resuming from step {int(state.step)} of {len(run.plan)}")
        return state, True
    return first_state(run, states), False
