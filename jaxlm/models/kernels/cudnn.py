"""Attention by cuDNN on NVIDIA GPUs: rows of one segment, or from Hopper on of several.

``jax.nn.dot_product_attention`` hands over rows of one segment and padding after it.
Rows of several go by the function beneath it, which alone takes their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as library

HOPPER = 9.0
"""The first compute capability whose cuDNN kernels know several segments in a row."""
GROUPED = (0, 11, 2)
"""The first jax that was seen to find the place of keys that several heads share."""


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    most: int,
    causal: bool,
    reach: int | None,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Attention of tokens to their own segment: [B, S, H, K].

    ``query [B, S, H, K]``; ``key`` and ``value [B, S, G, K]``, each for H / G heads.
    ``segments i32[B, S]``: from 1 to ``most``, the tokens of each in one piece; 0 is
    padding, whose own result means nothing. With ``most=1`` padding comes last. A
    ``reach`` needs ``causal``. ``implementation``: ``xla`` computes the same anywhere,
    for tests.
    """
    options: Any = {"causal": causal, "reach": reach, "scale": scale}
    if most > 1:
        starts, lengths = pieces(segments, most)
        attend = by_pieces if implementation == "cudnn" else as_pieces_say
        # What is in no segment the kernels neither read nor write: results, and
        # gradients, are whatever lay in that memory.
        real = (segments > 0)[:, :, None, None]
        query, key, value = (jnp.where(real, each, 0) for each in (query, key, value))
        y = attend(query, key, value, starts, lengths, **options)
        return jnp.where(real, y, 0)
    # A row of padding alone has one token, or its softmax would have none to sum.
    lengths = jnp.maximum((segments > 0).sum(-1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if reach is None else (reach, 0),
        implementation=implementation,
    )


def pieces(segments: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Where each segment of ``segments i32[B, S]`` begins, and its length.

    Both i32[B, most]; -1 for one that is not there. Of a row of padding alone the first
    token is said to be one, as a softmax must have something to sum.
    """
    numbers = jnp.arange(1, most + 1)[None, :, None]
    member = segments[:, None, :] == numbers  # [B, most, S]
    lengths = member.sum(-1, dtype=jnp.int32)
    starts = member.argmax(-1).astype(jnp.int32)
    empty = (lengths.sum(-1, keepdims=True) == 0) & (numbers[..., 0] == 1)
    lengths = jnp.where(empty, 1, lengths)
    return jnp.where(lengths > 0, starts, -1), jnp.where(lengths > 0, lengths, -1)


def by_pieces(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    causal: bool,
    reach: int | None,
    scale: float,
) -> jax.Array:
    """``cudnn_attention`` by the library, of segments at such ``pieces``."""
    shared = query.shape[2] // key.shape[2]
    if shared > 1 and jax.__version_info__ < GROUPED:
        key, value = (jnp.repeat(each, shared, axis=2) for each in (key, value))
    mask = library.MaskType.PADDING_CAUSAL if causal else library.MaskType.PADDING
    places = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
    y: Any = library.dot_product_attention(
        query,
        key,
        value,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=places,
        kv_offsets=places,
        scale=scale,
        mask_type=mask,
        sliding_window_length=None if reach is None else reach + 1,
    )
    return y


def as_pieces_say(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    causal: bool,
    reach: int | None,
    scale: float,
) -> jax.Array:
    """What ``by_pieces`` is asked for, by XLA; NaN where that writes nothing."""
    tokens = jnp.arange(query.shape[1])[None, None]
    after = tokens >= starts[..., None]  # [B, most, S]
    inside = (after & (tokens < (starts + lengths)[..., None])).astype(jnp.float32)
    seen = jnp.einsum("bms,bmt->bst", inside, inside) > 0
    written = inside.any(1)[:, :, None, None]
    query, key, value = (_unwritten(each, written) for each in (query, key, value))
    y = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=seen[:, None],
        scale=scale,
        is_causal=causal,
        local_window_size=None if reach is None else (reach, 0),
        implementation="xla",
    )
    return jnp.where(written, y, jnp.nan)


@jax.custom_vjp
def _unwritten(x: jax.Array, written: jax.Array) -> jax.Array:
    """x, whose gradient is NaN where it is not ``written``."""
    return x


_unwritten.defvjp(
    lambda x, written: (x, written),
    lambda written, gradient: (jnp.where(written, gradient, jnp.nan), None),
)


@contextmanager
def planned_for(capability: float) -> Iterator[None]:
    """Programs are for a GPU of such a compute capability, which need not be here.

    The library asks the GPU of this process what it can, even where a program is
    compiled for another.
    """
    ours = library.check_compute_capability

    def check(wanted: str) -> bool:
        return capability >= float(wanted)

    library.check_compute_capability = check
    try:
        yield
    finally:
        library.check_compute_capability = ours
