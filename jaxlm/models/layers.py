"""The parts that every Transformer is built from.

Modules hold parameters and nothing else: dropout keys are passed at the call, and each
parameter carries the logical names of its dimensions (``axes``), which the sharding rules
of ``jaxlm.core.mesh`` map to mesh axes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = jax.nn.initializers.Initializer


def parameter(value: jax.Array, axes: tuple[str | None, ...]) -> nnx.Param:
    """A parameter whose dimensions bear logical names, one for each."""
    if len(axes) != value.ndim:
        raise ValueError(f"{len(axes)} axis names {axes} for the shape {value.shape}")
    return nnx.Param(value, axes=axes)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``[..., D] x [D, F] -> [..., F]``, in x's dtype.

    Every linear layer comes through here: quantized kernels and adapters enter at this
    one place.
    """
    return jnp.matmul(x, kernel.astype(x.dtype))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout (Srivastava et al., 2014); ``key=None`` returns x.

    Masks are drawn from 16 random bits an element, so the rate is exact to 2**-17 and
    drawing costs half of what 32 bits would. The kept share is what the scale divides by.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 65536)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= threshold
    return jnp.where(keep, x * (65536 / (65536 - threshold)), 0).astype(x.dtype)


class Linear(nnx.Module):
    """An affine map of the last dimension; kernel f32[in, out], bias f32[out]."""

    def __init__(
        self,
        sizes: tuple[int, int],
        axes: tuple[str, str],
        *,
        initializer: Initializer,
        rngs: nnx.Rngs,
    ):
        self.kernel = parameter(initializer(rngs.params(), sizes, jnp.float32), axes)
        self.bias = parameter(jnp.zeros(sizes[1], jnp.float32), axes[1:])

    def __call__(self, x: jax.Array) -> jax.Array:
        return matmul(x, self.kernel[...]) + self.bias[...].astype(x.dtype)


class Embedding(nnx.Module):
    """A table of vectors; embedding f32[rows, width]."""

    def __init__(
        self,
        sizes: tuple[int, int],
        axes: tuple[str | None, str],
        *,
        initializer: Initializer,
        rngs: nnx.Rngs,
    ):
        self.embedding = parameter(initializer(rngs.params(), sizes, jnp.float32), axes)

    def __call__(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        return jnp.take(self.embedding[...], ids, axis=0).astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., 2016), computed in fp32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = parameter(jnp.ones(width, jnp.float32), ("width",))
        self.bias = parameter(jnp.zeros(width, jnp.float32), ("width",))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        mean = y.mean(-1, keepdims=True)
        variance = jnp.square(y - mean).mean(-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function (Hendrycks and Gimpel, 2016), as BERT has it."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by the tanh approximation, as GPT-2 has it."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu": jax.nn.relu}


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """Split a dropout key; a missing key stays missing."""
    return [None] * count if key is None else list(jax.random.split(key, count))
