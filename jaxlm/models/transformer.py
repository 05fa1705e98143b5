"""One Transformer for every family: embeddings and a list of stacks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.grouping import stack_names
from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.core.types import Batch, Outputs
from jaxlm.models.attention import (
    attention_bias,
    attention_weights,
    dense_attention,
)
from jaxlm.models.config import TransformerConfig
from jaxlm.models.layers import (
    ACTIVATIONS,
    Embedding,
    LayerNorm,
    Linear,
    dropout,
    split_key,
)
from jaxlm.models.stacks import create_stack, run_stack

ACTIVATION_AXES = ("batch", "sequence", "width")
COLLECTED = ("hidden_states", "attention")
"""What may be asked for by ``collect``."""


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

    def __init__(self, config: TransformerConfig, rules: Rules, rngs: nnx.Rngs):
        width = config.width
        make = partial(
            Linear,
            (width, width),
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
            rules=rules,
        )
        self.rules = rules
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.query = make(axes=("width", "heads"))
        self.key = make(axes=("width", "heads"))
        self.value = make(axes=("width", "heads"))
        self.output = make(axes=("heads", "width"))

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        key: jax.Array | None,
        collect: Collection[str],
    ) -> tuple[jax.Array, Outputs]:
        query, keys, value = (
            self.rules.constrain(
                part.reshape(*part.shape[:2], self.heads, -1),
                ("batch", "sequence", "heads", "head_size"),
            )
            for part in (self.query(x), self.key(x), self.value(x))
        )
        y = dense_attention(
            query,
            keys,
            value,
            bias,
            rate=self.dropout,
            dropout_key=key,
            rules=self.rules,
        )
        found = {}
        if "attention" in collect:
            found["attention"] = attention_weights(query, keys, bias)
        return self.output(y.reshape(x.shape)), found


class Mlp(nnx.Module):
    """Two linear maps around an activation."""

    def __init__(self, config: TransformerConfig, rules: Rules, rngs: nnx.Rngs):
        make = partial(
            Linear,
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
            rules=rules,
        )
        self.rules = rules
        self.activation = config.activation
        self.up = make((config.width, config.mlp_width), ("width", "mlp"))
        self.down = make((config.mlp_width, config.width), ("mlp", "width"))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.rules.constrain(self.up(x), ("batch", "sequence", "mlp"))
        return self.down(ACTIVATIONS[self.activation](y))


class Block(nnx.Module):
    """Attention and MLP, each added to its input and then normalised (post-norm).

    Returns ``x [B, S, D]`` and, of what ``collect`` names, this layer's part.
    """

    def __init__(self, config: TransformerConfig, rules: Rules, rngs: nnx.Rngs):
        self.rules = rules
        self.dropout = config.dropout
        self.attention = Attention(config, rules, rngs)
        self.attention_norm = LayerNorm(config.width, config.norm_epsilon)
        self.mlp = Mlp(config, rules, rngs)
        self.mlp_norm = LayerNorm(config.width, config.norm_epsilon)

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        key: jax.Array | None,
        collect: Collection[str],
    ) -> tuple[jax.Array, Outputs]:
        weights_key, attention_key, mlp_key = split_key(key, 3)
        with jax.named_scope("attention"):  # the names that a profile shows
            y, found = self.attention(x, bias, weights_key, collect)
        with jax.named_scope("residual"):
            x = self.attention_norm(x + dropout(y, self.dropout, attention_key))
        with jax.named_scope("mlp"):
            y = self.mlp(x)
        with jax.named_scope("residual"):
            x = self.mlp_norm(x + dropout(y, self.dropout, mlp_key))
        x = self.rules.constrain(x, ACTIVATION_AXES)
        if "hidden_states" in collect:
            found["hidden_states"] = x
        return x, found


class Transformer(nnx.Module):
    """Tokens to hidden states.

    Called with a batch (see ``jaxlm.core.types.Batch``; ``types i32[B, S]`` is
    optional) it returns ``hidden [B, S, D]`` and, with a pooler, ``pooled [B, P, D]``:
    the first token of every segment through a tanh layer. ``collect`` adds
    ``hidden_states [B, layers + 1, S, D]``, those of the embeddings and of every layer,
    and ``attention f32[B, layers, H, S, S]``, the weights before dropout.

    Raises:
      ValueError: ``collect`` has another name, or there is a ``cache``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rngs: nnx.Rngs,
        *,
        rules: Rules = NO_RULES,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
    ):
        self.config, self.rules, self.dtype = config, rules, dtype
        self.remat = remat
        self.embeddings = Embeddings(config, rngs)
        # Drawn at once: new weights, and the head's, do not hang on how depth is cut.
        keys = jax.random.split(rngs.params(), config.layers)
        for name, layers in stack_names(config.stacks):
            mine = keys[layers.start : layers.stop]
            setattr(self, name, create_stack(partial(Block, config, rules), mine))
        if config.pooler:
            self.pooler = Linear(
                (config.width, config.width),
                ("width", "width_out"),
                initializer=jax.nn.initializers.normal(config.initializer_range),
                rngs=rngs,
                rules=rules,
            )

    def __call__(
        self,
        batch: Batch,
        key: jax.Array | None = None,
        *,
        cache: Any = None,
        collect: Collection[str] = (),
    ) -> Outputs:
        if cache is not None:
            raise ValueError("an encoder has no cache; cache=None alone is allowed")
        if unknown := [name for name in collect if name not in COLLECTED]:
            allowed = ", ".join(COLLECTED)
            raise ValueError(f"collect={unknown} is not allowed; any of: {allowed}")
        if "types" not in batch:
            batch = {**batch, "types": jnp.zeros_like(batch["tokens"])}
        embeddings_key, layers_key = split_key(key, 2)
        bias = attention_bias(batch["segments"])
        with jax.named_scope("embeddings"):
            x = self.embeddings(batch, self.dtype, embeddings_key)
        x = embedded = self.rules.constrain(x, ACTIVATION_AXES)
        found = []
        for name, layers in stack_names(self.config.stacks):
            x, values = run_stack(
                getattr(self, name),
                layers,
                x,
                bias,
                layers_key,
                remat=self.remat,
                collect=collect,
            )
            found.append(values)
        outputs = {"hidden": x, **join_layers(embedded, found)}
        if self.config.pooler:
            first = jnp.take_along_axis(x, batch["starts"][:, :, None], axis=1)
            outputs["pooled"] = jnp.tanh(self.pooler(first))
        return outputs


def join_layers(embedded: jax.Array, stacks: Sequence[Outputs]) -> Outputs:
    """What stacks collected ``[layers, B, ...]`` as one ``[B, layers, ...]`` each.

    The embeddings' output ``[B, S, D]`` comes first among the hidden states.
    """
    joined = {}
    for name in stacks[0]:
        parts = [stack[name] for stack in stacks]
        if name == "hidden_states":
            parts.insert(0, embedded[None])
        joined[name] = jnp.moveaxis(jnp.concatenate(parts), 0, 1)
    return joined
