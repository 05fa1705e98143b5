"""Multi-head attention as a module: to the tokens themselves, or to a memory."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.mesh import Rules
from jaxlm.core.types import Outputs
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.attention import Visibility, attention_scores
from jaxlm.models.cache import LayerCache, remembered
from jaxlm.models.kernels.dispatch import attention
from jaxlm.models.layers import (
    Linear,
    dropout,
    folded,
    make_norm,
)
from jaxlm.models.positions import Rotation, rotate

HEAD_AXES = ("batch", "sequence", "heads", "head_size")


class Shared(NamedTuple):
    """What all layers read beside their input, computed once.

    ``segments i32[B, S]`` are those of the queries. ``visible`` and ``rotations`` have
    an entry for each of the config's ``kinds``. ``slot i32[]`` is where new tokens go
    in a cache. ``relative`` is DeBERTa's table of distances f32[2 span, D] and the row
    of it that each pair of tokens reads, i32[S, S]. ``memory [B, T, D]`` is what a
    decoder reads of its encoder, as far as ``memory_visible`` says.
    """

    segments: jax.Array
    visible: tuple[Visibility, ...]
    rotations: tuple[Rotation | None, ...]
    slot: jax.Array
    relative: tuple[jax.Array, jax.Array] | None = None
    memory: jax.Array | None = None
    memory_visible: Visibility | None = None


class Attention(nnx.Module):
    """Multi-head attention with its four linear maps."""

    def __init__(self, config: TransformerConfig, rules: Rules, rngs: nnx.Rngs):
        width, size = config.width, config.head_size
        inner, shared = config.heads * size, config.kv_heads * size
        make = partial(
            Linear,
            axes=("width", "heads"),
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
            rules=rules,
            bias=config.attention_bias,
        )
        self.config, self.rules = config, rules
        self.query = make((width, inner))
        self.key = make((width, shared))
        self.value = make((width, shared))
        self.output = make(
            (inner, width), axes=("heads", "width"), bias=config.output_bias
        )
        if config.query_key_norm:
            self.query_norm = make_norm(config, size, "head_size")
            self.key_norm = make_norm(config, size, "head_size")
        relative = config.disentangled
        if relative and not relative.shared_projections:
            if relative.content_to_position:
                self.position_key = make((width, inner), bias=True)
            if relative.position_to_content:
                self.position_query = make((width, inner), bias=True)

    def __call__(
        self,
        x: jax.Array,
        shared: Shared,
        kind: int,
        key: jax.Array | None,
        collect: Collection[str],
        cache: LayerCache | None,
    ) -> tuple[jax.Array, Outputs, LayerCache]:
        query, keys, value = (self.split(part(x)) for part in self.parts)
        if self.config.query_key_norm:
            query, keys = self.query_norm(query), self.key_norm(keys)
        rotation = shared.rotations[kind]
        if rotation is not None:
            query, keys = rotate(query, rotation), rotate(keys, rotation)
        relative = self.relative(query, keys, shared, key)
        visible, kept = shared.visible[kind], {}
        if cache is not None:
            new = {"key": keys.swapaxes(1, 2), "value": value.swapaxes(1, 2)}
            count = visible.keys.shape[1]
            seen, kept = remembered(cache, new, shared.slot, count)
            keys, value = (seen[name].swapaxes(1, 2) for name in ("key", "value"))
        y, found = self.attend(query, keys, value, visible, relative, key, collect)
        return self.output(y), found, kept

    def across(
        self,
        x: jax.Array,
        shared: Shared,
        key: jax.Array | None,
        cache: LayerCache | None,
    ) -> tuple[jax.Array, LayerCache]:
        """Attention to the memory: that of ``shared``, or what the cache has of it."""
        visible = shared.memory_visible
        if visible is None or (shared.memory is None and cache is None):
            raise ValueError("a decoder needs the memory of its encoder, or a cache")
        if shared.memory is not None:
            keys, value = (
                self.split(part(shared.memory)) for part in (self.key, self.value)
            )
        else:
            kept = cache or {}
            keys, value = (
                kept[f"memory_{name}"].swapaxes(1, 2) for name in ("key", "value")
            )
        query = self.split(self.query(x))
        y, _ = self.attend(query, keys, value, visible, None, key, ())
        kept = {}
        if cache is not None:
            kept["memory_key"] = keys.swapaxes(1, 2)
            kept["memory_value"] = value.swapaxes(1, 2)
        return self.output(y), kept

    @property
    def parts(self) -> tuple[Linear, Linear, Linear]:
        return self.query, self.key, self.value

    def split(self, x: jax.Array) -> jax.Array:
        """``[B, S, H * K] -> [B, S, H, K]``."""
        x = x.reshape(*x.shape[:2], -1, self.config.head_size)
        return self.rules.constrain(x, HEAD_AXES)

    def attend(
        self,
        query: jax.Array,
        keys: jax.Array,
        value: jax.Array,
        visible: Visibility,
        relative: jax.Array | None,
        key: jax.Array | None,
        collect: Collection[str],
    ) -> tuple[jax.Array, Outputs]:
        """The heads' sums side by side ``[B, S, H * K]``, and what was asked for."""
        config = self.config
        scoring: Any = {
            "scale": config.score_scale,
            "cap": config.score_cap,
            "relative": relative,
        }
        y = attention(
            query,
            keys,
            value,
            visible,
            rate=config.dropout.weights,
            dropout_key=key,
            rules=self.rules,
            **scoring,
        )
        found = {}
        if "attention" in collect:
            scores = attention_scores(query, keys, visible.dense, **scoring)
            found["attention"] = jax.nn.softmax(scores, axis=-1)
        return y.reshape(*y.shape[:2], -1), found

    def relative(
        self, query: jax.Array, keys: jax.Array, shared: Shared, key: jax.Array | None
    ) -> jax.Array | None:
        """What DeBERTa adds to the scores, f32[B, H, S, S] (arXiv:2006.03654, eq. 4).

        A query against the key of the distance, and a key against its query.
        """
        if shared.relative is None:
            return None
        config = self.config.disentangled
        assert config is not None
        table, rows = shared.relative
        table = dropout(table, self.config.dropout.embeddings, folded(key, 1))[None]
        rows = rows[None, None]
        total = jnp.zeros((), jnp.float32)
        dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
        if config.content_to_position:
            part = self.key if config.shared_projections else self.position_key
            scores = dot("bshk,phk->bhsp", query, self.split(part(table))[0])
            total = total + jnp.take_along_axis(scores, rows, axis=-1)
        if config.position_to_content:
            part = self.query if config.shared_projections else self.position_query
            scores = dot("bthk,phk->bhpt", keys, self.split(part(table))[0])
            total = total + jnp.take_along_axis(scores, rows, axis=-2)
        return total
