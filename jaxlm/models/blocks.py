"""One layer of a Transformer: attention, mlp, and the norms around them."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.mesh import Rules
from jaxlm.core.types import Outputs
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.cache import LayerCache
from jaxlm.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Linear,
    along_last,
    dropout,
    make_norm,
    parameter,
    split_key,
    vector,
)
from jaxlm.models.multi_head import Attention, Shared

ACTIVATION_AXES = ("batch", "sequence", "width")


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
        self.dropout = config.dropout.inner
        self.gated = config.gated
        self.activation = config.activation
        if config.gated:
            self.gate = make((config.width, config.mlp_width), ("width", "mlp"))
        self.up = make((config.width, config.mlp_width), ("width", "mlp"))
        self.down = make((config.mlp_width, config.width), ("mlp", "width"))

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        axes = ("batch", "sequence", "mlp")
        y = self.rules.constrain(self.up(x), axes)
        if self.gated:
            gate = self.rules.constrain(self.gate(x), axes)
            y = ACTIVATIONS[self.activation](gate) * y
        else:
            y = ACTIVATIONS[self.activation](y)
        return self.down(dropout(y, self.dropout, key))


class SegmentConvolution(nnx.Module):
    """A convolution along the tokens of each segment, beside the first layer.

    kernel f32[taps, D, D], bias f32[D]; its result is added to the layer's and
    normalised (``ConvLayer`` of DeBERTa-v2). Padding and other segments count as zero.
    """

    def __init__(self, config: TransformerConfig, rules: Rules, rngs: nnx.Rngs):
        assert config.convolution is not None
        self.rules, self.axes = rules, (None, "width", "width_out")
        self.size, self.activation = (
            config.convolution.size,
            config.convolution.activation,
        )
        self.dropout = config.dropout.mlp
        shape = (self.size, config.width, config.width)
        draw = jax.nn.initializers.normal(config.initializer_range)
        self.kernel = parameter(draw(rngs.params(), shape, jnp.float32), self.axes)
        self.bias = parameter(jnp.zeros(config.width, jnp.float32), vector("width"))
        self.norm = LayerNorm(config.width, config.norm_epsilon)

    def __call__(
        self, x: jax.Array, y: jax.Array, segments: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        length, pad = x.shape[1], self.size // 2
        wide = jnp.pad(x, ((0, 0), (pad, pad), (0, 0)))
        there = jnp.pad(segments, ((0, 0), (pad, pad)))
        kernel = self.rules.gather(self.kernel[...], self.axes).astype(x.dtype)
        total = along_last(self.bias[...].astype(x.dtype), x)
        for tap in range(self.size):
            same = there[:, tap : tap + length] == segments
            part = jnp.where(same[..., None], wide[:, tap : tap + length], 0)
            total = total + part @ kernel[tap]
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
            self.convolution = SegmentConvolution(config, rules, rngs)

    def __call__(
        self,
        x: jax.Array,
        shared: Shared,
        kind: int,
        key: jax.Array | None,
        collect: Collection[str],
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, Outputs, LayerCache]:
        # Split once: fold_in(key, n) is the nth of a split, not another key.
        *keys, inner, across, last = split_key(key, 6)
        rates = self.config.dropout
        before = x
        with jax.named_scope("attention"):  # the names that a profile shows
            y = self.enter("attention_norm", x)
            y, found, kept = self.attention(y, shared, kind, keys[0], collect, cache)
        if self.config.placement == "parallel":
            with jax.named_scope("mlp"):
                z = self.mlp(self.mlp_norm(x), inner)
            with jax.named_scope("residual"):
                x = x + dropout(y, rates.attention, keys[1])
                x = x + dropout(z, rates.mlp, keys[2])
        else:
            x = self.leave("attention_norm", x, y, rates.attention, keys[1])
            if self.config.cross_attention:
                x, memory = self.cross(x, shared, across, cache)
                kept = {**kept, **memory}
            with jax.named_scope("mlp"):
                y = self.mlp(self.enter("mlp_norm", x), inner)
            x = self.leave("mlp_norm", x, y, rates.mlp, keys[2])
        if self.convolves:
            x = self.convolution(before, x, shared.segments, last)
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
        keys = split_key(key, 2)
        with jax.named_scope("cross_attention"):
            y = self.enter("cross_attention_norm", x)
            y, kept = self.cross_attention.across(y, shared, keys[0], cache)
        rate = self.config.dropout.attention
        return self.leave("cross_attention_norm", x, y, rate, keys[1]), kept

    def enter(self, name: str, x: jax.Array) -> jax.Array:
        """What a part of the block reads: its input, normalised unless norms follow."""
        if self.config.placement == "post" or (self.bare and name == "attention_norm"):
            return x
        with jax.named_scope("residual"):
            return getattr(self, name)(x)

    def leave(
        self, name: str, x: jax.Array, y: jax.Array, rate: float, key: jax.Array | None
    ) -> jax.Array:
        """The input and what a part made of it, added."""
        with jax.named_scope("residual"):
            if self.config.placement == "sandwich":
                y = getattr(self, f"{name}_after")(y)
            x = x + dropout(y, rate, key)
            if self.config.placement == "post":
                x = getattr(self, name)(x)
            return x
