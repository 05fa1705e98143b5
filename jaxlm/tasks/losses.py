"""Losses as sums, shared by tasks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.types import LossSum


@jax.custom_vjp
def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Each place's cross-entropy in nats: ``logits f32[..., L]``, ``labels i32[...]``.

    Of labels below 0 that of the first. The label's logit is picked by a sum over all,
    of which the others are 0: where devices split the labels, a gather would bring them
    together, and its gradient is a scatter. Kept for the backward pass are the logits
    alone, and no exponential of each, as jax would by itself.
    """
    return _cross_entropies(logits, labels)[0]


def _cross_entropies(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    chosen = jnp.where(_wanted(logits, labels), logits, 0.0).sum(-1)
    total = jax.nn.logsumexp(logits, axis=-1)
    return total - chosen, (logits, labels, total)


def _backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    """The probabilities, less 1 at the label."""
    logits, labels, total = kept
    probabilities = jnp.exp(logits - total[..., None])
    found = jnp.where(_wanted(logits, labels), probabilities - 1.0, probabilities)
    return found * gradient[..., None], None


def _wanted(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """bool[..., L]: which of the logits is the label's."""
    numbers = jnp.arange(logits.shape[-1])
    return jnp.maximum(labels, 0)[..., None] == jnp.expand_dims(
        numbers, tuple(range(labels.ndim))
    )


cross_entropies.defvjp(_cross_entropies, _backward)


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> LossSum:
    """Cross-entropy in nats: ``logits f32[..., L]``, ``labels i32[...]``.

    Places with weight 0 may hold any label. ``weights f32[...]``.
    """
    losses = cross_entropies(logits, labels)
    return LossSum(jnp.where(weights > 0, losses * weights, 0.0).sum(), weights.sum())


def correct(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> LossSum:
    """How much of the weight has its label as the most probable one."""
    hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return LossSum((hits * weights).sum(), weights.sum())
