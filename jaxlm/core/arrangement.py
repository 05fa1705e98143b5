"""Which device stands where in a mesh: neighbours by their network, slices outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.core.errors import UserError

SPANS_SLICES = ("data", "fsdp")
"""The axes that may go between slices, the first that divides by their number."""


def arrange(devices: Sequence[Any], sizes: Mapping[str, int]) -> np.ndarray:
    """Devices as an array of these sizes.

    On a TPU slice an axis of the mesh is made of whole sides of the torus, so that its
    collectives run on rings of links; sides are split among axes on a plane alone.
    Between slices, which a far slower network joins, goes the outer part of one axis.

    Raises:
      UserError: the sizes do not lie on the slice, or between the slices.
    """
    from jax.experimental import mesh_utils

    slices = 1
    if devices[0].platform == "tpu":  # of GPUs a slice is a host, and rows are in order
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    outer = dict.fromkeys(sizes, 1)
    if slices > 1:
        outer[slice_axis(sizes, slices)] = slices
    inner = tuple(size // outer[axis] for axis, size in sizes.items())
    split = {"allow_split_physical_axes": _is_plane(devices)}
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(inner, devices, **split)
        return mesh_utils.create_hybrid_device_mesh(
            inner, tuple(outer.values()), devices, **split
        )
    except (NotImplementedError, ValueError) as problem:
        text = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        raise UserError(
            f"config.mesh: {text} does not lie on {len(devices)} devices"
            f"{_sides(devices)}: each axis must be made of whole sides of it; python -m"
            " jaxlm.plan --search finds sizes"
        ) from problem


def slice_axis(sizes: Mapping[str, int], slices: int) -> str:
    """The axis of the mesh whose outer part goes between slices.

    Raises:
      UserError: none divides by their number.
    """
    for axis in SPANS_SLICES:
        if sizes[axis] % slices == 0:
            return axis
    raise UserError(
        f"config.mesh: neither data={sizes['data']} nor fsdp={sizes['fsdp']} divides by"
        f" the {slices} slices"
    )


def _is_plane(devices: Sequence[Any]) -> bool:
    coords = [getattr(device, "coords", None) for device in devices]
    return all(each is not None and len(set(each[2:]) - {0}) == 0 for each in coords)


def _sides(devices: Sequence[Any]) -> str:
    coords = [getattr(device, "coords", None) for device in devices]
    if not all(coords):
        return ""
    sides = np.array(coords).max(0) + 1
    return f" of {'x'.join(map(str, sides))}"
