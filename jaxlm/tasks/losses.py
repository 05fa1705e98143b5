"""Losses as sums, shared by tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.core.types import LossSum


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> LossSum:
    """Cross-entropy in nats: ``logits f32[..., L]``, ``labels i32[...]``.

    Places with weight 0 may hold any label. ``weights f32[...]``.
    """
    chosen = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen[..., 0]
    return LossSum(jnp.where(weights > 0, losses * weights, 0.0).sum(), weights.sum())


def correct(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> LossSum:
    """How much of the weight has its label as the most probable one."""
    hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return LossSum((hits * weights).sum(), weights.sum())
