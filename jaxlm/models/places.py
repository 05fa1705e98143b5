"""Some places of each row, brought together and put back: gathers in both directions.

A head over a vocabulary costs as much as some layers, and a masked language model is
asked about 15% of its tokens. Indexing by itself would go backward by a scatter, which
GPUs sum in any order.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


def places_of(chosen: jax.Array, room: int) -> jax.Array:
    """Where ``chosen bool[B, S]`` is true: i32[B, P], ascending, S for none.

    ``room`` is P; the first P of a row that has more.
    """
    length = chosen.shape[1]
    numbers = jnp.arange(length, dtype=jnp.int32)[None]
    return jnp.sort(jnp.where(chosen, numbers, length), axis=1)[:, :room]


def taken(x: jax.Array, places: jax.Array, length: int) -> jax.Array:
    """What stands at ``places i32[B, P]`` of ``x [B, S, ...]``; zeros where none is.

    ``length`` is S.
    """
    return _taken(x, places, length)


def put_back(x: jax.Array, places: jax.Array, length: int) -> jax.Array:
    """``x [B, P, ...]`` at its ``places`` in rows of ``length``, zeros elsewhere."""
    return _put_back(x, places, length)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taken(x: jax.Array, places: jax.Array, length: int) -> jax.Array:
    return _found(x, places, places < length)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _put_back(x: jax.Array, places: jax.Array, length: int) -> jax.Array:
    numbers = jnp.arange(length, dtype=places.dtype)
    before = (places[:, None, :] < numbers[None, :, None]).sum(-1)  # which, if any
    at = jnp.minimum(before, places.shape[1] - 1)
    there = jnp.take_along_axis(places, at, axis=1) == numbers[None]
    return _found(x, at, there)


def _found(x: jax.Array, at: jax.Array, there: jax.Array) -> jax.Array:
    wide = (...,) + (None,) * (x.ndim - 2)
    found = jnp.take_along_axis(x, at[wide], axis=1, mode="clip")
    return jnp.where(there[wide], found, jnp.zeros((), x.dtype))


def _keep_taken(x: jax.Array, places: jax.Array, length: int) -> tuple:
    return taken(x, places, length), places


def _keep_put(x: jax.Array, places: jax.Array, length: int) -> tuple:
    return put_back(x, places, length), places


# Each is the transpose of the other.
_taken.defvjp(_keep_taken, lambda length, at, g: (put_back(g, at, length), None))
_put_back.defvjp(_keep_put, lambda length, at, g: (taken(g, at, length), None))
