"""Depth as a list of stacks of equal blocks, with stacked parameters.

A stack is one block whose parameters have a leading axis of layers. It runs by
``jax.lax.scan``, whose compile time does not grow with depth; where the kinds of its
layers repeat a pattern (local, local, global), each turn of the scan runs the pattern
once. Cutting a model into several stacks lets a rule (what is frozen, say) stop at a
layer; stacks of one layer each are the unrolled model, which runs faster where a copy
of a layer's parameters out of their stack counts, as on a CPU. The dropout keys are the
same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.core.types import Outputs
from jaxlm.models.cache import LayerCache
from jaxlm.models.multi_head import Shared


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
    shared: Shared,
    key: jax.Array | None,
    *,
    kinds: Sequence[int],
    repeats: int = 1,
    remat: str,
    collect: Collection[str] = (),
    cache: LayerCache | None = None,
) -> tuple[jax.Array, Outputs, LayerCache]:
    """``x [B, S, D]`` through the layers of a stack; see ``Block`` for the rest.

    ``kinds`` are those of its layers. Layer n draws its dropout from ``fold_in(key,
    n)``, however the model is cut. What the blocks collect, and the cache of more than
    one layer, have a leading axis of layers. ``repeats`` runs of each layer count as so
    many layers; they have no cache.
    """
    graph, params = nnx.split(stack)
    run = functools.partial(
        _run_one, graph, remat, tuple(collect), shared=shared, key=key
    )
    each = (jnp.arange(layers.start, layers.stop), params, cache)
    if repeats > 1:
        return _repeated(run, each, x, kinds, repeats)
    if len(layers) == 1:
        number, params = _layer(each[:2], 0)
        x, found, kept = run(x, (number, params, cache), kinds[0])
        return x, jax.tree.map(lambda leaf: leaf[None], found), kept
    period = _period(kinds)
    whole = len(layers) - len(layers) % period
    parts = []
    if whole > period:
        turns = jax.tree.map(
            lambda leaf: leaf[:whole].reshape(-1, period, *leaf.shape[1:]), each
        )

        def turn(x: jax.Array, each: Any) -> tuple[jax.Array, Any]:
            made = []
            for place in range(period):
                x, *rest = run(x, _layer(each, place), kinds[place])
                made.append(rest)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

        x, made = jax.lax.scan(turn, x, turns)
        parts.append(
            jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), made)
        )
    else:
        whole = 0
    for place in range(whole, len(layers)):
        x, *rest = run(x, _layer(each, place), kinds[place])
        parts.append(jax.tree.map(lambda leaf: leaf[None], rest))
    found, kept = jax.tree.map(_joined, *parts) if len(parts) > 1 else parts[0]
    return x, found, kept


def _run_one(
    graph: nnx.GraphDef[Any],
    remat: str,
    collect: tuple[str, ...],
    x: jax.Array,
    each: tuple[jax.Array, Any, LayerCache | None],
    kind: int,
    *,
    shared: Shared,
    key: jax.Array | None,
) -> tuple[jax.Array, Outputs, LayerCache]:
    """One layer: ``each`` is its number, its parameters and its cache."""
    layer = layer_function(graph, remat, collect, kind)
    return layer(x, *each, shared, key)


def _repeated(
    run: Callable[..., Any], each: Any, x: jax.Array, kinds: Sequence[int], repeats: int
) -> tuple[jax.Array, Outputs, LayerCache]:
    """Every layer so often, one run after another (ALBERT)."""
    parts = []
    for place, kind in enumerate(kinds):
        number, params, _ = _layer(each, place)

        def again(
            x: jax.Array, number: jax.Array, params: Any = params, kind: int = kind
        ) -> tuple[jax.Array, Outputs]:
            x, found, _ = run(x, (number, params, None), kind)
            return x, found

        x, found = jax.lax.scan(again, x, number * repeats + jnp.arange(repeats))
        parts.append(found)
    return x, jax.tree.map(_joined, *parts) if len(parts) > 1 else parts[0], {}


def _layer(each: Any, place: int) -> Any:
    return jax.tree.map(
        lambda leaf: jax.lax.index_in_dim(leaf, place, keepdims=False), each
    )


def _joined(*leaves: jax.Array) -> jax.Array:
    return jnp.concatenate(leaves)


def _period(kinds: Sequence[int]) -> int:
    """The least number of layers after which the kinds repeat."""
    return next(n for n in range(1, len(kinds) + 1) if kinds[n:] == kinds[:-n])


@functools.lru_cache(maxsize=64)
def layer_function(
    graph: nnx.GraphDef[Any], remat: str, collect: tuple[str, ...], kind: int
) -> Callable[..., Any]:
    """A layer as a function, one for all layers that are alike: jax traces it once."""

    def layer(
        x: jax.Array,
        number: jax.Array,
        params: Any,
        cache: LayerCache | None,
        shared: Shared,
        key: jax.Array | None,
    ) -> Any:
        layer_key = None if key is None else jax.random.fold_in(key, number)
        return nnx.merge(graph, params)(x, shared, kind, layer_key, collect, cache)

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
