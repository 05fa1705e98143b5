"""Attention by cuDNN on NVIDIA GPUs, for rows that hold one segment each.

``jax.nn.dot_product_attention`` hands it over. It knows padding as the length of each
row, so that rows of several segments are for ``kernels.triton``.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    reach: int | None,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Attention of tokens to the others of their row: [B, S, H, K].

    ``query [B, S, H, K]``; ``key`` and ``value [B, S, G, K]``, each for H / G heads.
    ``segments i32[B, S]``: one of them a row, from its first token on, then padding
    (0), whose own result means nothing. A ``reach`` needs ``causal``.
    ``implementation``: ``xla`` computes the same anywhere, for tests.
    """
    # A row of padding alone has one token, or its softmax would have none to sum.
    lengths = jnp.maximum((segments > 0).sum(-1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if reach is None else (reach, 0),
        implementation=implementation,
    )
