"""One optimizer step, pure: losses are summed, weights are summed, one division."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.core.types import Batch, Losses
from jaxlm.train.objective import Objective
from jaxlm.train.state import State

Present = Callable[[Batch, jax.Array | None], Batch]
"""See ``Task.present``."""
Step = Callable[[State, Batch], tuple[State, dict[str, Any]]]


PRESENTED = 2**31 - 1
"""Folded into a step's key for ``present``; beyond the numbers of microbatches."""


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulation: int = 1,
    present: Present = lambda batch, key: batch,
    held: Callable[[State], State] = lambda state: state,
) -> Step:
    """Build ``step(state, batch) -> (state, figures)``.

    ``present`` is what a task makes of the whole batch first, by a key of the step;
    ``held`` tells the compiler how the state lies (``States.held``).

    Weights depend on the batch alone: they are summed over the whole global batch
    first, and every microbatch is divided by that figure. So 1, 4 or 8 microbatches or
    devices agree to rounding. ``figures`` are device scalars: ``losses`` and
    ``measures`` as sums and weights, the loss, the norm of the gradient, the tokens.
    """

    def step(state: State, batch: Batch) -> tuple[State, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        batch = present(batch, jax.random.fold_in(key, PRESENTED))
        if accumulation == 1:
            parts = _gradients(objective, state, batch, key, weights=None)
        else:
            parts = _accumulate(objective, state, batch, key, accumulation)
        loss, (losses, measures), gradients = parts
        with jax.named_scope("optimizer"):
            updates, moments = optimizer.update(
                gradients, state.optimizer, state.trainable
            )
            trainable = optax.apply_updates(state.trainable, updates)
        figures = {
            "loss": loss,
            "losses": losses,
            "measures": measures,
            "gradient_norm": optax.tree.norm(gradients),
            "tokens": batch["mask"].sum(),
        }
        state = state._replace(
            trainable=trainable, optimizer=moments, step=state.step + 1
        )
        return held(state), figures

    return step


def _gradients(
    objective: Objective,
    state: State,
    batch: Batch,
    key: jax.Array,
    weights: dict[str, jax.Array] | None,
) -> tuple[jax.Array, tuple[Losses, Losses], Any]:
    """The loss, its sums and its gradients over one microbatch.

    ``weights`` divide the sums; None where the microbatch is the whole batch.
    """

    def scalar(trainable: Any) -> tuple[jax.Array, tuple[Losses, Losses]]:
        losses, measures = objective(trainable, state.frozen, batch, key, state.step)
        whole = weights or {name: each.weight for name, each in losses.items()}
        loss: Any = sum(
            each.total / jnp.maximum(whole[name], 1e-8) for name, each in losses.items()
        )
        return loss, (losses, measures)

    (loss, sums), gradients = jax.value_and_grad(scalar, has_aux=True)(state.trainable)
    return loss, sums, gradients


def _accumulate(
    objective: Objective, state: State, batch: Batch, key: jax.Array, count: int
) -> tuple[jax.Array, tuple[Losses, Losses], Any]:
    """``_gradients`` over ``count`` microbatches, summed one after another."""
    weights = _weights(objective, state, batch, key)
    micros = jax.tree.map(lambda leaf: _cut(leaf, count), batch)

    def one(number: jax.Array, micro: Batch) -> Any:
        micro_key = jax.random.fold_in(key, number)
        return _gradients(objective, state, micro, micro_key, weights)

    def add(total: Any, each: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*each)), None

    first = jax.tree.map(lambda leaf: leaf[0], micros)
    shapes = jax.eval_shape(one, jnp.int32(0), first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(count), micros))[0]


def _weights(
    objective: Objective, state: State, batch: Batch, key: jax.Array
) -> dict[str, jax.Array]:
    """The weight of each loss over the global batch.

    Only weights are used of this call: they hang on the batch alone, so the compiler
    drops the forward pass.
    """
    losses, _ = objective(state.trainable, state.frozen, batch, key, state.step)
    return {name: each.weight for name, each in losses.items()}


def _cut(leaf: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...], each part having rows of every device."""
    return leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
