"""Attention of rows of several segments on GPUs, by a Pallas kernel through Triton.

The kernel is JAX's own (``jax.experimental.pallas.ops.gpu.attention``;
FlashAttention-2, arXiv:2307.08691). Here is what it wants around it: lengths that
blocks divide, and as many heads of keys as of queries.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as library

BLOCK = 128
"""Rows are padded to multiples."""


def triton_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    scale: float,
    interpret: bool = False,
) -> jax.Array:
    """Attention of tokens to their own segment: [B, S, H, K], as the dense one has it.

    ``query [B, S, H, K]``; ``key`` and ``value [B, S, G, K]``, each for H / G heads;
    ``segments i32[B, S]``, 0 is padding, whose own result means nothing.
    """
    length, shared = query.shape[1], query.shape[2] // key.shape[2]
    rows = (0, 0), (0, -length % BLOCK)
    if shared > 1:
        key, value = (jnp.repeat(each, shared, axis=2) for each in (key, value))
    arrays = [jnp.pad(each, (*rows, (0, 0), (0, 0))) for each in (query, key, value)]
    # Two products of a block backward: more rows of them than this spill registers.
    back = 64 if query.shape[-1] <= 64 else 32
    sizes = library.BlockSizes(
        block_q=BLOCK,
        block_k=64,
        block_q_dkv=back,
        block_kv_dkv=back,
        block_q_dq=back,
        block_kv_dq=back,
    )
    y: Any = library.mha(
        *arrays,
        jnp.pad(segments, rows),
        sm_scale=scale,
        causal=causal,
        block_sizes=sizes,
        interpret=interpret,
    )
    return y[:, :length]
