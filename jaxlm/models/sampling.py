"""The next token from its logits: drawn from a part of the distribution."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

LEAST = -1e30
"""A logit that is never chosen; finite, as a difference of two must be."""


class Sampling(NamedTuple):
    """How tokens are drawn, all f32[] but ``top_k i32[]``; see ``Generation``."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array


def penalise(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Make tokens that were seen less likely (Keskar et al., 2019, arXiv:1909.05858).

    ``logits f32[B, V]``, ``seen bool[B, V]``; what is above zero is divided by the
    penalty, what is below multiplied.
    """
    less = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, less, logits)


def restrict(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits f32[B, V] at a temperature, without the tokens that may not be drawn.

    First all but the ``top_k`` most likely (0: none is left out), then, of what is
    left, all beyond the least number of tokens whose probabilities reach ``top_p``
    (Holtzman et al., 2020, arXiv:1904.09751), then those less likely than ``min_p``
    times the most likely (arXiv:2407.01082). The most likely one always stays.
    """
    logits = logits / sampling.temperature
    ordered = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(logits.shape[-1])[None]
    count = jnp.where(sampling.top_k > 0, sampling.top_k, logits.shape[-1])
    ordered = jnp.where(rank < count, ordered, LEAST)
    shares = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    # Of rounded sums the last may reach 1 before the last token.
    kept = (before < sampling.top_p) | (sampling.top_p >= 1)
    kept = kept & (shares >= sampling.min_p * shares[:, :1])
    kept = (kept & (rank < count)) | (rank == 0)
    bound = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= bound, logits, LEAST)


def draw(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """One token a row, i32[B], by the softmax of ``logits f32[B, V]``; a key each."""
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def logprob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The log-probability of ``tokens i32[B]`` by ``logits f32[B, V]``: f32[B]."""
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
