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
from jax.ad_checkpoint import checkpoint_name

from jaxlm.core.types import Outputs
from jaxlm.models.cache import LayerCache
from jaxlm.models.multi_head import Shared

BETWEEN = "between_layers"
"""What a layer is given, for rules of what is kept for the backward pass."""
KERNELS = (
    "pallas_call",
    "dot_product_attention_fwd",
    "dot_product_attention_fwd_wrapper",
)
"""The primitives of attention's kernels, by their names in jax."""


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
    run = functools.partial(_run_one, graph, tuple(collect), shared=shared, key=key)
    again = functools.partial(rematerialise, remat=remat)
    each = (jnp.arange(layers.start, layers.stop), params, cache)
    if repeats > 1:
        return _repeated(run, again, each, x, kinds, repeats)
    if len(layers) == 1:
        once = again(functools.partial(run, kind=kinds[0]))
        x, found, kept = once(x, (*_layer(each[:2], 0), cache))
        return x, jax.tree.map(lambda leaf: leaf[None], found), kept
    period = _period(kinds)
    whole = len(layers) - len(layers) % period
    parts = []
    if whole > period:
        turns = each
        if period > 1:
            turns = jax.tree.map(
                lambda leaf: leaf[:whole].reshape(-1, period, *leaf.shape[1:]), each
            )

        def turn(x: jax.Array, each: Any) -> tuple[jax.Array, Any]:
            if period == 1:  # what the loop itself slices it need not keep
                x, *made = run(x, each, kinds[0])
                return x, made
            made = []
            for place in range(period):
                x, *rest = run(x, _layer(each, place), kinds[place])
                made.append(rest)
            return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

        x, made = jax.lax.scan(again(turn, scanned=True), x, turns)
        if period > 1:
            made = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), made)
        parts.append(made)
    else:
        whole = 0
    for place in range(whole, len(layers)):
        once = again(functools.partial(run, kind=kinds[place]))
        x, *rest = once(x, _layer(each, place))
        parts.append(jax.tree.map(lambda leaf: leaf[None], rest))
    found, kept = jax.tree.map(_joined, *parts) if len(parts) > 1 else parts[0]
    return x, found, kept


def _run_one(
    graph: nnx.GraphDef[Any],
    collect: tuple[str, ...],
    x: jax.Array,
    each: tuple[jax.Array, Any, LayerCache | None],
    kind: int,
    *,
    shared: Shared,
    key: jax.Array | None,
) -> tuple[jax.Array, Outputs, LayerCache]:
    """One layer: ``each`` is its number, its parameters and its cache."""
    number, params, cache = each
    layer = layer_function(graph, collect, kind)
    return layer(checkpoint_name(x, BETWEEN), number, params, cache, shared, key)


def _repeated(
    run: Callable[..., Any],
    again: Callable[..., Any],
    each: Any,
    x: jax.Array,
    kinds: Sequence[int],
    repeats: int,
) -> tuple[jax.Array, Outputs, LayerCache]:
    """Every layer so often, one run after another (ALBERT)."""
    parts = []
    for place, kind in enumerate(kinds):
        number, params, _ = _layer(each, place)

        def turn(
            x: jax.Array, number: jax.Array, params: Any = params, kind: int = kind
        ) -> tuple[jax.Array, Outputs]:
            x, found, _ = run(x, (number, params, None), kind)
            return x, found

        numbers = number * repeats + jnp.arange(repeats)
        x, found = jax.lax.scan(again(turn, scanned=True), x, numbers)
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
    graph: nnx.GraphDef[Any], collect: tuple[str, ...], kind: int
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

    return jax.jit(layer)


def rematerialise(
    function: Callable[..., Any],
    remat: str,
    *,
    scanned: bool = False,
) -> Callable[..., Any]:
    """Trade compute for memory: what of some layers is kept for the backward pass.

    ``none``: all that it reads. ``block``: what each layer is given. ``dots``: that,
    the products with weights, and what kernels of attention give. ``offload``: what
    each layer is given, in the host's memory. ``scanned``: the function is the body of
    a loop.
    """
    policies = jax.checkpoint_policies
    between = policies.save_only_these_names(BETWEEN)
    if remat == "none":
        return function
    if remat == "block":
        policy = between
    elif remat == "dots":
        dots = policies.dots_with_no_batch_dims_saveable
        policy = policies.save_from_both_policies(dots, between)
        policy = policies.save_from_both_policies(policy, is_kernel)
    elif remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[BETWEEN],
            offload_src="device",
            offload_dst="pinned_host",
        )
    else:
        allowed = "none, block, dots, offload"
        raise ValueError(f"remat={remat!r}; allowed: {allowed}")
    # A loop's body meets no other computation that it could be merged with.
    return jax.checkpoint(function, policy=policy, prevent_cse=not scanned)


def is_kernel(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether this is a kernel of attention, a policy of ``jax.checkpoint``."""
    return primitive.name in KERNELS
