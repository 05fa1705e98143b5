"""Beam search: the best sequences by the sum of their log-probabilities.

As transformers has it (``early_stopping=False``), whose results are reproduced token
for token: of each sequence the ``(1 + E) * beams`` best continuations are looked at
(E: tokens that end a sequence; at least twice the beams), those that end are kept by
their score ``total / length ** length_penalty`` (Wu et al., 2016, arXiv:1609.08144,
without its offset), and the best that do not end go on.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.core.types import Apply, Params
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.cache import Cache, rows_of
from jaxlm.models.decoding import advance
from jaxlm.models.sampling import penalise

NEVER = -1e9


class Beams(NamedTuple):
    """B prompts, M beams each, N tokens at most.

    ``running`` and ``finished i32[B, M, N]`` are sequences, ``totals`` the sums of
    log-probabilities of the first, ``scores`` those of the second, with the length
    penalty, f32[B, M]; best first. ``ended bool[B, M]``: which of the finished there
    are; ``open bool[B]``: whether a running one may still become better;
    ``stuck bool[]``: every continuation ends.
    """

    cache: Cache
    logits: jax.Array
    running: jax.Array
    totals: jax.Array
    finished: jax.Array
    scores: jax.Array
    lengths: jax.Array
    ended: jax.Array
    open: jax.Array
    stuck: jax.Array
    count: jax.Array
    position: jax.Array
    seen: jax.Array


def search(
    apply: Apply,
    config: TransformerConfig,
    params: Params,
    beams: Beams,
    stops: jax.Array,
    length_penalty: jax.Array,
    repetition_penalty: jax.Array,
    most: jax.Array,
) -> Beams:
    """Run to the end: until no sequence can improve, or ``most i32[]`` tokens."""

    def more(beams: Beams) -> jax.Array:
        return beams.open.any() & ~beams.stuck & (beams.count < most)

    def step(beams: Beams) -> Beams:
        beams, rows = extend(beams, stops, length_penalty, repetition_penalty, most)
        last = jax.lax.dynamic_index_in_dim(
            beams.running, beams.count - 1, axis=2, keepdims=False
        )
        cache = rows_of(beams.cache, rows)
        logits, cache = advance(
            apply, config, params, last.ravel(), beams.position, cache
        )
        return beams._replace(cache=cache, logits=logits)

    return jax.lax.while_loop(more, step, beams)


def start_beams(
    logits: jax.Array,
    cache: Cache,
    position: jax.Array,
    seen: jax.Array,
    idle: jax.Array,
    beams: int,
    most: int,
) -> Beams:
    """The beams of B prompts: all but the first start too low to be chosen."""
    rows = logits.shape[0]
    each = jnp.repeat(jnp.arange(rows), beams)
    first = jnp.arange(beams) == 0
    empty = jnp.zeros((rows, beams, most), jnp.int32)
    low = jnp.full((rows, beams), NEVER, jnp.float32)
    return Beams(
        cache=rows_of(cache, each),
        logits=logits[each],
        running=empty,
        totals=jnp.broadcast_to(jnp.where(first, 0.0, NEVER)[None], (rows, beams)),
        finished=empty,
        scores=low,
        lengths=jnp.zeros((rows, beams), jnp.int32),
        ended=jnp.zeros((rows, beams), bool),
        open=~idle,
        stuck=jnp.zeros((), bool),
        count=jnp.zeros((), jnp.int32),
        position=position[each],
        seen=seen[each],
    )


def extend(
    beams: Beams,
    stops: jax.Array,
    length_penalty: jax.Array,
    repetition_penalty: jax.Array,
    most: jax.Array,
) -> tuple[Beams, jax.Array]:
    """One more token of every beam, and the rows ``i32[B * M]`` that go on."""
    rows, number, _ = beams.running.shape
    logprobs = jax.nn.log_softmax(beams.logits, axis=-1)
    if beams.seen.shape[1]:
        logprobs = penalise(logprobs, beams.seen, repetition_penalty)
    vocabulary = logprobs.shape[-1]
    totals = logprobs.reshape(rows, number, -1) + beams.totals[:, :, None]
    wanted = max(2, 1 + stops.shape[0]) * number
    totals, places = jax.lax.top_k(totals.reshape(rows, -1), wanted)
    parent, token = places // vocabulary, (places % vocabulary).astype(jnp.int32)
    sequences = jnp.take_along_axis(beams.running, parent[:, :, None], axis=1)
    sequences = jax.lax.dynamic_update_slice(
        sequences, token[:, :, None], (0, 0, beams.count)
    )
    length = beams.count + 1
    ends = (token[:, :, None] == stops[None, None]).any(-1) | (length >= most)
    # Those that go on.
    going, order = jax.lax.top_k(totals + jnp.where(ends, NEVER, 0.0), number)
    running = jnp.take_along_axis(sequences, order[:, :, None], axis=1)
    chosen = jnp.take_along_axis(parent, order, axis=1)
    row = (chosen + jnp.arange(rows)[:, None] * number).ravel()
    seen = beams.seen[row]
    if seen.shape[1]:
        last = jnp.take_along_axis(token, order, axis=1).ravel()
        seen = seen.at[jnp.arange(len(last)), last].set(True)
    beams = _keep(beams, sequences, totals, ends, length_penalty)
    best = going[:, 0] / length.astype(jnp.float32) ** length_penalty
    worst = jnp.where(beams.ended, beams.scores.min(1, keepdims=True), NEVER)
    improves = (best[:, None] > worst).any(1)
    return (
        beams._replace(
            running=running,
            totals=going,
            open=beams.open & improves,
            stuck=ends.all(),
            count=length,
            position=beams.position + 1,
            seen=seen,
        ),
        row,
    )


def _keep(
    beams: Beams,
    sequences: jax.Array,
    totals: jax.Array,
    ends: jax.Array,
    length_penalty: jax.Array,
) -> Beams:
    """Keep the best of those finished before and of the best that end now."""
    rows, number, _ = beams.running.shape
    length = beams.count + 1
    counts = ends & (jnp.arange(ends.shape[1]) < number)[None]
    scores = totals / length.astype(jnp.float32) ** length_penalty
    scores = scores + jnp.where(beams.open, 0.0, NEVER)[:, None]
    scores = scores + jnp.where(counts, 0.0, NEVER)
    scores, best = jax.lax.top_k(jnp.concatenate([beams.scores, scores], 1), number)

    def merged(old: jax.Array, new: jax.Array) -> jax.Array:
        both = jnp.concatenate([old, new], axis=1)
        index = best if both.ndim == 2 else best[:, :, None]
        return jnp.take_along_axis(both, index, axis=1)

    lengths = jnp.broadcast_to(length, ends.shape).astype(jnp.int32)
    return beams._replace(
        finished=merged(beams.finished, sequences),
        scores=scores,
        lengths=merged(beams.lengths, lengths),
        ended=merged(beams.ended, counts),
    )
