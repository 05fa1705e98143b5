"""The device mesh, and the rules that map logical axes to it.

Models name the dimensions of parameters and activations once (``batch``, ``sequence``,
``width``, ``heads``, ``mlp``, ``vocab``, ``layers``); the rules here say which mesh
axis splits each. Changing the layout of a run never touches a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.core.errors import UserError

AXES = ("data", "fsdp", "tensor", "context")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sequence": ("context",),
    "width": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}
"""Logical axis to mesh axes; an axis that is not here is never split.

Within one array a mesh axis is used once, by the first dimension that asks for it: the
width of an activation is whole because its batch has ``fsdp`` already.
"""

Axes = tuple[str | None, ...]


def make_mesh(sizes: Mapping[str, int]) -> tuple[Mesh, str | None]:
    """A mesh over the first devices, and a notice where devices are left over.

    ``sizes`` gives each of ``AXES`` a number; one of them may be -1, the rest.
    """
    devices = jax.devices()
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shape = {axis: sizes.get(axis, 1) for axis in AXES}
    rest = [axis for axis, size in shape.items() if size == -1]
    text = " x ".join(f"{axis}={sizes.get(axis, 1)}" for axis in AXES)
    if fixed > len(devices) or (rest and len(devices) % fixed):
        raise UserError(
            f"config.mesh: {text} needs {'a multiple of ' if rest else ''}{fixed}"
            f" devices and this machine has {len(devices)}; lower a size or set"
            " one to -1"
        )
    for axis in rest:
        shape[axis] = len(devices) // fixed
    used = math.prod(shape.values())
    mesh = jax.make_mesh(
        tuple(shape.values()),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
        devices=devices[:used],
    )
    notice = None
    if used < len(devices):
        notice = f"the mesh uses the first {used} of {len(devices)} devices ({text})"
    return mesh, notice


def mesh_axes(axes: Axes) -> list[tuple[str, ...]]:
    """Which mesh axes split each dimension, each mesh axis used once."""
    used: set[str] = set()
    chosen = []
    for name in axes:
        mine = [axis for axis in RULES.get(name or "", ()) if axis not in used]
        used.update(mine)
        chosen.append(tuple(mine))
    return chosen


def partition(axes: Axes) -> PartitionSpec:
    """Logical axis names of an array as a ``PartitionSpec``."""
    return PartitionSpec(*(mine or None for mine in mesh_axes(axes)))


def sharding(
    mesh: Mesh, axes: Axes, shape: tuple[int, ...], name: str
) -> NamedSharding:
    """How the array ``name`` of this shape lies on the mesh.

    Raises:
      UserError: a dimension does not divide by the devices that are to split it.
    """
    for dimension, size, split in zip(axes, shape, mesh_axes(axes), strict=True):
        parts = math.prod(mesh.shape[axis] for axis in split)
        if size % parts:
            raise UserError(
                f"config.mesh: {name} has {dimension}={size}, which {parts} devices"
                f" ({', '.join(split)}) cannot split evenly; choose another"
                f" config.mesh.{split[-1]}"
            )
    return NamedSharding(mesh, partition(axes))


def shardings(
    mesh: Mesh, axes: dict[str, Any], shapes: dict[str, Any]
) -> dict[str, Any]:
    """``sharding`` of every leaf of a tree of axis names and one of shapes."""

    def leaf(path: tuple[Any, ...], names: Axes, value: Any) -> NamedSharding:
        name = "/".join(str(part.key) for part in path)
        return sharding(mesh, names, value.shape, name)

    return jax.tree_util.tree_map_with_path(
        leaf, axes, shapes, is_leaf=lambda node: isinstance(node, tuple)
    )


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Tell the compiler how an activation lies on the mesh of ``jax.set_mesh``.

    Without a mesh, as in a notebook, x is returned as it is.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition(axes))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the data axes; the other dimensions whole."""
    return NamedSharding(mesh, partition(("batch",)))


def row_parts(mesh: Mesh) -> int:
    """How many parts the rows of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])
