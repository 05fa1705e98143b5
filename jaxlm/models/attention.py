"""Attention: which token may see which, and the weighted sum.

Every backend takes the same arguments and is tested against a dense reference with
packing and padding at once.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.models.layers import dropout

MASKED = -1e30
"""Added to forbidden scores: finite, so that a row of padding alone has no NaN."""


def attention_bias(segments: jax.Array) -> jax.Array:
    """What to add to the scores so that a token sees its own segment only.

    ``segments i32[B, S]``; 0 is padding, which nobody sees. Returns f32[B, 1, S, S], 0
    where allowed. Computed once for all layers.
    """
    same = segments[:, :, None] == segments[:, None, :]
    real = segments[:, None, :] > 0
    return jnp.where(same & real, 0.0, MASKED)[:, None]


def attention_weights(query: jax.Array, key: jax.Array, bias: jax.Array) -> jax.Array:
    """How much each token attends to each other: f32[B, H, S, S], rows that sum to 1.

    ``query, key [B, S, H, K]``, ``bias f32[B, 1, S, S]``. Scores and softmax are fp32.
    """
    return jax.nn.softmax(_scores(query, key, bias), axis=-1)


def _scores(query: jax.Array, key: jax.Array, bias: jax.Array) -> jax.Array:
    """Scaled products of queries and keys, f32[B, H, S, S]."""
    scores = jnp.einsum(
        "bshk,bthk->bhst", query, key, preferred_element_type=jnp.float32
    )
    return scores / math.sqrt(query.shape[-1]) + bias


def dense_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    *,
    rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    rules: Rules = NO_RULES,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017, equation 1).

    ``query, key, value [B, S, H, K]``, ``bias f32[B, 1, S, S]``; returns [B, S, H, K].
    ``rate`` drops attention weights, as BERT does.

    The softmax divides the weighted sum instead of the weights (as in FlashAttention,
    arXiv:2205.14135): a row of its gradient then sums over K numbers, not S.
    """
    scores = _scores(query, key, bias)
    most = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # cancels out
    weights = jnp.exp(scores - most)
    total = weights.sum(-1).swapaxes(1, 2)[..., None]  # [B, S, H, 1]
    weights = dropout(weights.astype(value.dtype), rate, dropout_key)
    weights = rules.constrain(weights, ("batch", "heads", "sequence", None))
    y = jnp.einsum(  # fp32, or bf16 gradients of the scores no longer sum to 0
        "bhst,bthk->bshk", weights, value, preferred_element_type=jnp.float32
    )
    return (y / total).astype(value.dtype)
