"""What a decoder remembers of earlier tokens: keys and values, in static shapes.

A cache is a plain tree. ``segments i32[B, T]`` says which slots hold a token that is
seen (0: none), ``slot i32[]`` where the next ones go, the same in all rows: prompts of
different lengths are padded on the left. Each stack of layers has ``key`` and ``value
[layers, B, G, T, K]`` under its name, without the axis of layers where there is one
alone; that of an encoder-decoder has besides ``memory_key`` and ``memory_value
[layers, B, G, S, K]`` and ``memory_segments i32[B, S]``, once its encoder was read.

Layers that see so far and no further keep that many tokens, in a ring: the token of
slot n is in its place n modulo its size, over one that nobody sees any more.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.grouping import stack_names
from jaxlm.models.architecture import TransformerConfig

Cache = dict[str, Any]
LayerCache = dict[str, jax.Array]
"""Of one layer: ``key`` and ``value [B, G, T, K]``; with ``memory_`` before them those
of the encoder's output."""


def empty_cache(
    config: TransformerConfig, rows: int, slots: int, dtype: Any = jnp.float32
) -> Cache:
    """A cache of ``rows`` sequences of at most ``slots`` tokens each.

    Raises:
      ValueError: the model is an encoder.
    """
    config = config.decoder or config
    if not config.causal:
        raise ValueError("an encoder has no cache; it reads all tokens at once")
    cache: Cache = {
        "segments": jnp.zeros((rows, slots), jnp.int32),
        "slot": jnp.zeros((), jnp.int32),
    }
    widths = slots_of(config, slots)
    for name, layers in stack_names(config.stacks):
        width = widths[config.kind(layers.start)]
        shape = (rows, config.kv_heads, width, config.head_size)
        # As it is, or XLA:CPU writes a loop's cache twice, for the axis, and copies.
        shape = shape if len(layers) == 1 else (len(layers), *shape)
        cache[name] = {part: jnp.zeros(shape, dtype) for part in ("key", "value")}
    return cache


def slots_of(config: TransformerConfig, slots: int) -> list[int]:
    """How many slots the layers of each of the config's ``kinds`` have.

    Fewer than ``slots`` if they see no further, and if no stack has layers of another
    kind as well.
    """
    widths = [min(slots, (kind.reach or slots) + 1) for kind in config.kinds]
    for _, layers in stack_names(config.stacks):
        mine = {config.kind(layer) for layer in layers}
        if len(mine) > 1:
            for kind in mine:
                widths[kind] = slots
    return widths


def window(
    segments: jax.Array, here: jax.Array, width: int
) -> tuple[jax.Array, jax.Array]:
    """What tokens at the slots ``here i32[S]`` find: segments i32[B, N], slots i32[N].

    ``segments i32[B, T]`` are those of all slots, these tokens among them. Where the
    ``width`` is less, the slots are those in the ring and, of several tokens, these.
    """
    if width == segments.shape[1]:
        return segments, jnp.arange(width)
    if len(here) == 1:
        slots = in_ring(here[0], width)
    else:
        slots = jnp.concatenate([in_ring(here[0] - 1, width), here])
    found = jnp.take(segments, jnp.maximum(slots, 0), axis=1)
    return jnp.where(slots >= 0, found, 0), slots


def in_ring(last: jax.Array, width: int) -> jax.Array:
    """The slots that the places of a ring hold, i32[width], after ``last i32[]``.

    Those that hold none yet are negative.
    """
    return last - (last - jnp.arange(width)) % width


def remembered(
    cache: LayerCache, new: LayerCache, slot: jax.Array, seen: int
) -> tuple[LayerCache, LayerCache]:
    """What the tokens from ``slot`` on see, and what is kept of it for the next.

    ``new`` has their keys and values [B, G, S, K]. If they see more than is kept they
    read the ring before they are written into it.
    """
    width, count = cache["key"].shape[2], new["key"].shape[2]
    if seen == width:
        start = (0, 0, slot % width, 0)
        kept = {
            name: jax.lax.dynamic_update_slice(
                cache[name], value.astype(cache[name].dtype), start
            )
            for name, value in new.items()
        }
        return kept, kept
    both = {
        name: jnp.concatenate([cache[name], value.astype(cache[name].dtype)], axis=2)
        for name, value in new.items()
    }
    slots = in_ring(slot + count - 1, width)
    places = jnp.where(slots < slot, jnp.arange(width), width + slots - slot)
    return both, {name: jnp.take(value, places, axis=2) for name, value in both.items()}


def rows_of(cache: Cache, rows: jax.Array) -> Cache:
    """The cache of ``rows i32[N]``, each of which may come several times or never."""

    def taken(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0:
            return leaf
        return jnp.take(leaf, rows, axis=1 if leaf.ndim == 5 else 0)

    return jax.tree.map(taken, cache)
