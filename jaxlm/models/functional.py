"""The border of nnx: outside it a model is plain params and a pure apply."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxlm.core.types import Apply, Batch, Outputs, Params


@dataclass(frozen=True)
class Model:
    """A model without its parameters.

    ``shapes`` and ``axes`` are trees like the params: a ``jax.ShapeDtypeStruct`` and
    the logical axis names of every leaf. ``skeleton`` is the module, with shapes in
    the place of arrays.
    """

    apply: Apply
    init: Callable[[jax.Array], Params]
    shapes: Params
    axes: dict[str, Any]
    skeleton: nnx.Module


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Split a module into its pure parts; ``make(rngs)`` builds it.

    Nothing is computed here: shapes come from ``nnx.eval_shape``. ``init(key)`` may be
    jitted with output shardings, so that parameters are born where they live.
    """
    skeleton = nnx.eval_shape(lambda: make(nnx.Rngs(params=0)))
    graph, state = nnx.split(skeleton)

    def apply(
        params: Params,
        batch: Batch,
        key: jax.Array | None = None,
        *,
        cache: Any = None,
        collect: Collection[str] = (),
    ) -> Outputs:
        module = nnx.merge(graph, as_state(params))
        return module(batch, key, cache=cache, collect=collect)

    def as_state(params: Params) -> nnx.State:
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return filled

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key))))

    axes = jax.tree.map(
        lambda variable: variable.get_metadata("axes"),
        state,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
    shapes, axes = nnx.to_pure_dict(state), nnx.to_pure_dict(axes)
    return Model(apply, init, shapes, axes, skeleton)
