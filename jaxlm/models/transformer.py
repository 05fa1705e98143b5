"""One Transformer for every family: embeddings and a list of stacks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.grouping import stack_names
from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.core.types import Batch, Outputs
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.attention import Visibility
from jaxlm.models.backends import DENSE, Backend
from jaxlm.models.blocks import ACTIVATION_AXES, Block
from jaxlm.models.cache import Cache, slots_of, window
from jaxlm.models.layers import (
    ACTIVATIONS,
    Embedding,
    LayerNorm,
    Linear,
    dropout,
    folded,
    make_norm,
    split_key,
)
from jaxlm.models.multi_head import Shared
from jaxlm.models.positions import bucket, distances, rotation, table_row
from jaxlm.models.stacks import create_stack, run_stack

COLLECTED = ("hidden_states", "attention")
"""What may be asked for by ``collect``."""


class Embeddings(nnx.Module):
    """Token, position and type vectors, summed, and normalised in most encoders."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, rules: Rules):
        width, std = config.embedding_width, config.initializer_range
        draw = jax.nn.initializers.normal(std)
        make = partial(Embedding, initializer=draw, rngs=rngs, rules=rules)
        self.config = config
        self.tokens = make((config.vocab_rows, width), ("vocab", "width"))
        if config.learned_positions:
            self.positions = make((config.position_rows, width), (None, "width"))
        if config.type_vocab_size:
            self.types = make((config.type_vocab_size, width), (None, "width"))
        if config.projected:
            self.projection = Linear(
                (width, config.width),
                ("embedding", "width"),
                initializer=draw,
                rngs=rngs,
                rules=rules,
                bias=config.projection_bias,
            )
        if config.embedding_norm:
            early = config.projected and config.projection == "after_norm"
            self.norm = make_norm(config, width if early else config.width)

    def __call__(
        self, batch: Batch, dtype: jnp.dtype, key: jax.Array | None
    ) -> jax.Array:
        config = self.config
        x = self.tokens(batch["tokens"], dtype)
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, dtype)
        if config.learned_positions:
            places = batch["positions"] + config.position_offset
            x = x + self.positions(places, dtype)
        if config.type_vocab_size:
            types = batch.get("types", jnp.zeros_like(batch["tokens"]))
            x = x + self.types(types, dtype)
        if config.projected and config.projection == "before_norm":
            x = self.projection(x)
        if config.embedding_norm:
            x = self.norm(x)
        x = dropout(x, config.dropout.embeddings, key)
        if config.projected and config.projection == "after_norm":
            x = self.projection(x)
        return x


class Layers(nnx.Module):
    """The stacks of one Transformer, what they share, and the norm after them."""

    def __init__(
        self,
        config: TransformerConfig,
        rngs: nnx.Rngs,
        *,
        rules: Rules = NO_RULES,
        remat: str = "none",
        attention: Backend = DENSE,
    ):
        rules = replace(rules, regather=remat == "none")
        self.config, self.rules, self.remat = config, rules, remat
        self.backend = attention
        # Drawn at once: new weights, and the head's, do not hang on how depth is cut.
        keys = jax.random.split(rngs.params(), config.layers)
        for name, layers in stack_names(config.stacks):
            mine = keys[layers.start : layers.stop]
            make = partial(Block, config, rules, first=layers == range(1))
            setattr(self, name, create_stack(make, mine))
        draw = jax.nn.initializers.normal(config.initializer_range)
        table = partial(Embedding, initializer=draw, rngs=rngs, rules=rules)
        if config.buckets:
            self.relative = table((config.buckets.count, config.heads), (None, "heads"))
        if config.disentangled:
            rows = 2 * config.disentangled.span
            self.relative = table((rows, config.width), (None, "width"))
            if config.disentangled.norm:
                self.relative_norm = LayerNorm(config.width, config.norm_epsilon)
        if config.final_norm:
            self.final_norm = make_norm(config)

    def run(
        self,
        x: jax.Array,
        batch: Batch,
        key: jax.Array | None,
        *,
        cache: Cache | None = None,
        memory: tuple[jax.Array | None, jax.Array] | None = None,
        collect: Collection[str] = (),
    ) -> Outputs:
        """``x [B, S, D]`` through all layers: ``hidden``, what was asked, ``cache``.

        ``memory`` is the encoder's output [B, T, D], or None where the cache has it,
        and its segments i32[B, T].
        """
        if unknown := [name for name in collect if name not in COLLECTED]:
            allowed = ", ".join(COLLECTED)
            raise ValueError(f"collect={unknown} is not allowed; any of: {allowed}")
        config = self.config
        x = embedded = self.rules.constrain(x, ACTIVATION_AXES)
        # What remembers and what shows its weights is dense, whatever trains.
        plain = cache is not None or "attention" in collect
        backend = DENSE if plain else self.backend
        shared, kept = self.share(batch, cache, memory, x.dtype, backend)
        found = []
        for name, layers in stack_names(config.stacks):
            x, values, mine = run_stack(
                getattr(self, name),
                layers,
                x,
                shared,
                key,
                kinds=[config.kind(layer) for layer in layers],
                repeats=config.repeats,
                remat=self.remat,
                collect=collect,
                cache=None if cache is None else cache[name],
            )
            found.append(values)
            if cache is not None:
                kept[name] = mine
        outputs = {"hidden": x, **join_layers(embedded, found)}
        if config.final_norm:
            outputs["hidden"] = self.final_norm(x)
        if cache is not None:
            outputs["cache"] = kept  # pyright: ignore[reportArgumentType]
        return outputs

    def share(
        self,
        batch: Batch,
        cache: Cache | None,
        memory: tuple[jax.Array | None, jax.Array] | None,
        dtype: jnp.dtype,
        backend: Backend,
    ) -> tuple[Shared, Cache]:
        """What all layers read, and the part of the cache that is theirs together."""
        config, segments = self.config, batch["segments"]
        here = places = jnp.arange(segments.shape[1])
        keys, slot, kept = segments, 0, {}
        seen = [(keys, places)] * len(config.kinds)
        if cache is not None:
            slot = cache["slot"]
            keys = jax.lax.dynamic_update_slice(cache["segments"], segments, (0, slot))
            kept = {"segments": keys, "slot": slot + segments.shape[1]}
            here, places = slot + here, jnp.arange(keys.shape[1])
            widths = slots_of(config, keys.shape[1])
            seen = [window(keys, here, width) for width in widths]
        apart = distances(here, places)
        relative = extra = None
        if config.buckets:
            rows = bucket(apart, config.buckets, config.causal)
            extra = self.relative(rows, jnp.dtype(jnp.float32))  # [S, T, H]
            extra = jnp.moveaxis(extra, -1, 0)[None]
        visible = [
            Visibility(
                segments,
                each,
                order=(here, at),
                extra=extra,
                causal=config.causal,
                reach=kind.reach,
                most=batch["starts"].shape[1] if "starts" in batch else None,
                backend=backend,
            ).with_bias()
            for kind, (each, at) in zip(config.kinds, seen, strict=True)
        ]
        if config.disentangled:
            table = self.relative.embedding[...].astype(dtype)
            if config.disentangled.norm:
                table = self.relative_norm(table)
            relative = table, table_row(apart, config.disentangled)
        rotations = [
            rotation(kind.rope, batch["positions"]) if kind.rope else None
            for kind in config.kinds
        ]
        there = None if memory is None else Visibility(segments, memory[1]).with_bias()
        shared = Shared(
            segments,
            tuple(visible),
            tuple(rotations),
            jnp.asarray(slot, jnp.int32),
            relative,
            memory=None if memory is None else memory[0],
            memory_visible=there,
        )
        return shared, kept


class Transformer(Layers):
    """Tokens to hidden states.

    Called with a batch (see ``jaxlm.core.types.Batch``; ``types i32[B, S]`` is
    optional) it returns ``hidden [B, S, D]`` and, with a pooler, ``pooled [B, P, D]``:
    a vector of every segment, as ``config.pooling`` says. ``collect`` adds
    ``hidden_states [B, layers + 1, S, D]``, those of the embeddings and of every layer,
    and ``attention f32[B, layers, H, S, S]``, the weights before dropout. A causal one
    takes a ``cache`` (``jaxlm.models.cache``) and returns it with the batch's tokens.

    Raises:
      ValueError: ``collect`` has another name, or an encoder is given a ``cache``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        rngs: nnx.Rngs,
        *,
        rules: Rules = NO_RULES,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        attention: Backend = DENSE,
    ):
        self.dtype = dtype
        self.embeddings = Embeddings(config, rngs, rules)
        super().__init__(config, rngs, rules=rules, remat=remat, attention=attention)
        if config.pooler and config.pooling.dense:
            self.pooler = Pooler(config, rngs, rules)

    def __call__(
        self,
        batch: Batch,
        key: jax.Array | None = None,
        *,
        cache: Cache | None = None,
        collect: Collection[str] = (),
    ) -> Outputs:
        config = self.config
        if cache is not None and not config.causal:
            raise ValueError("an encoder has no cache; cache=None alone is allowed")
        embeddings_key, layers_key = split_key(key, 2)
        with jax.named_scope("embeddings"):
            x = self.embeddings(batch, self.dtype, embeddings_key)
        outputs = self.run(x, batch, layers_key, cache=cache, collect=collect)
        if config.pooler:
            pooled = pool(outputs["hidden"], batch, config.pooling.reads)
            if config.pooling.dense:
                rate = config.dropout.pooler
                pooled = self.pooler(dropout(pooled, rate, folded(key, 2)))
            outputs["pooled"] = pooled
        return outputs


class Pooler(Linear):
    """A linear map, an activation and perhaps a norm, as ``config.pooling`` says."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, rules: Rules):
        pooling = config.pooling
        super().__init__(
            (config.width, config.width),
            ("width", "width_out"),
            initializer=jax.nn.initializers.normal(config.initializer_range),
            rngs=rngs,
            rules=rules,
            bias=pooling.bias,
        )
        self.activation, self.normalises = pooling.activation, pooling.norm
        if pooling.norm:
            self.norm = make_norm(config)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = ACTIVATIONS[self.activation](super().__call__(x))
        return self.norm(y) if self.normalises else y


def pool(hidden: jax.Array, batch: Batch, reads: str) -> jax.Array:
    """A vector of every segment: ``[B, S, D] -> [B, P, D]``.

    ``reads``: that of its ``first`` or ``last`` token, or the ``mean`` of all. Segment
    p + 1 of a row is example p; the mean of an absent one is zeros. Means are summed
    and counted in fp32: bf16 cannot count beyond 256.
    """
    starts = batch["starts"]
    if reads == "first":
        return jnp.take_along_axis(hidden, starts[:, :, None], axis=1)
    numbers = jnp.arange(1, starts.shape[1] + 1)[None, :, None]
    member = batch["segments"][:, None, :] == numbers  # [B, P, S]
    if reads == "last":
        length = member.sum(-1)
        last = starts + jnp.maximum(length, 1) - 1
        return jnp.take_along_axis(hidden, last[:, :, None], axis=1)
    weights = member.astype(jnp.float32)
    count = jnp.maximum(weights.sum(-1, keepdims=True), 1)
    total = jnp.einsum("bps,bsd->bpd", weights, hidden.astype(jnp.float32))
    return (total / count).astype(hidden.dtype)


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
