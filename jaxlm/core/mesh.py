"""The device mesh, and the rules that map logical axes to it.

Models name the dimensions of parameters and activations once (``batch``, ``sequence``,
``width``, ``heads``, ``head_size``, ``mlp``, ``vocab``, ``layers``); rules, which the
config holds, say which mesh axes split each. Changing the layout of a run never touches
a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.core.arrangement import arrange
from jaxlm.core.errors import UserError

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Rules:
    """Which mesh axes split each logical axis; one that is not here is never split.

    Within one array a mesh axis is used once, by the first dimension that asks for it:
    the width of an activation is whole where its batch has ``fsdp`` already. Without
    any rule, as in a notebook, the layout is left to the compiler.
    """

    table: tuple[tuple[str, tuple[str, ...]], ...] = ()
    regather: bool = False
    """Whether kernels are gathered anew for the backward pass (see ``shared_matmul``):
    where nothing else has a layer computed again, which does that too."""

    @classmethod
    def of(cls, table: Mapping[str, Sequence[str]]) -> Rules:
        """Rules from a mapping of logical axis to mesh axes."""
        return cls(tuple((name, tuple(axes)) for name, axes in table.items()))

    def __getitem__(self, name: str | None) -> tuple[str, ...]:
        return dict(self.table).get(name or "", ())

    def mesh_axes(self, axes: Axes) -> list[tuple[str, ...]]:
        """Which mesh axes split each dimension, each mesh axis used once."""
        used: set[str] = set()
        chosen = []
        for name in axes:
            mine = [axis for axis in self[name] if axis not in used]
            used.update(mine)
            chosen.append(tuple(mine))
        return chosen

    def partition(self, axes: Axes) -> PartitionSpec:
        """Logical axis names of an array as a ``PartitionSpec``."""
        return PartitionSpec(*(mine or None for mine in self.mesh_axes(axes)))

    def splits(self, name: str) -> bool:
        """Whether a logical axis lies on several devices of ``jax.set_mesh``.

        Without a mesh or without rules: no.
        """
        sizes = jax.sharding.get_abstract_mesh().shape
        return any(sizes.get(axis, 1) > 1 for axis in self[name])

    def sharding(
        self, mesh: Mesh, axes: Axes, shape: tuple[int, ...], name: str
    ) -> NamedSharding:
        """How the array ``name`` of this shape lies on the mesh.

        Raises:
          UserError: a dimension does not divide by the devices that are to split it.
        """
        for dimension, size, split in zip(
            axes, shape, self.mesh_axes(axes), strict=True
        ):
            split = [axis for axis in split if mesh.shape[axis] > 1]
            parts = math.prod(mesh.shape[axis] for axis in split)
            if size % parts:
                sizes = " x ".join(f"config.mesh.{axis}" for axis in split)
                pad = f" or config.model.vocab_multiple={parts}"
                common = math.gcd(size, parts)
                like = f" such as {common}" * (common > 1 and len(split) == 1)
                raise UserError(
                    f"{sizes}: {parts} devices cannot split {dimension}={size} of"
                    f" {name} evenly; a divisor of {size}{like}, or another"
                    f" config.mesh.rules.{dimension}{pad * (dimension == 'vocab')}"
                )
        return NamedSharding(mesh, self.partition(axes))

    def shardings(
        self, mesh: Mesh, axes: dict[str, Any], shapes: dict[str, Any]
    ) -> dict[str, Any]:
        """``sharding`` of every leaf of a tree of axis names and one of shapes."""

        def leaf(path: tuple[Any, ...], names: Axes, value: Any) -> NamedSharding:
            name = "/".join(str(part.key) for part in path)
            return self.sharding(mesh, names, value.shape, name)

        return jax.tree_util.tree_map_with_path(
            leaf, axes, shapes, is_leaf=lambda node: isinstance(node, tuple)
        )

    def batch_sharding(self, mesh: Mesh) -> NamedSharding:
        """Rows split by the rule of ``batch``; the other dimensions whole."""
        return NamedSharding(mesh, self.partition(("batch",)))

    def rows_on_mesh(self, mesh: Mesh, rows: int, accumulation: int = 1) -> int:
        """``rows`` rounded up to what divides over the devices and the microbatches.

        The rows that are added are padding, of weight 0: losses stay those of ``rows``.
        """
        parts = self.devices_of_rows(mesh) * accumulation
        return -(-rows // parts) * parts

    def devices_of_rows(self, mesh: Mesh) -> int:
        """How many devices share the rows of a batch."""
        return math.prod(mesh.shape[axis] for axis in self["batch"])

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Tell the compiler how an activation lies on the mesh of ``jax.set_mesh``.

        Without a mesh or without rules x is returned as it is.
        """
        return self._constrain(x, self.partition(axes))

    def gather(self, kernel: jax.Array, axes: Axes, dtype: Any = None) -> jax.Array:
        """A kernel as it is used: whole over what splits rows and tokens, as in FSDP.

        It is converted to ``dtype`` before it travels, and its gradient back before
        that is summed over devices. Kept for the backward pass, all devices would hold
        all kernels of all layers: see ``regather``.

        Left to the compiler, some layouts give wrong sums: the product contracts over
        the mesh axis that is to split its result, while the kernel is split by one that
        the rows have (jaxlib 0.10; like https://github.com/openxla/xla/issues/40034).
        """
        dtype = dtype or kernel.dtype
        if not self.table or jax.sharding.get_abstract_mesh().empty:
            return kernel.astype(dtype)
        return _gathered(kernel, self, axes, dtype)

    def scatter(self, gradient: jax.Array, axes: Axes, dtype: Any) -> jax.Array:
        """A kernel's gradient as its kernel lies, in ``dtype``: what undoes ``gather``.

        Summed whole, then cut: compilers know the two as one reduce-scatter.
        """
        whole = self._constrain(gradient.astype(dtype), self._used(axes))
        return self._constrain(whole, self.partition(axes))

    def gathers(self, axes: Axes) -> bool:
        """Whether ``gather`` brings parts of other devices on this mesh."""
        sizes = jax.sharding.get_abstract_mesh().shape
        kept = self.mesh_axes(("batch", "sequence", *axes))[2:]
        return any(
            sizes.get(axis, 1) > 1
            for mine, still in zip(self.mesh_axes(axes), kept, strict=True)
            for axis in set(mine) - set(still)
        )

    def _used(self, axes: Axes) -> PartitionSpec:
        return PartitionSpec(*self.partition(("batch", "sequence", *axes))[2:])

    def _constrain(self, x: jax.Array, split: PartitionSpec) -> jax.Array:
        if not self.table or jax.sharding.get_abstract_mesh().empty:
            return x
        return jax.lax.with_sharding_constraint(x, split)


NO_RULES = Rules()


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(kernel: jax.Array, rules: Rules, axes: Axes, dtype: Any) -> jax.Array:
    # First as it lies, or what it is cut out of would be gathered, all layers at once.
    kernel = rules.constrain(kernel.astype(dtype), axes)
    return jax.lax.with_sharding_constraint(kernel, rules._used(axes))


def _gathered_forward(
    kernel: jax.Array, rules: Rules, axes: Axes, dtype: Any
) -> tuple[jax.Array, Any]:
    # An empty array tells the backward pass the dtype: a dtype is no array.
    return _gathered(kernel, rules, axes, dtype), jnp.zeros(0, kernel.dtype)


def _gathered_backward(
    rules: Rules, axes: Axes, dtype: Any, like: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    return (rules.scatter(gradient, axes, like.dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def make_mesh(sizes: Mapping[str, int]) -> tuple[Mesh, str | None]:
    """A mesh over the first devices, and a notice where devices are left over.

    ``sizes`` gives each axis of the mesh a number; one of them may be -1, the rest.
    """
    devices = jax.devices()
    shape = dict(sizes)
    fixed = math.prod(size for size in shape.values() if size != -1)
    rest = [axis for axis, size in shape.items() if size == -1]
    text = " x ".join(f"{axis}={size}" for axis, size in shape.items())
    if fixed > len(devices) or (rest and len(devices) % fixed):
        remedy = "lower a size" + (" or set one to -1" if not rest else "")
        raise UserError(
            f"config.mesh: {text} needs {'a multiple of ' if rest else ''}{fixed}"
            f" devices and there are {len(devices)}; {remedy}"
        )
    for axis in rest:
        shape[axis] = len(devices) // fixed
    used = math.prod(shape.values())
    grid = arrange(devices[:used], shape)
    mesh = Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
    notice = None
    if used < len(devices):
        notice = f"the mesh uses the first {used} of {len(devices)} devices ({text})"
    return mesh, notice


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
