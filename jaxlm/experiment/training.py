"""A whole training run: prepare, resume or begin, fit, test, report."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import config as configs
from jaxlm.core.door import writable_directory
from jaxlm.core.errors import UserError
from jaxlm.core.mesh import make_mesh, replicated
from jaxlm.core.schema import flatten, to_dict
from jaxlm.data import sources
from jaxlm.data.dataset import Dataset
from jaxlm.data.loader import Loader
from jaxlm.data.plan import RunPlan, most_segments, plan_run
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.wiring import (
    Parts,
    label_set,
    load_records,
    make_parts,
    new_params,
    save_labels,
    save_model,
)
from jaxlm.models.pretrained import Checkpoint, open_checkpoint
from jaxlm.train.checkpoints import Checkpoints, choose
from jaxlm.train.evaluator import Evaluation, Evaluator
from jaxlm.train.loop import Diverged, Due, fit
from jaxlm.train.objective import task_objective
from jaxlm.train.optimizer import make_optimizer, optimizer_shardings
from jaxlm.train.progress import Progress, score_table
from jaxlm.train.records import RunRecords, read_results
from jaxlm.train.report import write_report
from jaxlm.train.schedule import make_schedule
from jaxlm.train.state import State
from jaxlm.train.step import make_step

OURS = (
    "config.json", "model", "checkpoints", "damaged", "metrics.jsonl", "tensorboard",
    "results", "predictions", "status.json", "report.html",
)
"""All that a run writes in its workdir, hence all that ``--overwrite`` deletes."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train: objects, data sets and the plan of its steps."""

    parts: Parts
    checkpoint: Checkpoint
    data: dict[str, Dataset]
    plan: RunPlan
    segments: int


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
    workdir = Path(workdir)
    claim(workdir, config, overwrite, say)
    run = prepare(config, workdir, say)
    with RunRecords(workdir) as records, jax.set_mesh(run.parts.mesh):
        try:
            return _train(run, workdir, records, say)
        except Diverged as problem:
            records.write_status("failed", 0, len(run.plan.steps), reason=str(problem))
            raise UserError(
                f"{problem}; lower config.optimizer.learning_rate; the checkpoints in"
                f" {workdir} are from before"
            ) from problem
        except BaseException as problem:
            reason = f"{type(problem).__name__}: {problem}"
            records.write_status("failed", 0, len(run.plan.steps), reason=reason)
            raise


def claim(
    workdir: Path, config: ExperimentConfig, overwrite: bool, say: Callable[[str], None]
) -> None:
    """Make the workdir this run's: empty it, resume it, or refuse it."""
    writable_directory(workdir)
    if overwrite:
        there = [workdir / name for name in OURS if (workdir / name).exists()]
        if there:
            say(f"--overwrite deletes {', '.join(str(path) for path in there)}")
        for path in there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    configs.refuse_difference(workdir, config)


def prepare(
    config: ExperimentConfig, workdir: Path, say: Callable[[str], None]
) -> Prepared:
    """Load the model's description and the data, and plan the steps."""
    mesh, notice = make_mesh(flatten(config.mesh))
    if notice:
        say(notice)
    checkpoint = open_checkpoint(config.model.pretrained)
    task = config.task.name
    loaded = {
        split: load_records(config.data, split, task=task)
        for split in ("train", "validation", "test")
        if getattr(config.data, split)
    }
    if "train" not in loaded:
        raise UserError("config.data.train: is empty; name a source to train on")
    labels = label_set(config, loaded["train"])
    parts = make_parts(config, mesh, checkpoint.directory, labels)
    data = {split: parts.encode(records) for split, records in loaded.items()}
    plan = plan_run(
        data["train"].lengths,
        epochs=config.train.epochs,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        max_length=config.data.max_length,
        packing=config.data.packing,
        seed=config.seed,
    )
    segments = -(-most_segments(plan.steps) // 8) * 8 if config.data.packing else 1
    save_model(workdir / "model", checkpoint, parts.tokenizer)
    save_labels(workdir / "model", labels)
    configs.write(workdir / configs.FILE, config, configs.versions())
    return Prepared(parts, checkpoint, data, plan, segments)


def describe(run: Prepared, say: Callable[[str], None]) -> None:
    """Say what is about to be trained on what."""
    config, parts = run.parts.config, run.parts
    count = sum(leaf.size for leaf in jax.tree.leaves(parts.model.shapes))
    say(f"model  {config.model.pretrained}, {count:,} parameters")
    axes = {axis: size for axis, size in parts.mesh.shape.items() if size > 1}
    kind = parts.mesh.devices.flat[0].device_kind
    say(f"device {parts.mesh.size} x {kind} {axes or ''}".rstrip())
    for split, data in run.data.items():
        say(f"{split:<10} {sources.describe(data.records)}")
        if data.truncated:
            say(f"{split:<10} {data.truncated:,} examples truncated to max_length")
    steps, windows = len(run.plan.steps), len(run.data["train"].windows)
    used = sum(len(row) for step in run.plan.steps for row in step.rows)
    filled = used / windows * run.data["train"].tokens
    places = sum(step.length * len(step.rows) for step in run.plan.steps)
    say(
        f"steps  {steps:,} of {config.train.batch_size} rows, examples_per_step"
        f" {used / steps:.1f}, {filled / places:.0%} of places are tokens"
    )


def _train(
    run: Prepared, workdir: Path, records: RunRecords, say: Callable[[str], None]
) -> dict[str, Any]:
    describe(run, say)
    config, parts, began = run.parts.config, run.parts, time.perf_counter()
    total = len(run.plan.steps)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, total)
    optimizer = make_optimizer(config.optimizer, schedule)
    evaluator = parts.evaluator()
    with Checkpoints(
        workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        score=scorer(config, parts.task.headline),
        clean=True,
    ) as checkpoints:
        state, resumed = begin(run, optimizer, checkpoints, say)
        start = int(state.step)
        records.rewind(start)
        records.write_status("running", start, total)
        if not resumed and config.evaluate.at_start:
            for split in ("validation", "test"):
                if split in run.data:
                    say(f"scoring {split} before the first step")
                    score(evaluator, state, run.data[split], split, records)
        with (
            Progress(total, start_step=start, epochs=len(run.plan.epoch_ends)) as progress,
            signals() as stopped,
        ):
            state = fit(
                state,
                jax.jit(
                    make_step(
                        task_objective(parts.task, parts.model.apply),
                        optimizer,
                        config.train.accumulation,
                    ),
                    donate_argnums=0,
                ),
                loader(run),
                Due(
                    run.plan,
                    config.evaluate,
                    config.checkpoint,
                    config.train.log_every_steps,
                ),
                schedule=schedule,
                evaluate=validate(run, evaluator, records),
                checkpoints=checkpoints,
                records=records,
                progress=progress,
                headline=parts.task.headline,
                stopped=stopped,
            )
        if int(state.step) < total:
            records.write_status("stopped", int(state.step), total, reason="signal")
            say(f"stopped and saved at step {int(state.step)} of {total}; the same command goes on")
            return {}
        return finish(run, state, checkpoints, evaluator, records, began, say)


def begin(
    run: Prepared,
    optimizer: Any,
    checkpoints: Checkpoints,
    say: Callable[[str], None],
) -> tuple[State, bool]:
    """The newest whole checkpoint's state, else a new one; and whether it is resumed."""
    parts, whole = run.parts, replicated(run.parts.mesh)
    moments = optimizer_shardings(
        optimizer, parts.model.shapes, parts.shardings, whole
    )
    placed = State(parts.shardings, {}, moments, whole, whole, whole)

    def fresh(params: Any) -> State:
        key = jax.random.key_data(jax.random.key(parts.config.seed + 1))
        zero = jnp.int32(0)
        return State(params, {}, optimizer.init(params), zero, key, zero)

    shapes = jax.eval_shape(fresh, parts.model.shapes)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        placed,
    )
    state = checkpoints.restore_latest(abstract, say)
    if state is not None:
        say(f"resuming from step {int(state.step)} of {len(run.plan.steps)}")
        return state, True
    params = new_params(parts, run.checkpoint)
    # Not donated: donating what came from numpy may alias host memory on CPU.
    return jax.jit(fresh, out_shardings=placed)(params), False


def loader(run: Prepared) -> Loader:
    """The batches of the plan, this process's rows of each."""
    return Loader(
        run.data["train"].windows,
        run.plan.steps,
        batch_size=run.parts.config.train.batch_size,
        segments=run.segments,
        fills=run.parts.task.fills,
        place=run.parts.place,
        workers=run.parts.config.data.workers,
        process=jax.process_index(),
        processes=jax.process_count(),
    )


def scorer(
    config: ExperimentConfig, headline: str
) -> Callable[[Mapping[str, Any]], float | None]:
    """What the best checkpoints are kept by: ``evaluate.metric``, greater being better."""
    name = config.evaluate.metric
    name = headline if name == "auto" else name
    sign = -1.0 if name.startswith("-") else 1.0
    name = name.removeprefix("-")

    def score(metrics: Mapping[str, Any]) -> float | None:
        value = metrics.get(name)
        return None if value is None else sign * value

    return score


def score(
    evaluator: Evaluator, state: State, data: Dataset, split: str, records: RunRecords
) -> Evaluation:
    """Evaluate and write down results and predictions."""
    evaluation = evaluator.evaluate(state.trainable, data)
    record(evaluation, split, int(state.step), records)
    return evaluation


def record(
    evaluation: Evaluation, split: str, step: int, records: RunRecords
) -> None:
    """Write results/, predictions/ and a line of metrics.jsonl."""
    metrics = dict(evaluation.metrics)
    if evaluation.confusion:
        labels, matrix = evaluation.confusion
        metrics["confusion"] = {"labels": labels, "matrix": matrix.tolist()}
    records.write_predictions(split, step, evaluation.predictions)
    records.write_results(split, step, metrics)
    records.append(step, split, **evaluation.metrics)


def validate(
    run: Prepared, evaluator: Evaluator, records: RunRecords
) -> Callable[[State], Mapping[str, Any] | None]:
    """What the loop calls when an evaluation is due."""

    def run_validation(state: State) -> Mapping[str, Any] | None:
        if "validation" not in run.data:
            return None
        found = score(evaluator, state, run.data["validation"], "validation", records)
        return found.metrics

    return run_validation


def finish(
    run: Prepared,
    state: State,
    checkpoints: Checkpoints,
    evaluator: Evaluator,
    records: RunRecords,
    began: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score the best checkpoint on the test set, and show it all."""
    total, final = int(state.step), "test" if "test" in run.data else "validation"
    best = choose(checkpoints, "best")[0]
    metrics: dict[str, Any] = {}
    if final in run.data:
        if best != total:
            abstract = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=sharding
                ),
                run.parts.model.shapes,
                run.parts.shardings,
            )
            trainable, frozen = checkpoints.restore_params(best, abstract, {})
            state = state._replace(
                trainable=trainable, frozen=frozen, step=jnp.int32(best)
            )
        evaluation = score(evaluator, state, run.data[final], final, records)
        metrics = evaluation.metrics
        say("")
        say(evaluation.report)
        before = [
            each
            for each in read_results(records.workdir)
            if each["split"] == final and each["step"] == 0
        ]
        with Progress(total) as progress:
            progress.show(score_table(before[0] if before else {}, metrics))
    seconds = round(time.perf_counter() - began, 1)
    device = run.parts.mesh.devices.flat[0].device_kind
    records.write_status(
        "finished", total, total, best=best, seconds=seconds, device=device
    )
    page = write_report(
        records.workdir,
        {**to_dict(run.parts.config), "versions": configs.versions()},
    )
    say(f"best checkpoint: step {best} of {total}; {seconds} s; report: {page}")
    return {**metrics, "step": best, "split": final}


@contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or Ctrl-C into a wish to stop at the next log line."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for name in names:
        signal.signal(name, ask)
    try:
        yield asked.is_set
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
