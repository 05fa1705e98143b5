"""Checkpoints by Orbax: the whole state, asynchronous, the last few and the best few.

A checkpoint ``<step>`` holds two items, ``params`` (what a model needs) and
``training`` (what only training needs), each with fingerprints of its arrays: a file
that rots is noticed when it is read, on whatever layout it is read.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxlm.core.errors import UserError
from jaxlm.train.damage import attempt, metrics_problem, with_checksum
from jaxlm.train.fingerprint import fingerprints
from jaxlm.train.state import State

PARAMS, TRAINING = "params", "training"
DAMAGED = "damaged"


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those saved."""


class Checkpoints:
    """The checkpoints of one run, under ``directory``.

    ``score`` turns the metrics of an evaluation into the figure that the best are kept
    by, greater being better; None for metrics that lack it. ``clean`` removes what a
    killed save left behind: for the run itself alone, never for its readers.

    Raises:
      UserError: without ``clean``, a checkpoint's metrics cannot be read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int = 1,
        keep_best: int = 0,
        score: Callable[[Mapping[str, Any]], float | None] = lambda _: None,
        clean: bool = False,
    ):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # we report by ourselves
        self.directory, self.score, self._clean = directory, score, clean
        self._manager: Any = None
        self._moved = self._check_metrics()
        # Any: Orbax's own annotations do not fit one another.
        decisions: Any = ocp.training.save_decision_policies
        self._manager = ocp.training.Checkpointer(
            str(directory.absolute()),
            save_decision_policy=decisions.FixedIntervalPolicy(1),
            preservation_policy=_Keep(keep_last, keep_best, self._rank),
            cleanup_tmp_directories=clean,
        )
        self._fingerprints = jax.jit(fingerprints)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that are on disk, oldest first."""
        return [each.step for each in self._manager.checkpoints]

    def reload(self) -> None:
        """Look again at what is on disk; another process may write there."""
        self._moved += self._check_metrics()
        self._manager.reload()

    def best(self) -> int | None:
        """The step of the best score, the earliest of equals; None if none has one."""
        return next(iter(_ranked(self._manager.checkpoints, self._rank)), None)

    def save(self, state: State, metrics: Mapping[str, float] | None = None) -> None:
        """Begin to save; the state may be donated as soon as this returns."""
        step = int(state.step)
        if step in self.steps():
            return
        items = {
            name: {"arrays": part, "fingerprints": self._fingerprints(part)}
            for name, part in split(state).items()
        }
        self._manager.save_checkpointables_async(
            step, items, metrics=with_checksum(metrics or {}) or None, force=True
        )

    def wait(self) -> None:
        """Until all that was saved is on disk."""
        self._manager.wait()

    def restore(self, step: int, abstract: State) -> State:
        """The whole state at a step; ``abstract`` has shapes, dtypes and shardings.

        Raises:
          Damaged: it cannot be read, or its arrays are not those that were saved.
        """
        return join(self._load(step, split(abstract)))

    def restore_params(self, step: int, trainable: Any, frozen: Any) -> tuple[Any, Any]:
        """Parameters alone; see ``restore``."""
        part = self._load(step, {PARAMS: {"trainable": trainable, "frozen": frozen}})
        return part[PARAMS]["trainable"], part[PARAMS]["frozen"]

    def restore_latest(
        self, abstract: State, say: Callable[[str], None]
    ) -> State | None:
        """The newest state that is whole, or None; damaged ones are reported.

        A damaged checkpoint is not deleted but moved, to ``damaged/`` in the workdir.

        Raises:
          UserError: there were checkpoints, and all were damaged.
        """
        for moved in self._moved:
            say(moved)
        self._moved.clear()
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                return self.restore(step, abstract)
            except Damaged as problem:
                say(f"{self._move(step, problem)}, the one before it is tried")
                damaged.append(step)
        if damaged:
            raise UserError(
                f"{self.directory}: every checkpoint was damaged and is now in"
                f" {DAMAGED}/; the same command again starts from the beginning"
            )
        return None

    def set_aside(self, step: int) -> Path:
        """Move a checkpoint out of the way of a new one of the same step."""
        folder = self.directory.parent / DAMAGED
        folder.mkdir(exist_ok=True)
        target = folder / str(step)
        if target.exists():
            shutil.rmtree(target)
        (self.directory / str(step)).rename(target)
        if self._manager is not None:
            self._manager.reload()
        return target

    def _move(self, step: int, problem: object) -> str:
        aside = self.set_aside(step)
        return f"checkpoint {step} is damaged ({problem}); moved to {aside}"

    def _check_metrics(self) -> list[str]:
        """Find metrics that rotted, at which Orbax would fail or mistake the best.

        Raises:
          UserError: there are some and it is not for us to move them.
        """
        moved = []
        for path in sorted(self.directory.glob("*/metrics/metrics")):
            step = path.parts[-3]
            problem = metrics_problem(path) if step.isdecimal() else None
            if problem and not self._clean:
                raise UserError(
                    f"{path}: is damaged ({problem}); start jaxlm.main again, which"
                    f" moves it to {DAMAGED}/, or delete checkpoint {step}"
                )
            if problem:
                moved.append(self._move(int(step), problem))
        return moved

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        scalar = jax.tree.leaves(wanted)[0].sharding
        scalar = jax.sharding.NamedSharding(scalar.mesh, jax.sharding.PartitionSpec())
        asked = {
            name: {
                "arrays": part,
                "fingerprints": jax.tree.map(
                    lambda _: jax.ShapeDtypeStruct((), np.uint32, sharding=scalar), part
                ),
            }
            for name, part in wanted.items()
        }
        found, problem = attempt(
            lambda: self._manager.load_checkpointables(step, asked)
        )
        if problem is not None:
            raise Damaged(problem)
        arrays = {name: item["arrays"] for name, item in found.items()}
        saved = {name: item["fingerprints"] for name, item in found.items()}
        same = jax.tree.map(np.array_equal, self._fingerprints(arrays), saved)
        wrong = [
            jax.tree_util.keystr(path, simple=True, separator="/")
            for path, equal in jax.tree.leaves_with_path(same)
            if not equal
        ]
        if wrong:
            raise Damaged(f"arrays changed on disk: {', '.join(wrong[:3])}")
        return arrays

    def _rank(self, metrics: Any) -> float:
        value = self.score(metrics) if metrics else None
        return -math.inf if value is None or math.isnan(value) else value


class _Keep:
    """Orbax's preservation policy: the newest, and the best with a score."""

    def __init__(self, last: int, best: int, rank: Callable[[Any], float]):
        self.last, self.best, self.rank = last, best, rank

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        del context
        kept = {each.step for each in checkpoints[-self.last :]}
        kept.update(_ranked(checkpoints, self.rank)[: self.best])
        return [each.step in kept for each in checkpoints]


def _ranked(checkpoints: Sequence[Any], rank: Callable[[Any], float]) -> list[int]:
    """The steps that have a score, best first, the earliest of equals first."""
    scored = [(-rank(each.metrics), each.step) for each in checkpoints]
    return [step for value, step in sorted(scored) if value < math.inf]


def choose(checkpoints: Checkpoints, wanted: str) -> list[int]:
    """The steps that ``best``, ``last``, ``all`` or a number means.

    Raises:
      UserError: there is no such checkpoint.
    """
    steps = checkpoints.steps()
    if not steps:
        raise UserError(
            f"{checkpoints.directory}: no checkpoint yet; train with jaxlm.main first"
        )
    if wanted == "all":
        return steps
    if wanted == "last":
        return steps[-1:]
    if wanted == "best":
        best = checkpoints.best()
        return [steps[-1] if best is None else best]
    if not wanted.isdecimal() or int(wanted) not in steps:
        there = ", ".join(str(step) for step in steps)
        raise UserError(
            f"--step={wanted}: not there; allowed: best, last, all, {there}"
        )
    return [int(wanted)]


def split(state: State) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    whole = state._asdict()
    params = {name: whole.pop(name) for name in ("trainable", "frozen")}
    return {PARAMS: params, TRAINING: whole}


def join(items: Mapping[str, Any]) -> State:
    """The items of a checkpoint as a state."""
    return State(**items[PARAMS], **items[TRAINING])
