"""What is minimised: a task's losses of a model's outputs."""

from __future__ import annotations

from typing import Protocol

import jax

from jaxlm.core.types import Apply, Batch, Losses, Params, Task


class Objective(Protocol):
    """Losses to minimise, and sums to watch, of one microbatch.

    R-Drop, distillation and the like wrap one objective in another.
    """

    def __call__(
        self,
        trainable: Params,
        frozen: Params,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[Losses, Losses]: ...


def join(trainable: Params, frozen: Params) -> Params:
    """One tree of two that share no leaf."""
    if not frozen:
        return trainable
    joined = dict(trainable)
    for name, value in frozen.items():
        mine = joined.get(name)
        joined[name] = join(mine, value) if isinstance(mine, dict) else value
    return joined


def task_objective(task: Task, apply: Apply) -> Objective:
    """``task.losses(apply(params, batch, key))``, dropout on."""

    def objective(
        trainable: Params,
        frozen: Params,
        batch: Batch,
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[Losses, Losses]:
        del step
        outputs = apply(join(trainable, frozen), batch, key)
        return task.losses(outputs, batch), task.measures(outputs, batch)

    return objective
