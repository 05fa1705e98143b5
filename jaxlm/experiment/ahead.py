"""What a run computes with, compiled while it reads weights and opens files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm.core.programs import COMPILER_OPTIONS
from jaxlm.data.loader import Loader
from jaxlm.experiment.prepare import Prepared, loader
from jaxlm.experiment.wiring import Parts
from jaxlm.train.evaluator import Evaluator
from jaxlm.train.objective import task_objective
from jaxlm.train.state import States
from jaxlm.train.step import Step, make_step


@dataclass(frozen=True)
class Programs:
    """The step and the evaluator of a run, and the batches.

    ``scoring`` and ``training`` are those programs that are compiled ahead. An error
    there is dropped: the call itself meets it again, if it matters.
    """

    step: Step
    loader: Loader
    evaluator: Evaluator
    scoring: Sequence[Future[Any]]
    training: Sequence[Future[Any]]


@contextmanager
def compile_ahead(run: Prepared, states: States, *, new: bool) -> Iterator[Programs]:
    """Begin to compile, in a thread, what the run is to call first.

    Where a run is not ``new``, its step is not known yet, hence neither its phase nor,
    unless it packs, the shape of its rows. Tracing is done here: it is Python, of which
    two threads run no faster.
    """
    config, alone = run.parts.config, len(run.phases.begins) == 1
    step, batches = compiled_step(run.parts, states), loader(run)
    evaluator = run.parts.evaluator()

    def compile(lowered: jax.stages.Lowered) -> None:
        with jax.set_mesh(run.parts.mesh):  # is this thread's own, and in jax's key
            lowered.compile()

    pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
    scoring, training = list[Future[Any]](), list[Future[Any]]()
    for split in ("validation", "test"):
        if new and config.evaluate.at_start and split in run.data:
            lowered = evaluator.lower(run.parts.abstract_params, run.data[split])
            scoring.append(pool.submit(compile, lowered))
    if new or (alone and config.data.packing):
        _, batch = batches.make(0)
        lowered = step.lower(states.abstract(0), batch)
        training.append(pool.submit(compile, lowered))
    try:
        yield Programs(step, batches, evaluator, scoring, training)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def compiled_step(parts: Parts, states: States) -> Step:
    """The step of a task, compiled when it is first taken in a phase."""
    objective = task_objective(parts.task, parts.model.apply)
    count = parts.accumulation
    step = make_step(objective, states.optimizer, count, parts.task.present)
    platform = parts.mesh.devices.flat[0].platform
    options = COMPILER_OPTIONS.get(platform)
    return jax.jit(step, donate_argnums=0, compiler_options=options)
