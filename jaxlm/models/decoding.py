"""Decoding on the device: the prompt at once, then a token at a time.

All shapes are static: prompts are padded on the left to a bucket, the cache has a slot
for every token that may come. A loop runs several tokens for each call.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.types import Apply, Batch, Params
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.cache import Cache, empty_cache
from jaxlm.models.layers import Transposed
from jaxlm.models.sampling import Sampling, draw, logprob, penalise, restrict


class Start(NamedTuple):
    """Prompts, padded on the left: ``tokens``, ``mask`` [B, P].

    An encoder-decoder reads these by its encoder, and ``start i32[]`` is what its
    decoder begins with.
    """

    tokens: jax.Array
    mask: jax.Array
    start: jax.Array


class Sequences(NamedTuple):
    """How far a batch of sequences has come.

    ``tokens i32[B, N]`` and ``logprobs f32[B, N]`` are those generated, of which the
    first ``count i32[]`` are there; ``done bool[B]``; ``position i32[B]`` is that of
    the last of them; ``keys`` [B] are the rows' own. ``seen bool[B, V]`` are the tokens
    that a penalty is for, [B, 0] without one.
    """

    cache: Cache
    tokens: jax.Array
    logprobs: jax.Array
    count: jax.Array
    done: jax.Array
    position: jax.Array
    keys: jax.Array
    seen: jax.Array


def for_decoding(params: Params) -> Params:
    """Parameters as a loop of products with few rows reads them fastest.

    On a CPU the kernels are turned over, once (``Transposed``); elsewhere as they are.
    """
    if jax.default_backend() != "cpu":
        return params

    def turned(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        names = [part.key for part in path]
        if names[-1] != "kernel" or names[-2] in ("language", "convolution"):
            return leaf
        return Transposed(leaf.swapaxes(-1, -2))

    return jax.jit(partial(jax.tree_util.tree_map_with_path, turned))(params)


def prefill(
    apply: Apply,
    config: TransformerConfig,
    params: Params,
    start: Start,
    slots: int,
    dtype: Any,
) -> tuple[jax.Array, Cache, jax.Array]:
    """Read the prompts: ``logits f32[B, V]`` of what comes next, cache, position.

    ``position i32[B]`` is that of the last token that was read.
    """
    rows = start.tokens.shape[0]
    length = start.mask.sum(1).astype(jnp.int32)
    batch = {
        "tokens": start.tokens,
        "mask": start.mask,
        "segments": start.mask.astype(jnp.int32),
        "positions": jnp.maximum(jnp.cumsum(start.mask, 1) - 1, 0).astype(jnp.int32),
    }
    if config.decoder is not None:
        first = jnp.broadcast_to(start.start, (rows,)).astype(jnp.int32)
        batch |= target_batch(first, jnp.zeros_like(first), "target_")
        length = jnp.ones_like(length)
    cache = empty_cache(config, rows, slots, dtype)
    outputs: Any = apply(params, batch, cache=cache)
    return outputs["logits"][:, -1], outputs["cache"], length - 1


def target_batch(tokens: jax.Array, positions: jax.Array, prefix: str = "") -> Batch:
    """One more token a row: ``tokens``, ``positions`` i32[B]."""
    fields = {
        "tokens": tokens[:, None],
        "segments": jnp.ones_like(tokens)[:, None],
        "positions": positions[:, None],
    }
    return {f"{prefix}{name}": value for name, value in fields.items()}


def advance(
    apply: Apply,
    config: TransformerConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Read one more token a row, ``tokens i32[B]``: ``logits f32[B, V]`` and cache."""
    prefix = "" if config.decoder is None else "target_"
    batch = target_batch(tokens, positions, prefix)
    outputs: Any = apply(params, batch, cache=cache)
    return outputs["logits"][:, -1], outputs["cache"]


def begin(
    logits: jax.Array,
    cache: Cache,
    position: jax.Array,
    keys: jax.Array,
    seen: jax.Array,
    idle: jax.Array,
    most: int,
) -> Sequences:
    """Nothing generated yet: room for ``most`` tokens; ``idle bool[B]`` stay empty."""
    rows = logits.shape[0]
    return Sequences(
        cache,
        jnp.zeros((rows, most), jnp.int32),
        jnp.zeros((rows, most), jnp.float32),
        jnp.zeros((), jnp.int32),
        idle,
        position,
        keys,
        seen,
    )


def choose(
    progress: Sequences,
    logits: jax.Array,
    sampling: Sampling,
    stops: jax.Array,
    sample: bool,
) -> Sequences:
    """One more token of every row that is not done, from its logits f32[B, V].

    ``stops i32[E]`` end a sequence and are its last token. Log-probabilities are those
    of the model, before penalty and temperature.
    """
    scores = logits
    if progress.seen.shape[1]:
        scores = penalise(scores, progress.seen, sampling.repetition_penalty)
    if sample:
        keys = jax.vmap(jax.random.fold_in, (0, None))(progress.keys, progress.count)
        token = draw(restrict(scores, sampling), keys)
    else:
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    token = jnp.where(progress.done, 0, token)
    value = jnp.where(progress.done, 0.0, logprob(logits, token))
    place = (0, progress.count)
    put = jax.lax.dynamic_update_slice
    seen = progress.seen
    if seen.shape[1]:
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    return progress._replace(
        tokens=put(progress.tokens, token[:, None], place),
        logprobs=put(progress.logprobs, value[:, None], place),
        count=progress.count + 1,
        done=progress.done | (token[:, None] == stops[None]).any(-1),
        position=progress.position + 1,
        seen=seen,
    )


def decode(
    apply: Apply,
    config: TransformerConfig,
    params: Params,
    progress: Sequences,
    sampling: Sampling,
    stops: jax.Array,
    until: jax.Array,
    *,
    sample: bool,
) -> Sequences:
    """Tokens until there are ``until i32[]``, or all sequences are done."""

    def more(progress: Sequences) -> jax.Array:
        return (progress.count < until) & ~progress.done.all()

    def step(progress: Sequences) -> Sequences:
        last = jax.lax.dynamic_index_in_dim(
            progress.tokens, progress.count - 1, axis=1, keepdims=False
        )
        logits, cache = advance(
            apply, config, params, last, progress.position, progress.cache
        )
        return choose(progress._replace(cache=cache), logits, sampling, stops, sample)

    return jax.lax.while_loop(more, step, progress)
