"""The optimizer: clip, AdamW, and which parameters decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.core.trees import flatten, unflatten
from jaxlm.core.types import Params
from jaxlm.train.config import OptimizerConfig

UNDECAYED = ("bias", "scale")
"""Last parts of names that never decay: biases and norm scales, as in BERT."""


def decay_mask(params: Params) -> dict[str, Any]:
    """True for the leaves that decay, by name."""
    return unflatten(
        {name: name.rpartition("/")[2] not in UNDECAYED for name in flatten(params)}
    )


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Global-norm clipping (arXiv:1211.5063), then AdamW (arXiv:1711.05101)."""
    parts = []
    if config.clip_norm is not None:
        parts.append(clip_by_global_norm(config.clip_norm))
    parts.append(
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    )
    return optax.chain(*parts)


def clip_by_global_norm(most: float) -> optax.GradientTransformation:
    """Gradients times ``most / norm`` where their norm is above ``most``.

    As that of optax, whose division of every element keeps XLA from fusing it into
    AdamW: the clipped gradients were then written and read once more.
    """

    def clip(gradients: Any, params: Any = None) -> Any:
        del params
        factor = most / jnp.maximum(optax.tree.norm(gradients), most)
        return jax.tree.map(lambda leaf: leaf * factor, gradients)

    return optax.stateless(clip)


def optimizer_shardings(
    optimizer: optax.GradientTransformation,
    shapes: Params,
    shardings: Params,
    otherwise: jax.sharding.Sharding,
) -> Any:
    """Where the optimizer's state lives: moments by their parameter, counts whole."""
    state = jax.eval_shape(optimizer.init, shapes)
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        state,
        shardings,
        transform_non_params=lambda _: otherwise,
    )


def with_schedule_at(state: Any, step: jax.Array) -> Any:
    """A new optimizer state whose learning rate is that of ``step`` i32[]."""

    def is_schedule(path: Any, _: Any) -> bool:
        return any(
            getattr(part, "tuple_name", None) == "ScaleByScheduleState" for part in path
        )

    return optax.tree.set(state, is_schedule, count=step)
