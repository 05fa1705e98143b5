"""Depth as a list of stacks of equal blocks, with stacked parameters.

A stack is one block whose parameters have a leading axis of layers. It runs by
``jax.lax.scan``, whose compile time does not grow with depth. Cutting a model into
several stacks lets a rule (what is frozen, say) stop at a layer; stacks of one layer
each are the unrolled model, which runs faster where a copy of a layer's parameters out
of their stack counts, as on a CPU. The dropout keys are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.types import Outputs


def create_stack(
    make_block: Callable[[nnx.Rngs], nnx.Module], keys: jax.Array
) -> nnx.Module:
    """A block whose every parameter has a leading axis named ``layers``.

    ``keys`` are those of its layers, one for each.
    """

    @nnx.vmap(in_axes=0, out_axes=0)
    def create(key: jax.Array) -> nnx.Module:
        return make_block(nnx.Rngs(params=key))

    block = create(keys)
    for _, variable in nnx.iter_graph(block):
        if isinstance(variable, nnx.Param):
            axes = variable.get_metadata("axes")
            variable.set_metadata(axes=("layers", *axes))
    return block


def run_stack(
    stack: nnx.Module,
    layers: range,
    x: jax.Array,
    bias: jax.Array,
    key: jax.Array | None,
    *,
    remat: str,
    collect: Collection[str] = (),
) -> tuple[jax.Array, Outputs]:
    """``x [B, S, D]`` through the layers of a stack; see ``Block`` for the rest.

    Layer n draws its dropout from ``fold_in(key, n)``, however the model is cut. What
    the blocks collect comes back as ``[layers, B, ...]`` by its name.
    """
    graph, params = nnx.split(stack)
    layer = layer_function(graph, remat, tuple(collect))
    numbers = jnp.arange(layers.start, layers.stop)
    if len(layers) == 1:
        only = jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), params)
        x, found = layer(x, numbers[0], only, bias, key)
        return x, jax.tree.map(lambda value: value[None], found)
    return jax.lax.scan(
        lambda x, each: layer(x, *each, bias, key), x, (numbers, params)
    )


@functools.lru_cache(maxsize=64)
def layer_function(
    graph: nnx.GraphDef[Any], remat: str, collect: tuple[str, ...]
) -> Callable[..., Any]:
    """A layer as a function, one for all layers that are alike: jax traces it once."""

    def layer(
        x: jax.Array,
        number: jax.Array,
        params: Any,
        bias: jax.Array,
        key: jax.Array | None,
    ) -> Any:
        layer_key = None if key is None else jax.random.fold_in(key, number)
        return nnx.merge(graph, params)(x, bias, layer_key, collect)

    return jax.jit(rematerialise(layer, remat))


def rematerialise(function: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """Trade compute for memory: keep nothing of a block, or its matmuls only."""
    if remat == "none":
        return function
    if remat == "block":
        return jax.checkpoint(function)
    if remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return jax.checkpoint(function, policy=policy)
    raise ValueError(f"remat={remat!r}; allowed: none, block, dots")
