"""Attention: which token may see which, and the weighted sum.

``Visibility`` says the first as data, of which every backend (``models.backends``)
makes what it needs. The functions here are the dense reference: each backend is tested
against them with packing and padding at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.models.backends import DENSE, Backend
from jaxlm.models.layers import dropout
from jaxlm.models.positions import distances

MASKED = -1e30
"""Added to forbidden scores: finite, so that a row of padding alone has no NaN."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["queries", "keys", "order", "extra", "bias"],
    meta_fields=["causal", "reach", "most", "backend"],
)
@dataclass(frozen=True)
class Visibility:
    """Which keys each query sees, of one kind of layers, and who computes by it.

    ``queries i32[B, S]`` and ``keys i32[B, T]`` are their segments; 0 is padding, which
    nobody sees. ``order``: the places i32[S] and i32[T] of both in their sequence, by
    default one after another from 0. ``extra f32[1, H, S, T]`` is added to the scores
    (T5). ``causal`` and ``reach`` as for ``attention_bias``. ``most`` is how many
    segments a row may hold, None as many as it has tokens. ``bias f32[B, 1 or H, S,
    T]`` is all of that at once, which only the dense ``backend`` reads: ``with_bias``
    makes it, once for all layers.
    """

    queries: jax.Array
    keys: jax.Array
    order: tuple[jax.Array, jax.Array] | None = None
    extra: jax.Array | None = None
    bias: jax.Array | None = None
    causal: bool = False
    reach: int | None = None
    most: int | None = None
    backend: Backend = DENSE

    @property
    def dense(self) -> jax.Array:
        """The dense bias.

        Raises:
          ValueError: there is none, as the backend reads none.
        """
        if self.bias is None:
            raise ValueError(f"no dense bias for attention by {self.backend.name}")
        return self.bias

    def with_bias(self) -> Visibility:
        """The same with the dense bias, where the backend reads it."""
        if self.backend.name != "xla":
            return self
        bias = attention_bias(
            self.queries,
            self.keys,
            apart=None if self.order is None else distances(*self.order),
            causal=self.causal,
            reach=self.reach,
        )
        if self.extra is not None:
            bias = bias + self.extra
        return replace(self, bias=bias, extra=None)


def attention_bias(
    segments: jax.Array,
    keys: jax.Array | None = None,
    *,
    apart: jax.Array | None = None,
    causal: bool = False,
    reach: int | None = None,
) -> jax.Array:
    """What to add to the scores so that a token sees its own segment only.

    ``segments i32[B, S]``; 0 is padding, which nobody sees. ``keys i32[B, T]`` are the
    segments of what is seen, by default the same, and ``apart i32[S, T]`` is how far
    each lies behind a query (``distances``), by default in their order. ``causal``:
    nobody sees a later token; ``reach``: nor one further away. Returns f32[B, 1, S, T],
    0 where allowed. Computed once for all layers.
    """
    keys = segments if keys is None else keys
    allowed = segments[:, :, None] == keys[:, None, :]
    allowed = allowed & (keys[:, None, :] > 0)
    if causal or reach is not None:
        if apart is None:
            order = [jnp.arange(each.shape[1]) for each in (segments, keys)]
            apart = distances(*order)
        near = apart >= 0 if causal else jnp.ones_like(apart, bool)
        if reach is not None:
            near = near & (jnp.abs(apart) <= reach)
        allowed = allowed & near[None]
    return jnp.where(allowed, 0.0, MASKED)[:, None]


def attention_scores(
    query: jax.Array,
    key: jax.Array,
    bias: jax.Array,
    *,
    scale: float | None = None,
    cap: float | None = None,
    relative: jax.Array | None = None,
) -> jax.Array:
    """Scaled products of queries and keys, with the bias: f32[B, H, S, T].

    ``query [B, S, H, K]``; ``key [B, T, G, K]``, each for H / G heads; ``bias f32[B or
    1, H or 1, S, T]``; ``relative f32[B, H, S, T]`` is added before the scale, by
    default ``1 / sqrt(K)``. ``cap`` bounds them smoothly (Gemma 2, arXiv:2408.00118).
    """
    B, S, H, K = query.shape
    G = key.shape[2]
    if G == H:
        scores = jnp.einsum(
            "bshk,bthk->bhst", query, key, preferred_element_type=jnp.float32
        )
    else:
        scores = jnp.einsum(
            "bsgrk,btgk->bgrst",
            query.reshape(B, S, G, H // G, K),
            key,
            preferred_element_type=jnp.float32,
        ).reshape(B, H, S, -1)
    if relative is not None:
        scores = scores + relative
    scores = scores * (K**-0.5 if scale is None else scale)
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    return scores + bias


def weighted_sum(
    scores: jax.Array,
    value: jax.Array,
    *,
    rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    rules: Rules = NO_RULES,
) -> jax.Array:
    """The mean of values by the softmax of scores (Vaswani et al., 2017, eq. 1).

    ``scores f32[B, H, S, T]``, ``value [B, T, G, K]``, each for H / G heads; returns
    [B, S, H, K]. ``rate`` drops attention weights, as BERT does.

    The softmax divides the weighted sum instead of the weights (as in FlashAttention,
    arXiv:2205.14135): a row of its gradient then sums over K numbers, not S.
    """
    B, H, S, T = scores.shape
    G = value.shape[2]
    most = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # cancels out
    weights = jnp.exp(scores - most)
    total = weights.sum(-1).swapaxes(1, 2)[..., None]  # [B, S, H, 1]
    weights = dropout(weights.astype(value.dtype), rate, dropout_key)
    weights = rules.constrain(weights, ("batch", "heads", "sequence", None))
    # fp32, or bf16 gradients of the scores no longer sum to 0.
    if G == H:
        y = jnp.einsum(
            "bhst,bthk->bshk", weights, value, preferred_element_type=jnp.float32
        )
    else:
        y = jnp.einsum(
            "bgrst,btgk->bsgrk",
            weights.reshape(B, G, H // G, S, T),
            value,
            preferred_element_type=jnp.float32,
        ).reshape(B, S, H, -1)
    return (y / total).astype(value.dtype)


def dense_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    *,
    scale: float | None = None,
    cap: float | None = None,
    relative: jax.Array | None = None,
    rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    rules: Rules = NO_RULES,
) -> jax.Array:
    """Scaled dot-product attention: ``attention_scores``, then ``weighted_sum``."""
    scores = attention_scores(query, key, bias, scale=scale, cap=cap, relative=relative)
    return weighted_sum(scores, value, rate=rate, dropout_key=dropout_key, rules=rules)
