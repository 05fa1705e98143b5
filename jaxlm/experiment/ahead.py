"""What a run computes with, compiled while it reads weights and opens files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm.data.loader import Loader
from jaxlm.experiment.prepare import Prepared, loader
from jaxlm.train.evaluator import Evaluator
from jaxlm.train.objective import task_objective
from jaxlm.train.state import States
from jaxlm.train.step import Step, make_step


@dataclass(frozen=True)
class Programs:
    """The step and the evaluator of a run, and the batches.

    When ``scoring`` and ``training`` are done, their first call has nothing left to
    compile. Of what went wrong there, that call says it again.
    """

    step: Step
    loader: Loader
    evaluator: Evaluator
    scoring: Sequence[Future[Any]]
    training: Sequence[Future[Any]]


def compile_ahead(run: Prepared, states: States, *, new: bool) -> Programs:
    """Begin to compile, in a thread, what the run is to call first.

    Where a run is not ``new``, the phase that it is in is not known yet. Tracing is
    done here: it is Python, of which two threads run no faster.
    """
    step, batches = compiled_step(run, states), loader(run)
    evaluator = run.parts.evaluator()

    def compile(lowered: jax.stages.Lowered) -> None:
        with jax.set_mesh(run.parts.mesh):  # is this thread's own, and in jax's key
            lowered.compile()

    pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
    scoring, training = list[Future[Any]](), list[Future[Any]]()
    for split in ("validation", "test"):
        if new and run.parts.config.evaluate.at_start and split in run.data:
            lowered = evaluator.lower(run.parts.abstract_params, run.data[split])
            scoring.append(pool.submit(compile, lowered))
    if new or len(run.phases.begins) == 1:
        _, batch = batches.make(0)
        lowered = step.lower(states.abstract(0), batch)
        training.append(pool.submit(compile, lowered))
    pool.shutdown(wait=False)
    return Programs(step, batches, evaluator, scoring, training)


def compiled_step(run: Prepared, states: States) -> Step:
    """The step of the run's task, compiled when it is first taken in a phase."""
    parts = run.parts
    objective = task_objective(parts.task, parts.model.apply)
    step = make_step(objective, states.optimizer, parts.config.train.accumulation)
    return jax.jit(step, donate_argnums=0)
