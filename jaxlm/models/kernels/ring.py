"""Ring attention: rows whose tokens lie on several devices (arXiv:2310.01889).

Each device keeps its queries. Keys, values and their segments go round, a neighbour at
a time, while it adds what they give to a softmax that is kept unfinished, in fp32
(FlashAttention, arXiv:2205.14135). Backward they go round again, with their gradients:
nothing of the blocks is stored between. No device ever holds a whole row, nor all its
scores. Where attention is causal the last device has the most to do: rows are not laid
out in zigzag.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.mesh import Axes, Rules
from jaxlm.models.attention import MASKED
from jaxlm.models.layers import bits_at, drop_threshold

ROWS: Axes = ("batch", "sequence")
HEADS: Axes = ("batch", "sequence", "heads", None)
"""A head is whole, whatever the rule of ``head_size``: products sum over it."""


@dataclass(frozen=True)
class Ring:
    """Which devices hold what of the rows, and how the scores are made.

    ``batch``, ``tokens`` and ``heads`` are the mesh axes, with their sizes, that split
    these; ``length`` is that of whole rows, without what is padded to split them. The
    others as for ``models.attention``.
    """

    batch: tuple[tuple[str, int], ...]
    tokens: tuple[tuple[str, int], ...]
    heads: tuple[tuple[str, int], ...]
    length: int
    causal: bool
    reach: int | None
    scale: float
    cap: float | None
    rate: float

    @property
    def size(self) -> int:
        """Devices of one ring."""
        return math.prod(size for _, size in self.tokens)

    def turns(self, length: int) -> int:
        """How many blocks of ``length`` tokens a device must see, its own the first.

        Of those before it only so many are in the reach of its queries.
        """
        if self.reach is None or not self.causal:
            return self.size
        return min(self.size, 1 + -(-self.reach // length))

    def shift(self, tree: Any, places: int) -> Any:
        """What each device has to the device so many places on."""
        if self.size == 1 or places % self.size == 0:
            return tree
        axes = tuple(name for name, _ in self.tokens)
        pairs = [(n, (n + places) % self.size) for n in range(self.size)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axes, pairs), tree)


class Block(NamedTuple):
    """What goes round: keys and values [B, S, G, K] and their segments i32[B, S]."""

    key: jax.Array
    value: jax.Array
    segments: jax.Array


def ring_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    dropout_key: jax.Array | None,
    *,
    causal: bool,
    reach: int | None,
    scale: float,
    cap: float | None,
    rate: float,
    rules: Rules,
) -> jax.Array:
    """Attention of tokens to their own segment, over the mesh of ``jax.set_mesh``.

    ``query [B, S, H, K]``; ``key`` and ``value [B, S, G, K]``, each for H / G heads;
    ``segments i32[B, S]``, 0 is padding, which gets zeros. Returns [B, S, H, K]. The
    mask of dropout is that of dense attention, whatever the layout.
    """
    sizes = jax.sharding.get_abstract_mesh().shape if rules.table else {}
    batch, tokens, heads, _ = (
        tuple((axis, sizes[axis]) for axis in mine if sizes.get(axis, 1) > 1)
        for mine in rules.mesh_axes(HEADS)
    )
    length = query.shape[1]
    ring = Ring(
        batch,
        tokens,
        heads,
        length,
        causal=causal,
        reach=reach,
        scale=scale,
        cap=cap,
        rate=0.0 if dropout_key is None else rate,
    )
    words = jnp.zeros(2, jnp.uint32)
    if dropout_key is not None:
        words = jax.random.key_data(dropout_key).ravel()
    local = partial(_attend, ring)
    if sizes:
        four, two = rules.partition(HEADS), rules.partition(ROWS)
        local = jax.shard_map(
            local,
            in_specs=(four, four, four, two, jax.sharding.PartitionSpec()),
            out_specs=four,
            check_vma=False,  # a custom gradient does not say how it varies
        )
    pad = -length % ring.size
    arrays = [
        jnp.pad(each, ((0, 0), (0, pad), *[(0, 0)] * (each.ndim - 2)))
        for each in (query, key, value, segments)
    ]
    return local(*arrays, words)[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    ring: Ring,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    words: jax.Array,
) -> jax.Array:
    return _forward(ring, query, key, value, segments, words)[0]


def _forward(
    ring: Ring,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    words: jax.Array,
) -> tuple[jax.Array, Any]:
    """The result and, for the gradient, the logarithm of each query's total."""
    asked = _grouped(query, key.shape[2])  # [B, S, G, R, K]
    B, S, G, R, K = asked.shape
    start = (
        jnp.zeros((B, S, G, R, K), jnp.float32),
        jnp.full((B, G, R, S), MASKED, jnp.float32),
        jnp.zeros((B, G, R, S), jnp.float32),
    )

    def absorb(state: Any, block: Block, turn: jax.Array | int) -> Any:
        result, most, total = state
        scores, allowed = _scores(ring, asked, segments, block, turn)
        highest = jnp.maximum(most, scores.max(-1))
        weights = jnp.where(allowed, jnp.exp(scores - highest[..., None]), 0)
        fade = jnp.exp(most - highest)
        total = total * fade + weights.sum(-1)
        if ring.rate:
            weights = weights * _kept(ring, words, weights.shape, turn)
        part = jnp.einsum(
            "bgrst,btgk->bsgrk",
            weights.astype(value.dtype),
            block.value,
            preferred_element_type=jnp.float32,
        )
        return result * _beside(fade) + part, highest, total

    def step(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        state, block = carry
        coming = ring.shift(block, 1)  # on its way while this one is used
        return (absorb(state, block, turn), coming), None

    turns = ring.turns(S)
    carry = (start, Block(key, value, segments))
    if turns > 1:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(turns - 1))
    state, block = carry
    result, most, total = absorb(state, block, turns - 1)
    total = jnp.where(total > 0, total, 1)  # of padding, which sees nothing
    result = (result / _beside(total)).astype(value.dtype).reshape(query.shape)
    kept = query, key, value, segments, words, result, most + jnp.log(total)
    return result, kept


def _backward(ring: Ring, kept: Any, gradient: jax.Array) -> Any:
    """Gradients of queries, keys and values; keys' and values' go round with them."""
    query, key, value, segments, words, result, logarithm = kept
    groups = key.shape[2]
    asked, given = _grouped(query, groups), _grouped(gradient, groups)
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    mean = given.astype(jnp.float32) * _grouped(result, groups).astype(jnp.float32)
    mean = jnp.moveaxis(mean.sum(-1), 1, -1)[..., None]  # [B, G, R, S, 1]

    def absorb(of_query: jax.Array, block: Block, turn: jax.Array | int) -> Any:
        scores, allowed = _scores(ring, asked, segments, block, turn)
        weights = jnp.where(allowed, jnp.exp(scores - logarithm[..., None]), 0)
        change = dot("bsgrk,btgk->bgrst", given, block.value)
        dropped = weights
        if ring.rate:
            factor = _kept(ring, words, weights.shape, turn)
            dropped, change = weights * factor, change * factor
        of_value = dot("bgrst,bsgrk->btgk", dropped.astype(value.dtype), given)
        change = weights * (change - mean) * ring.scale
        if ring.cap is not None:
            change = change * jnp.where(allowed, 1 - jnp.square(scores / ring.cap), 0)
        change = change.astype(query.dtype)
        of_key = dot("bgrst,bsgrk->btgk", change, asked)
        more = dot("bgrst,btgk->bsgrk", change, block.key)
        return of_query + more, of_key, of_value

    def step(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        of_query, block, sums = carry
        coming = ring.shift(block, 1)
        of_query, *parts = absorb(of_query, block, turn)
        sums = [one + part for one, part in zip(sums, parts, strict=True)]
        return (of_query, coming, ring.shift(sums, 1)), None

    turns = ring.turns(query.shape[1])
    sums = [jnp.zeros(part.shape, jnp.float32) for part in (key, value)]
    block = Block(key, value, segments)
    carry = (jnp.zeros(asked.shape, jnp.float32), block, sums)
    if turns > 1:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(turns - 1))
    of_query, block, sums = carry
    of_query, *parts = absorb(of_query, block, turns - 1)
    sums = [one + part for one, part in zip(sums, parts, strict=True)]
    home = ring.shift(sums, 1 - turns)
    return (
        of_query.astype(query.dtype).reshape(query.shape),
        home[0].astype(key.dtype),
        home[1].astype(value.dtype),
        None,
        None,
    )


_attend.defvjp(_forward, _backward)


def _scores(
    ring: Ring,
    asked: jax.Array,
    segments: jax.Array,
    block: Block,
    turn: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """Scores f32[B, G, R, S, T] of a block, and which of them are allowed.

    ``asked [B, S, G, R, K]`` are the queries of the G groups of R heads.
    """
    scores = jnp.einsum(
        "bsgrk,btgk->bgrst", asked, block.key, preferred_element_type=jnp.float32
    )
    scores = scores * ring.scale
    if ring.cap is not None:
        scores = ring.cap * jnp.tanh(scores / ring.cap)
    theirs = block.segments[:, None, :]
    allowed = (segments[:, :, None] == theirs) & (theirs > 0)
    if ring.causal or ring.reach is not None:
        length = asked.shape[1]
        queries = _index(ring.tokens) * length + jnp.arange(length)
        keys = _source(ring, turn) * length + jnp.arange(length)
        apart = queries[:, None] - keys[None, :]
        near = apart >= 0 if ring.causal else jnp.ones_like(apart, bool)
        if ring.reach is not None:
            near = near & (jnp.abs(apart) <= ring.reach)
        allowed = allowed & near[None]
    allowed = allowed[:, None, None]
    return jnp.where(allowed, scores, MASKED), allowed


def _kept(
    ring: Ring, words: jax.Array, shape: tuple[int, ...], turn: jax.Array | int
) -> jax.Array:
    """What dropout multiplies the weights of a block by, f32[B, G, R, S, T].

    By the place of each weight in the dense f32[B, H, S, T] of the whole batch.
    """
    B, G, R, S, T = shape
    row = jnp.zeros((1, 1, 1, 1), jnp.uint32)
    parts = (ring.batch, B), (ring.heads, G), ((), R), (ring.tokens, S)
    for axis, (split, count) in enumerate(parts):
        whole = count * math.prod(size for _, size in split)
        whole = ring.length if axis == 3 else whole
        first = jnp.uint32(_index(split) * count)
        each = jnp.arange(count, dtype=jnp.uint32) + first
        spread = [1] * axis + [count] + [1] * (3 - axis)
        row = row * jnp.uint32(whole) + each.reshape(spread)
    column = jnp.uint32(_source(ring, turn) * T) + jnp.arange(T, dtype=jnp.uint32)
    bits = bits_at(words, row[..., None], column.reshape(1, 1, 1, 1, T))
    threshold = drop_threshold(ring.rate)
    return jnp.where(bits >= jnp.uint32(threshold), 2**32 / (2**32 - threshold), 0)


def _index(axes: tuple[tuple[str, int], ...]) -> jax.Array | int:
    """The number of this device among those that some mesh axes count."""
    return jax.lax.axis_index(tuple(name for name, _ in axes)) if axes else 0


def _source(ring: Ring, turn: jax.Array | int) -> jax.Array | int:
    """Whose block a device has at a turn."""
    return (_index(ring.tokens) - turn) % ring.size


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """``[B, S, H, K] -> [B, S, G, R, K]``: heads by the keys that they share."""
    return x.reshape(*x.shape[:2], groups, -1, x.shape[-1])


def _beside(total: jax.Array) -> jax.Array:
    """``[B, G, R, S] -> [B, S, G, R, 1]``."""
    return jnp.moveaxis(total, -1, 1)[..., None]
