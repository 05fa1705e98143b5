"""What a run computes with, compiled in a thread: ahead, and while signals are heard.

Python hears no signal during a call that compiles, which may take longer than the
grace that SIGTERM gives. Who waits for a thread hears them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from jaxlm.core.programs import COMPILER_OPTIONS
from jaxlm.core.types import Batch
from jaxlm.data.loader import Loader
from jaxlm.experiment.prepare import Prepared, loader
from jaxlm.experiment.wiring import Parts
from jaxlm.train.evaluator import Evaluator
from jaxlm.train.objective import task_objective
from jaxlm.train.state import States
from jaxlm.train.step import make_step


class Compiler:
    """Compiles programs in a thread, one after another, each once.

    An error there is dropped: the call itself meets it again, if it matters.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._mesh = mesh
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._begun: dict[Hashable, Future[None]] = {}
        self._needed = set[Hashable]()

    def begin(
        self, key: Hashable, lower: Callable[[], jax.stages.Lowered]
    ) -> Future[None]:
        """Compile what ``lower`` gives, unless the program of this key has begun.

        Tracing is done here: it is Python, of which two threads run no faster.
        """
        if key not in self._begun:
            self._begun[key] = self._pool.submit(self._compile, lower())
        return self._begun[key]

    def need(
        self, key: Hashable, lower: Callable[[], jax.stages.Lowered]
    ) -> Future[None] | None:
        """As ``begin``, before the first call; None before the others."""
        if key in self._needed:
            return None
        self._needed.add(key)
        return self.begin(key, lower)

    def close(self) -> None:
        """Begin nothing more; what is being compiled is waited for by nobody."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, lowered: jax.stages.Lowered) -> None:
        with jax.set_mesh(self._mesh):  # is this thread's own, and in jax's key
            lowered.compile()


@dataclass(frozen=True)
class Programs:
    """The step and the evaluator of a run, its batches, and what compiles for them."""

    run: Prepared
    states: States
    step: jax.stages.Wrapped
    loader: Loader
    evaluator: Evaluator
    compiler: Compiler

    def trains(self, number: int, batch: Batch) -> Future[None] | None:
        """What to wait for before the step after ``number`` steps; None: nothing."""
        return self.compiler.need(*self.training(number, batch))

    def scores(self, batch: Batch) -> Future[None] | None:
        """What to wait for before a batch is scored; None: nothing."""
        return self.compiler.need(*self.scoring(batch))

    def training(
        self, number: int, batch: Batch
    ) -> tuple[Hashable, Callable[[], jax.stages.Lowered]]:
        """The key of the step after ``number`` steps, and how to have its program."""
        after = number + 1  # a phase begins with its first step

        def lower() -> jax.stages.Lowered:
            return self.step.lower(self.states.abstract(after), batch)

        return ("train", self.states.phases.at(after), _shapes(batch)), lower

    def scoring(
        self, batch: Batch
    ) -> tuple[Hashable, Callable[[], jax.stages.Lowered]]:
        """The key of what scores a batch, and how to have its program."""

        def lower() -> jax.stages.Lowered:
            return self.evaluator.lower(self.run.parts.abstract_params, batch)

        return ("score", _shapes(batch)), lower


def _shapes(batch: Batch) -> Hashable:
    return tuple((name, batch[name].shape) for name in sorted(batch))


@dataclass(frozen=True)
class Ahead:
    """The programs of a run, and those that are compiled ahead: to score, to train."""

    programs: Programs
    scoring: list[Future[None]]
    training: list[Future[None]]


@contextmanager
def compile_ahead(run: Prepared, states: States, *, new: bool) -> Iterator[Ahead]:
    """Begin to compile what the run is to call first.

    Where a run is not ``new``, its step is not known yet, hence neither its phase nor,
    unless it packs, the shape of its rows.
    """
    config, alone = run.parts.config, len(run.phases.begins) == 1
    compiler = Compiler(run.parts.mesh)
    programs = Programs(
        run,
        states,
        compiled_step(run.parts, states),
        loader(run),
        run.parts.evaluator(),
        compiler,
    )
    scoring, training = list[Future[None]](), list[Future[None]]()
    for split in ("validation", "test"):
        if new and config.evaluate.at_start and split in run.data:
            batch = programs.evaluator.first_batch(run.data[split])
            scoring.append(compiler.begin(*programs.scoring(batch)))
    if new or (alone and config.data.packing):
        _, batch = programs.loader.make(0)
        training.append(compiler.begin(*programs.training(0, batch)))
    try:
        yield Ahead(programs, scoring, training)
    finally:
        compiler.close()


def compiled_step(parts: Parts, states: States) -> jax.stages.Wrapped:
    """The step of a task, compiled when it is first taken in a phase."""
    objective = task_objective(parts.task, parts.model.apply)
    count = parts.accumulation
    step = make_step(
        objective, states.optimizer, count, parts.task.present, states.held
    )
    platform = parts.mesh.devices.flat[0].platform
    options = COMPILER_OPTIONS.get(platform)
    return jax.jit(step, donate_argnums=0, compiler_options=options)
