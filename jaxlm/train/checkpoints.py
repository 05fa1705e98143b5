"""Checkpoints by Orbax: the whole state, asynchronous, the last few and the best few.

A checkpoint ``<step>`` holds two items, ``params`` (what a model needs) and ``training``
(what only training needs), each with fingerprints of its arrays: a file that rots is
noticed when it is read, on whatever layout it is read.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxlm.core.errors import UserError
from jaxlm.train.fingerprint import fingerprints
from jaxlm.train.state import State

PARAMS, TRAINING = "params", "training"
DAMAGED = "damaged"


class Damaged(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


class Checkpoints:
    """The checkpoints of one run, under ``directory``.

    ``score`` turns the metrics of an evaluation into the figure that the best are kept
    by, greater being better; None for metrics that lack it. ``clean`` removes what a
    killed save left behind: for the run itself alone, never for its readers.
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
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.directory, self.score = directory, score
        policies = ocp.training.preservation_policies
        self._manager = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(
                1
            ),
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_last),
                    policies.BestN(
                        get_metric_fn=self._rank,
                        n=keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
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
        self._manager.reload()

    def best(self) -> int | None:
        """The step with the best score, the earliest of equals; None if none has one."""
        scored = [
            (self._rank(each.metrics), -each.step) for each in self._manager.checkpoints
        ]
        scored = [each for each in scored if each[0] > -math.inf]
        return -max(scored)[1] if scored else None

    def save(self, state: State, metrics: Mapping[str, float] | None = None) -> None:
        """Begin to save; the state may be donated as soon as this returns."""
        step = int(state.step)
        if step in self.steps():
            return
        items = {
            name: {"arrays": part, "fingerprints": self._fingerprints(part)}
            for name, part in split(state).items()
        }
        plain = {name: float(value) for name, value in (metrics or {}).items()}
        self._manager.save_checkpointables_async(
            step, items, metrics=plain or None, force=True
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

        A damaged checkpoint is moved beside the others, to ``damaged/``, and not deleted.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step, abstract)
            except Damaged as problem:
                aside = self.set_aside(step)
                say(
                    f"checkpoint {step} is damaged ({problem}); moved to {aside},"
                    " the one before it is tried"
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
        self._manager.reload()
        return target

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
        try:
            found = self._manager.load_checkpointables(step, asked)
        except Exception as problem:  # Orbax and TensorStore raise many kinds
            raise Damaged(_brief(problem)) from problem
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


def _brief(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {text[:160]}"
