"""How the learning rate moves over the steps of a run."""

from __future__ import annotations

import math

import optax

from jaxlm.train.config import ScheduleConfig


def make_schedule(
    config: ScheduleConfig, learning_rate: float, steps: int
) -> optax.Schedule:
    """Step (from 0) to learning rate: a rise to the peak, then the named shape.

    With warmup, the first step already has a rate above 0: step n of w warmup steps has
    ``learning_rate * (n + 1) / w``, so that no step is spent on nothing, as one is in
    transformers (``n / w``). Their number is rounded up, as there.
    """
    # Not of 0.07 * 100, say, which is 7.000000000000001.
    warmup = math.ceil(round(config.warmup_ratio * steps, 9))
    rest = max(steps - warmup, 1)
    shapes = {
        "constant": optax.constant_schedule(learning_rate),
        "linear": optax.linear_schedule(learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(learning_rate, rest),
    }
    if warmup == 0:
        return shapes[config.name]
    rise = optax.linear_schedule(
        learning_rate / warmup, learning_rate, max(warmup - 1, 1)
    )
    return optax.join_schedules([rise, shapes[config.name]], [warmup])
