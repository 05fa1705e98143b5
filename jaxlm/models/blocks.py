"""One layer of a Transformer: attention, mlp, and the norms around them."""

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
from jaxlm.models.attention import attention_scores, dense_attention
from jaxlm.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    along_last,
    dropout,
    folded,
    make_norm,
    parameter,
    split_key,
)
from jaxlm.models.positions import Rotation, rotate

ACTIVATION_AXES = ("batch", "sequence", "width")
HEAD_AXES = ("batch", "sequence", "heads", "head_size")


class Shared(NamedTuple):
    """What all layers read beside their input, computed once.

    ``segments i32[B, S]`` are those of the queries. ``biases`` (of scores) and
    ``rotations`` have an entry for each of the config's ``kinds``. ``relative`` is
    DeBERTa's table of distances f32[2 span, D] and the row of it that each pair of
    tokens reads, i32[S, S]. ``memory [B, T, D]`` is what a decoder reads of its
    encoder, under ``memory_bias``; ``slot i32[]`` is where new tokens go in a cache.
    """

    segments: jax.Array
    biases: tuple[jax.Array, ...]
    rotations: tuple[Rotation | None, ...]
    relative: tuple[jax.Array, jax.Array] | None = None
    memory: jax.Array | None = None
    memory_bias: jax.Array | None = None
    slot: jax.Array | None = None


LayerCache = dict[str, jax.Array]
"""Of one layer: ``key`` and ``value [B, G, T, K]``; with ``memory_`` before them those
of the encoder's output."""


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
        kept = {}
        if cache is not None:
            new = {"key": keys, "value": value}
            kept = {name: written(cache[name], new[name], shared.slot) for name in new}
            keys, value = (kept[name].swapaxes(1, 2) for name in ("key", "value"))
        bias = shared.biases[kind]
        y, found = self.attend(query, keys, value, bias, relative, key, collect)
        return self.output(y), found, kept

    def across(
        self,
        x: jax.Array,
        shared: Shared,
        key: jax.Array | None,
        cache: LayerCache | None,
    ) -> tuple[jax.Array, LayerCache]:
        """Attention to the memory: that of ``shared``, or what the cache has of it."""
        if shared.memory is not None:
            keys, value = (
                self.split(part(shared.memory)) for part in (self.key, self.value)
            )
        elif cache is not None:
            keys, value = (
                cache[f"memory_{name}"].swapaxes(1, 2) for name in ("key", "value")
            )
        else:
            raise ValueError("a decoder needs the memory of its encoder, or a cache")
        assert shared.memory_bias is not None
        query = self.split(self.query(x))
        y, _ = self.attend(query, keys, value, shared.memory_bias, None, key, ())
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
        bias: jax.Array,
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
        y = dense_attention(
            query,
            keys,
            value,
            bias,
            rate=config.attention_dropout,
            dropout_key=key,
            rules=self.rules,
            **scoring,
        )
        found = {}
        if "attention" in collect:
            scores = attention_scores(query, keys, bias, **scoring)
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
        table = dropout(table, self.config.dropout, folded(key, 1))[None]
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


def written(cached: jax.Array, new: jax.Array, slot: jax.Array | None) -> jax.Array:
    """``new [B, S, G, K]`` in its place among what is cached, [B, G, T, K]."""
    start = (0, 0, jnp.asarray(slot, jnp.int32), 0)
    new = new.swapaxes(1, 2).astype(cached.dtype)
    return jax.lax.dynamic_update_slice(cached, new, start)


class Mlp(nnx.Module):
    """Two linear maps around an activation; gated, a third multiplies (Shazeer, 2020).

    ``down(activation(up(x)))``, or ``down(activation(gate(x)) * up(x))``
    (arXiv:2002.05202).
    """

    def __init__(self, config: TransformerConfig, rules: Rules, rngs: nnx.Rngs):
        make = partial(
            Linear,
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
            rules=rules,
            bias=config.mlp_bias,
        )
        self.rules = rules
        self.gated = config.gated
        self.activation = config.activation
        if config.gated:
            self.gate = make((config.width, config.mlp_width), ("width", "mlp"))
        self.up = make((config.width, config.mlp_width), ("width", "mlp"))
        self.down = make((config.mlp_width, config.width), ("mlp", "width"))

    def __call__(self, x: jax.Array) -> jax.Array:
        axes = ("batch", "sequence", "mlp")
        y = self.rules.constrain(self.up(x), axes)
        if self.gated:
            gate = self.rules.constrain(self.gate(x), axes)
            y = ACTIVATIONS[self.activation](gate) * y
        else:
            y = ACTIVATIONS[self.activation](y)
        return self.down(y)


class SegmentConvolution(nnx.Module):
    """A convolution along the tokens of each segment, beside the first layer.

    kernel f32[taps, D, D], bias f32[D]; its result is added to the layer's and
    normalised (``ConvLayer`` of DeBERTa-v2). Padding and other segments count as zero.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        assert config.convolution is not None
        self.size, self.activation = (
            config.convolution.size,
            config.convolution.activation,
        )
        self.dropout = config.dropout
        shape = (self.size, config.width, config.width)
        draw = jax.nn.initializers.normal(config.initializer_range)
        self.kernel = parameter(
            draw(rngs.params(), shape, jnp.float32), (None, "width", "width_out")
        )
        self.bias = parameter(jnp.zeros(config.width, jnp.float32), ("width",))
        self.norm = LayerNorm(config.width, config.norm_epsilon)

    def __call__(
        self, x: jax.Array, y: jax.Array, segments: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        length, pad = x.shape[1], self.size // 2
        wide = jnp.pad(x, ((0, 0), (pad, pad), (0, 0)))
        there = jnp.pad(segments, ((0, 0), (pad, pad)))
        total = along_last(self.bias[...].astype(x.dtype), x)
        for tap in range(self.size):
            same = there[:, tap : tap + length] == segments
            part = jnp.where(same[..., None], wide[:, tap : tap + length], 0)
            total = total + part @ self.kernel[tap].astype(x.dtype)
        total = dropout(total, self.dropout, key)
        return self.norm(y + ACTIVATIONS[self.activation](total))


class Block(nnx.Module):
    """Attention and mlp, each added to its input, with norms where the family has them.

    Returns ``x [B, S, D]``, of what ``collect`` names this layer's part, and what a
    cache keeps of it. ``first`` is the block of the first layer, where it is another.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rules: Rules,
        rngs: nnx.Rngs,
        *,
        first: bool = False,
    ):
        self.config, self.rules = config, rules
        self.attention = Attention(config, rules, rngs)
        norm = partial(make_norm, config)
        self.bare = first and not config.first_norm
        if not self.bare:
            self.attention_norm = norm()
        if config.cross_attention:
            self.cross_attention = Attention(config, rules, rngs)
            self.cross_attention_norm = norm()
        self.mlp = Mlp(config, rules, rngs)
        self.mlp_norm = norm()
        if config.placement == "sandwich":
            self.attention_norm_after, self.mlp_norm_after = norm(), norm()
        self.convolves = first and config.convolution is not None
        if self.convolves:
            self.convolution = SegmentConvolution(config, rngs)

    def __call__(
        self,
        x: jax.Array,
        shared: Shared,
        kind: int,
        key: jax.Array | None,
        collect: Collection[str],
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, Outputs, LayerCache]:
        keys = split_key(key, 3)
        before = x
        with jax.named_scope("attention"):  # the names that a profile shows
            y = self.enter("attention_norm", x)
            y, found, kept = self.attention(y, shared, kind, keys[0], collect, cache)
        if self.config.placement == "parallel":
            with jax.named_scope("mlp"):
                z = self.mlp(self.mlp_norm(x))
            with jax.named_scope("residual"):
                rate = self.config.dropout
                x = x + dropout(y, rate, keys[1]) + dropout(z, rate, keys[2])
        else:
            x = self.leave("attention_norm", x, y, keys[1])
            if self.config.cross_attention:
                x, memory = self.cross(x, shared, key, cache)
                kept = {**kept, **memory}
            with jax.named_scope("mlp"):
                y = self.mlp(self.enter("mlp_norm", x))
            x = self.leave("mlp_norm", x, y, keys[2])
        if self.convolves:
            x = self.convolution(before, x, shared.segments, folded(key, 2))
        x = self.rules.constrain(x, ACTIVATION_AXES)
        if "hidden_states" in collect:
            found["hidden_states"] = x
        return x, found, kept

    def cross(
        self,
        x: jax.Array,
        shared: Shared,
        key: jax.Array | None,
        cache: LayerCache | None,
    ) -> tuple[jax.Array, LayerCache]:
        """Attention to the memory, around which are norms as elsewhere."""
        keys = split_key(folded(key, 1), 2)
        with jax.named_scope("cross_attention"):
            y = self.enter("cross_attention_norm", x)
            y, kept = self.cross_attention.across(y, shared, keys[0], cache)
        return self.leave("cross_attention_norm", x, y, keys[1]), kept

    def enter(self, name: str, x: jax.Array) -> jax.Array:
        """What a part of the block reads: its input, normalised unless norms follow."""
        if self.config.placement == "post" or (self.bare and name == "attention_norm"):
            return x
        with jax.named_scope("residual"):
            return getattr(self, name)(x)

    def leave(
        self, name: str, x: jax.Array, y: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """The input and what a part made of it, added."""
        with jax.named_scope("residual"):
            if self.config.placement == "sandwich":
                y = getattr(self, f"{name}_after")(y)
            x = x + dropout(y, self.config.dropout, key)
            if self.config.placement == "post":
                x = getattr(self, name)(x)
            return x
