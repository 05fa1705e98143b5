"""One Transformer for every family: embeddings and a list of stacks."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.mesh import constrain
from jaxlm.core.types import Batch, Outputs
from jaxlm.models.attention import attention_bias, dense_attention
from jaxlm.models.config import TransformerConfig
from jaxlm.models.layers import (
    ACTIVATIONS,
    Embedding,
    LayerNorm,
    Linear,
    dropout,
    split_key,
)
from jaxlm.models.stacks import create_stack, run_stack, stack_names

ACTIVATION_AXES = ("batch", "sequence", "width")


class Embeddings(nnx.Module):
    """Token, position and type vectors, summed and normalised (Devlin et al., 2019)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        width, std = config.width, config.initializer_range
        make = partial(
            Embedding, initializer=jax.nn.initializers.normal(std), rngs=rngs
        )
        self.dropout = config.dropout
        self.tokens = make((config.vocab_size, width), ("vocab", "width"))
        self.positions = make((config.max_positions, width), (None, "width"))
        self.types = make((config.type_vocab_size, width), (None, "width"))
        self.norm = LayerNorm(width, config.norm_epsilon)

    def __call__(
        self, batch: Batch, dtype: jnp.dtype, key: jax.Array | None
    ) -> jax.Array:
        x = self.tokens(batch["tokens"], dtype)
        x = x + self.positions(batch["positions"], dtype)
        x = x + self.types(batch["types"], dtype)
        return dropout(self.norm(x), self.dropout, key)


class Attention(nnx.Module):
    """Multi-head self-attention with its four linear maps."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        width = config.width
        make = partial(
            Linear,
            (width, width),
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
        )
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.query = make(axes=("width", "heads"))
        self.key = make(axes=("width", "heads"))
        self.value = make(axes=("width", "heads"))
        self.output = make(axes=("heads", "width"))

    def __call__(
        self, x: jax.Array, bias: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        query, keys, value = (
            constrain(
                part.reshape(*part.shape[:2], self.heads, -1),
                ("batch", "sequence", "heads", None),
            )
            for part in (self.query(x), self.key(x), self.value(x))
        )
        y = dense_attention(
            query, keys, value, bias, rate=self.dropout, dropout_key=key
        )
        return self.output(y.reshape(x.shape))


class Mlp(nnx.Module):
    """Two linear maps around an activation."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        make = partial(
            Linear,
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
        )
        self.activation = config.activation
        self.up = make((config.width, config.mlp_width), ("width", "mlp"))
        self.down = make((config.mlp_width, config.width), ("mlp", "width"))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = constrain(self.up(x), ("batch", "sequence", "mlp"))
        return self.down(ACTIVATIONS[self.activation](y))


class Block(nnx.Module):
    """Attention and MLP, each added to its input and then normalised (post-norm)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.attention = Attention(config, rngs)
        self.attention_norm = LayerNorm(config.width, config.norm_epsilon)
        self.mlp = Mlp(config, rngs)
        self.mlp_norm = LayerNorm(config.width, config.norm_epsilon)

    def __call__(
        self, x: jax.Array, bias: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        weights_key, attention_key, mlp_key = split_key(key, 3)
        y = self.attention(x, bias, weights_key)
        x = self.attention_norm(x + dropout(y, self.dropout, attention_key))
        y = self.mlp(x)
        x = self.mlp_norm(x + dropout(y, self.dropout, mlp_key))
        return constrain(x, ACTIVATION_AXES)


class Transformer(nnx.Module):
    """Tokens to hidden states.

    Called with a batch (see ``jaxlm.core.types.Batch``; ``types i32[B, S]`` is
    optional) it returns ``hidden [B, S, D]`` and, with a pooler, ``pooled [B, P, D]``:
    the first token of every segment through a tanh layer.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rngs: nnx.Rngs,
        *,
        scan: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
    ):
        self.config, self.scan, self.remat, self.dtype = config, scan, remat, dtype
        self.embeddings = Embeddings(config, rngs)
        for name, layers in stack_names(config.stacks):
            stack = create_stack(partial(Block, config), len(layers), rngs)
            setattr(self, name, stack)
        if config.pooler:
            self.pooler = Linear(
                (config.width, config.width),
                ("width", "width_out"),
                initializer=jax.nn.initializers.normal(config.initializer_range),
                rngs=rngs,
            )

    def __call__(self, batch: Batch, key: jax.Array | None = None) -> Outputs:
        if "types" not in batch:
            batch = {**batch, "types": jnp.zeros_like(batch["tokens"])}
        embeddings_key, layers_key = split_key(key, 2)
        bias = attention_bias(batch["segments"])
        x = self.embeddings(batch, self.dtype, embeddings_key)
        x = constrain(x, ACTIVATION_AXES)
        for name, layers in stack_names(self.config.stacks):
            x = run_stack(
                getattr(self, name),
                layers,
                x,
                bias,
                layers_key,
                scan=self.scan,
                remat=self.remat,
            )
        outputs = {"hidden": x}
        if self.config.pooler:
            first = jnp.take_along_axis(x, batch["starts"][:, :, None], axis=1)
            outputs["pooled"] = jnp.tanh(self.pooler(first))
        return outputs
