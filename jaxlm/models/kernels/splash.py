"""Splash attention: JAX's Pallas kernel of TPUs, which skips blocks nobody sees.

The kernel is ``jax.experimental.pallas.ops.tpu.splash_attention`` (FlashAttention,
arXiv:2205.14135, over the blocks of a mask that are not empty). Here is what it wants
around it: lengths that blocks divide, scaled queries, heads before tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library

LANES = 128
"""A TPU's registers are so wide: blocks, and hence rows, are multiples."""


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    reach: int | None,
    scale: float,
    cap: float | None = None,
    block: int = 512,
    interpret: bool = False,
) -> jax.Array:
    """Attention of tokens to their own segment: [B, S, H, K], as the dense one has it.

    ``query [B, S, H, K]``; ``key`` and ``value [B, S, G, K]``, each for H / G heads;
    ``segments i32[B, S]``, 0 is padding, whose own result means nothing. ``block``:
    the most tokens of queries, and of keys, that the kernel has in hand at a time.
    """
    length, heads = query.shape[1], query.shape[2]
    pad = -length % LANES
    arrays = [heads_first(each, pad) for each in (query, key, value)]
    # In fp32: a scale of 1 / sqrt(128) would be rounded with the queries otherwise.
    arrays[0] = (arrays[0].astype(jnp.float32) * scale).astype(query.dtype)
    rows = jnp.pad(segments, ((0, 0), (0, pad)))
    kernel = make_kernel(
        heads, length + pad, causal, reach, cap=cap, block=block, interpret=interpret
    )

    def row(*parts: jax.Array) -> jax.Array:
        *given, mine = parts
        return kernel(*given, segment_ids=library.SegmentIds(q=mine, kv=mine))

    return jax.vmap(row)(*arrays, rows).swapaxes(1, 2)[:, :length]


def heads_first(x: jax.Array, pad: int) -> jax.Array:
    """``[B, S, H, K] -> [B, H, S + pad, K]``."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, pad), (0, 0)))


def make_kernel(
    heads: int,
    length: int,
    causal: bool,
    reach: int | None,
    *,
    cap: float | None,
    block: int,
    interpret: bool,
) -> Callable[..., Any]:
    """The kernel of one row: [H, S, K] of queries, [G, S, K] of keys and of values."""
    shape = length, length
    mask = library.FullMask(shape)
    if causal or reach is not None:
        mask = library.LocalMask(shape, (reach, 0 if causal else reach), 0)
    size = block_size(length, block)
    # One kernel backward has five products where two have seven, but a sum over blocks
    # of keys in the dtype of queries: taken where there is one block.
    alone = size == length
    sizes = library.BlockSizes(
        block_q=size,
        block_kv=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_q_dq=None if alone else size,
        block_kv_dq=None if alone else size,
        use_fused_bwd_kernel=alone,
    )
    return library.make_splash_mha_single_device(
        library.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


def block_size(length: int, most: int) -> int:
    """The greatest multiple of ``LANES`` up to ``most`` that divides the length."""
    sizes = range(LANES, max(most, LANES) + 1, LANES)
    return max(size for size in sizes if length % size == 0)
