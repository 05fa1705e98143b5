"""Where a token stands: rotations, and relative distances in buckets."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxlm.models.architecture import Buckets, Disentangled, Rope

Rotation = tuple[jax.Array, jax.Array]


def rotation(rope: Rope, positions: jax.Array) -> Rotation:
    """Cosine and sine of every angle, ``i32[B, S] -> 2 x f32[B, S, 1, R / 2]``."""
    frequencies = jnp.asarray(rope.frequencies, jnp.float32)[None, None, None]
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * rope.magnitude, jnp.sin(angles) * rope.magnitude


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turn the pairs of the first R dimensions of ``x [B, S, H, K]``, in fp32.

    A pair is a dimension and the one R / 2 further on, as GPT-NeoX and Llama have it.
    """
    cosine, sine = rotation
    half = cosine.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    a, b = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = [a * cosine - b * sine, b * cosine + a * sine]
    return jnp.concatenate([*(each.astype(x.dtype) for each in turned), rest], axis=-1)


def distances(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """How far behind its query each key lies, ``i32[S], i32[T] -> i32[S, T]``."""
    return queries[:, None] - keys[None, :]


def bucket(distance: jax.Array, buckets: Buckets, causal: bool) -> jax.Array:
    """The bucket of each distance, i32 (Raffel et al., 2020, arXiv:1910.10683).

    Half of the buckets hold one distance each, the others logarithmically more up to
    ``buckets.distance``; the last also all beyond. Where both sides are seen, the later
    tokens have the second half.
    """
    count, offset = buckets.count, jnp.zeros_like(distance)
    if causal:
        distance = jnp.maximum(distance, 0)
    else:
        count //= 2
        offset = jnp.where(distance < 0, count, 0)
        distance = jnp.abs(distance)
    exact = count // 2
    ratio = jnp.maximum(distance, 1).astype(jnp.float32) / exact
    scale = (count - exact) / math.log(buckets.distance / exact)
    far = exact + (jnp.log(ratio) * scale).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, count - 1))


def table_row(distance: jax.Array, relative: Disentangled) -> jax.Array:
    """The row of DeBERTa's table for each distance, i32 (arXiv:2006.03654, eq. 3).

    With buckets, the near ones have a row each and the others share rows
    logarithmically (its second version).
    """
    if relative.buckets:
        middle = relative.buckets // 2
        size = jnp.maximum(jnp.abs(distance), middle).astype(jnp.float32)
        scale = (middle - 1) / math.log((relative.distance - 1) / middle)
        far = jnp.ceil(jnp.log(size / middle) * scale).astype(jnp.int32) + middle
        near = jnp.abs(distance) <= middle
        distance = jnp.where(near, distance, far * jnp.sign(distance))
    return jnp.clip(distance + relative.span, 0, 2 * relative.span - 1)
