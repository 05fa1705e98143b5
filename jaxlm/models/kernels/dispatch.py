"""Attention by whichever backend was chosen, on the mesh's devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from jaxlm.core.mesh import NO_RULES, Axes, Rules
from jaxlm.models.attention import Visibility, dense_attention
from jaxlm.models.kernels.ring import ring_attention

ROWS: Axes = ("batch", None)
HEADS: Axes = ("batch", None, "heads", None)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: Visibility,
    *,
    scale: float,
    cap: float | None = None,
    relative: jax.Array | None = None,
    rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    rules: Rules = NO_RULES,
) -> jax.Array:
    """The mean of values by the softmax of scores, where ``visible`` allows.

    ``query [B, S, H, K]``, ``key`` and ``value [B, T, G, K]``, each for H / G heads;
    returns [B, S, H, K]. The others are those of ``models.attention``. That a backend
    can do what is asked, ``models.backends.choose`` has made sure of.
    """
    backend = visible.backend
    if backend.name == "xla":
        return dense_attention(
            query,
            key,
            value,
            visible.dense,
            scale=scale,
            cap=cap,
            relative=relative,
            rate=rate,
            dropout_key=dropout_key,
            rules=rules,
        )
    if backend.name == "ring":
        return ring_attention(
            query,
            key,
            value,
            visible.queries,
            dropout_key,
            causal=visible.causal,
            reach=visible.reach,
            scale=scale,
            cap=cap,
            rate=rate,
            rules=rules,
        )
    kernel = make_kernel(visible, scale, cap)
    local = on_devices(kernel, rules, (HEADS, HEADS, HEADS, ROWS), HEADS)
    return local(query, key, value, visible.queries)


def make_kernel(
    visible: Visibility, scale: float, cap: float | None
) -> Callable[..., jax.Array]:
    """A backend as a function of queries, keys, values and segments of whole rows.

    Imported where it is used: Pallas alone takes a second, which no other should pay.
    """
    backend = visible.backend
    options: Any = {"causal": visible.causal, "scale": scale}
    if backend.name == "splash":
        from jaxlm.models.kernels.splash import splash_attention

        options |= {"reach": visible.reach, "cap": cap, "block": backend.block}
        return partial(splash_attention, **options, interpret=backend.interpret)
    if backend.name == "cudnn":
        from jaxlm.models.kernels.cudnn import cudnn_attention

        implementation = "xla" if backend.interpret else "cudnn"
        options |= {"reach": visible.reach, "implementation": implementation}
        options |= {"most": visible.most or visible.queries.shape[1]}
        return partial(cudnn_attention, **options)
    if backend.name == "triton":
        from jaxlm.models.kernels.triton import triton_attention

        return partial(triton_attention, **options, interpret=backend.interpret)
    raise ValueError(f"attention={backend.name!r}; it is no backend")


def on_devices(
    function: Callable[..., jax.Array],
    rules: Rules,
    takes: Sequence[Axes],
    gives: Axes,
) -> Callable[..., jax.Array]:
    """A function of arrays run by each device on its own part of them.

    XLA cannot look into a kernel, and would gather all that it reads. ``takes`` and
    ``gives`` name the dimensions of the arrays. Without a mesh or without rules the
    function is returned as it is.
    """
    if not rules.table or jax.sharding.get_abstract_mesh().empty:
        return function
    specs: Any = tuple(rules.partition(axes) for axes in takes)
    # Kernels say nothing of how their results vary over the mesh: nothing to check.
    return jax.shard_map(
        function, in_specs=specs, out_specs=rules.partition(gives), check_vma=False
    )
