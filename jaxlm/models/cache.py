"""What a decoder remembers of earlier tokens: keys and values, in static shapes.

A cache is a plain tree. ``segments i32[B, T]`` says which slots hold a token that is
seen (0: none), ``slot i32[]`` where the next ones go, the same in all rows: prompts of
different lengths are padded on the left. Each stack of layers has ``key`` and ``value
[layers, B, G, T, K]`` under its name; that of an encoder-decoder has besides
``memory_key`` and ``memory_value [layers, B, G, S, K]`` and ``memory_segments i32[B,
S]``, once its encoder was read.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.grouping import stack_names
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.transformer import Cache


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
    for name, layers in stack_names(config.stacks):
        shape = (len(layers), rows, config.kv_heads, slots, config.head_size)
        cache[name] = {part: jnp.zeros(shape, dtype) for part in ("key", "value")}
    return cache


def rows_of(cache: Cache, rows: jax.Array) -> Cache:
    """The cache of ``rows i32[N]``, each of which may come several times or never."""

    def taken(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0:
            return leaf
        return jnp.take(leaf, rows, axis=0 if len(path) == 1 else 1)

    return jax.tree_util.tree_map_with_path(taken, cache)
