"""A checksum of arrays, computed where they live and the same on every layout."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.grouping import named

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprints(tree: Any) -> jax.Array:
    """u32[leaves], by name: each the sum of its bits, each place times an odd number.

    Arithmetic is modulo 2**32, so the sum does not depend on its order, hence not on
    how the array is split over devices. One changed bit always changes the sum, for an
    odd number times a power of two is never 0 (mod 2**32).
    """
    return jnp.stack([_fingerprint(leaf) for _, leaf in sorted(named(tree).items())])


def _fingerprint(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(leaf, WORDS[leaf.dtype.itemsize])
    place = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        stride = jnp.uint32(math.prod(leaf.shape[axis + 1 :]) % 2**32)
        place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * stride
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)
