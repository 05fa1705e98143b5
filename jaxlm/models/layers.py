"""The parts that every Transformer is built from.

Modules hold parameters and nothing else: dropout keys are passed at the call, and each
parameter carries the logical names of its dimensions (``axes``), which the config's
rules (``jaxlm.core.mesh.Rules``) map to mesh axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.mesh import NO_RULES, Rules
from jaxlm.models.architecture import TransformerConfig

Initializer = jax.nn.initializers.Initializer


def vector(axis: str) -> tuple[str]:
    """The axis of a bias or a scale along another: along hidden states, its own.

    ``fsdp`` splits kernels to save memory; of vectors it would save next to none, and
    each would be gathered by an operation of its own.
    """
    return ("vector" if axis == "width" else axis,)


def parameter(value: jax.Array, axes: tuple[str | None, ...]) -> nnx.Param:
    """A parameter whose dimensions bear logical names, one for each."""
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} axis names {axes} for the shape {value.shape}")
    return nnx.Param(value, axes=axes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Transposed:
    """A kernel kept as [..., out, in]: on a CPU products of few rows read it faster."""

    value: jax.Array

    def __getitem__(self, index: Any) -> Transposed:
        return self if index is ... else Transposed(self.value[index])


FEW_ROWS = 32
"""Up to so many rows a CPU multiplies columns by a transposed kernel."""


def matmul(
    x: jax.Array, kernel: jax.Array | Transposed, dtype: Any = None
) -> jax.Array:
    """``[..., D] x [D, F] -> [..., F]`` in ``dtype``, by default x's.

    Every linear layer comes through here: quantized kernels and adapters enter at this
    one place.
    """
    if not isinstance(kernel, Transposed):
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=dtype)
    weights = kernel.value.astype(x.dtype)
    product = partial(
        jnp.einsum, "...d,fd->...f", preferred_element_type=dtype or x.dtype
    )
    if not 1 < math.prod(x.shape[:-1]) <= FEW_ROWS:
        return product(x, weights)
    return jax.lax.platform_dependent(
        x, weights, cpu=partial(_by_columns, dtype=dtype), default=product
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shared_matmul(
    x: jax.Array, kernel: jax.Array, rules: Rules, axes: tuple[str, str]
) -> jax.Array:
    """``matmul`` with a kernel of which every device has a part, gathered to be used.

    Backward it is gathered again, so that no device keeps the kernels of all layers
    (ZeRO stage 3, arXiv:1910.02054), and its gradient is summed in its own dtype.
    """
    return matmul(x, rules.gather(kernel, axes, x.dtype))


def _shared_forward(
    x: jax.Array, kernel: jax.Array, rules: Rules, axes: tuple[str, str]
) -> tuple[jax.Array, Any]:
    return shared_matmul(x, kernel, rules, axes), (x, kernel)


def _shared_backward(
    rules: Rules, axes: tuple[str, str], kept: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    whole = rules.gather(kernel, axes, x.dtype)
    summed = jnp.einsum(
        "...d,...f->df", x, gradient, preferred_element_type=kernel.dtype
    )
    return matmul(gradient, Transposed(whole)), rules.scatter(
        summed, axes, kernel.dtype
    )


shared_matmul.defvjp(_shared_forward, _shared_backward)


@jax.custom_vjp
def scores_of(x: jax.Array, table: jax.Array) -> jax.Array:
    """``[..., D] x [V, D] -> f32[..., V]``: logits, whose gradient is in x's dtype.

    In fp32, as the loss gives it, both products backward would be of fp32, which took
    three times as long on an H200 and which bf16 training needs nowhere else.
    """
    return matmul(x, Transposed(table), jnp.float32)


def _scores_forward(x: jax.Array, table: jax.Array) -> tuple[jax.Array, Any]:
    return scores_of(x, table), (x, table)


def _scores_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, table = kept
    gradient = gradient.astype(x.dtype)
    summed = jnp.einsum(
        "...f,...d->fd", gradient, x, preferred_element_type=table.dtype
    )
    return matmul(gradient, table), summed


scores_of.defvjp(_scores_forward, _scores_backward)


def recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A cheap function that keeps for the backward pass what it is given, alone.

    By itself jax keeps what is between, in fp32 where that is computed in it: for a
    GELU three arrays of the width of an MLP, of which none is needed.
    """

    @jax.custom_vjp
    def kept(*given: jax.Array) -> jax.Array:
        return function(*given)

    def forward(*given: jax.Array) -> tuple[jax.Array, Any]:
        return function(*given), given

    def backward(given: Any, gradient: jax.Array) -> Any:
        return jax.vjp(function, *given)[1](gradient)

    kept.defvjp(forward, backward)
    return wraps(function)(kept)


def _by_columns(x: jax.Array, weights: jax.Array, dtype: Any) -> jax.Array:
    """``x [..., D]`` by ``weights [F, D]`` as a product of these with few columns.

    XLA:CPU has a faster kernel for it than for the product with few rows, into which
    it would turn this one but for the barriers.
    """
    columns = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    y = jnp.matmul(weights, columns, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y).T.reshape(*x.shape[:-1], -1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout (Srivastava et al., 2014); ``key=None`` returns x."""
    if key is None or rate == 0.0:
        return x
    threshold = drop_threshold(rate)
    keep = hashed_bits(key, x.shape) >= jnp.uint32(threshold)
    return jnp.where(keep, x * (2**32 / (2**32 - threshold)), 0).astype(x.dtype)


def drop_threshold(rate: float) -> int:
    """Below which hashed bits are dropped, of 2**32."""
    return min(round(rate * 2**32), 2**32 - 1)


def hashed_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform bits u32[shape] for dropout masks, by hashing the place of each element.

    A place is its row (all dimensions but the last) and its column. The row is hashed
    with each half of the key, and the column with both: two rounds of MurmurHash3's
    32-bit finalizer (Appleby, 2011). Elementwise, so that it fuses into what uses it,
    splits over a mesh without changing, and costs a fraction of ``jax.random.bits``,
    whose Threefry has twenty rounds and runs by itself. No generator for what needs
    more than a mask.
    """
    words = jax.random.key_data(key).ravel()
    *rest, last = shape or (1,)
    row = jnp.zeros((*rest, 1), jnp.uint32)
    for axis, size in enumerate(rest):
        row = row * jnp.uint32(size) + jax.lax.broadcasted_iota(
            jnp.uint32, row.shape, axis
        )
    column = jax.lax.broadcasted_iota(jnp.uint32, (*rest, last), len(rest))
    return bits_at(words, row, column).reshape(shape)


def bits_at(words: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """The bits of ``hashed_bits`` at some rows and columns, u32.

    ``words u32[2]`` are the key's data. For who holds a part of an array only.
    """
    bits = _finalize(column ^ _finalize(row ^ words[0]))
    return _finalize(bits + _finalize(row + words[-1]))


def mixed(numbers: jax.Array, key: jax.Array | None, salt: int) -> jax.Array:
    """Uniform bits u32 of the shape of ``numbers i32``, which a key and a salt choose.

    As ``hashed_bits``, but by what is in a place, not by where it is. ``key=None`` is
    always the same.
    """
    words = jnp.array([0x243F6A88, 0x85A308D3], jnp.uint32)  # of pi: no seed's
    if key is not None:
        words = jax.random.key_data(key).ravel()
    bits = _finalize(
        numbers.astype(jnp.uint32) ^ _finalize(words[0] + jnp.uint32(salt))
    )
    return _finalize(bits + _finalize(words[-1] ^ jnp.uint32(0x9E3779B9)))


def _finalize(bits: jax.Array) -> jax.Array:
    """MurmurHash3's fmix32: a bijection of u32 each of whose bits hangs on all."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """``vector [D]`` with as many dimensions as ``x [..., D]``, to combine with it."""
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


class Linear(nnx.Module):
    """An affine map of the last dimension; kernel f32[in, out], maybe bias f32[out]."""

    def __init__(
        self,
        sizes: tuple[int, int],
        axes: tuple[str, str],
        *,
        initializer: Initializer,
        rngs: nnx.Rngs,
        rules: Rules = NO_RULES,
        bias: bool = True,
    ):
        self.axes, self.rules = axes, rules
        self.has_bias = bias
        self.kernel = parameter(initializer(rngs.params(), sizes, jnp.float32), axes)
        if bias:
            self.bias = parameter(jnp.zeros(sizes[1], jnp.float32), vector(axes[1]))

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[:-1]
        if not self.rules.splits("sequence"):
            # One dimension to contract over backward: XLA:CPU copies, transposed, what
            # has several, 7% of a step.
            x = x.reshape(-1, x.shape[-1])
        kernel = self.kernel[...]
        if isinstance(kernel, Transposed):
            y: Any = matmul(x, kernel)
        elif self.rules.regather and self.rules.gathers(self.axes):
            y = shared_matmul(x, kernel, self.rules, self.axes)
        else:
            y = matmul(x, self.rules.gather(kernel, self.axes, x.dtype))
        if self.has_bias:
            y = y + along_last(self.bias[...].astype(x.dtype), y)
        return y.reshape(*shape, y.shape[-1])


class Embedding(nnx.Module):
    """A table of vectors; embedding f32[rows, width]."""

    def __init__(
        self,
        sizes: tuple[int, int],
        axes: tuple[str | None, str],
        *,
        initializer: Initializer,
        rngs: nnx.Rngs,
        rules: Rules = NO_RULES,
    ):
        self.axes, self.rules = axes, rules
        self.embedding = parameter(initializer(rngs.params(), sizes, jnp.float32), axes)

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        table = self.rules.gather(self.embedding[...], self.axes)
        return jnp.take(table, ids, axis=0).astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., 2016), computed in fp32; scale, bias f32[D]."""

    def __init__(
        self, width: int, epsilon: float, *, bias: bool = True, axis: str = "width"
    ):
        self.epsilon, self.has_bias = epsilon, bias
        self.scale = parameter(jnp.ones(width, jnp.float32), vector(axis))
        if bias:
            self.bias = parameter(jnp.zeros(width, jnp.float32), vector(axis))

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = [self.bias[...]] if self.has_bias else []
        return recomputed(self.normalise)(x, self.scale[...], *bias)

    def normalise(self, x: jax.Array, scale: jax.Array, *bias: jax.Array) -> jax.Array:
        """Of x, by a scale and perhaps a bias."""
        y = x.astype(jnp.float32)
        mean = y.mean(-1, keepdims=True)
        variance = jnp.square(y - mean).mean(-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon)
        y = y * along_last(scale, y)
        for each in bias:
            y = y + along_last(each, y)
        return y.astype(x.dtype)


class RmsNorm(nnx.Module):
    """Division by the root mean square (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Computed in fp32. ``offset`` is added to ``scale f32[D]``, which starts at 1 - it.
    """

    def __init__(
        self, width: int, epsilon: float, *, offset: float = 0.0, axis: str = "width"
    ):
        self.epsilon, self.offset = epsilon, offset
        self.scale = parameter(jnp.full(width, 1 - offset, jnp.float32), vector(axis))

    def __call__(self, x: jax.Array) -> jax.Array:
        return recomputed(self.normalise)(x, self.scale[...])

    def normalise(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        """Of x, by a scale."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * along_last(scale + self.offset, y)).astype(x.dtype)


def make_norm(
    config: TransformerConfig,
    width: int | None = None,
    axis: str = "width",
) -> LayerNorm | RmsNorm:
    """The norm that a family has, over ``width`` (by default the model's)."""
    width = config.width if width is None else width
    epsilon = config.norm_epsilon
    if config.norm == "rms":
        return RmsNorm(width, epsilon, offset=config.norm_offset, axis=axis)
    return LayerNorm(width, epsilon, bias=config.norm_bias, axis=axis)


def gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function (Hendrycks and Gimpel, 2016), as BERT has it.

    Computed in fp32. Not ``jax.nn.gelu``, whose ``erfc`` is exact far below zero, where
    this is -0.0, and costs twice as much.
    """
    y = x.astype(jnp.float32)
    return (y * 0.5 * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by the tanh approximation, as GPT-2 has it."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS = {
    "gelu": recomputed(gelu),
    "gelu_tanh": recomputed(gelu_tanh),
    "relu": jax.nn.relu,
    "silu": recomputed(jax.nn.silu),
    "tanh": jnp.tanh,
}


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Split a dropout key; a missing key stays missing."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def folded(key: jax.Array | None, number: int) -> jax.Array | None:
    """Another dropout key of a key; a missing key stays missing."""
    return None if key is None else jax.random.fold_in(key, number)
