"""A slice of TPUs or a cluster of GPUs, as it is written on a command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.schema import nearest
from jaxlm.planning.devices import DEVICES, GIB, Device

FLAG = "--topology"
EXAMPLES = "v5p:4x4x4, v5e:16x16, h100:8 (GPUs), h100:4x8 (hosts x GPUs)"
PLANE = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
"""The slices of a v5e or v6e pod (docs.cloud.google.com/tpu/docs/v5e)."""
PARTS_OF_CUBE = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
"""The slices of a 3D pod that are less than one cube of 4x4x4 (.../docs/v5p)."""
LARGEST = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
"""Chips of the largest slice."""
MOST_HOSTS = 4096
MOST_SLICES = 256


KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p",
    "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x",
}  # fmt: skip
"""What jax calls the chips (``device_kind``); the names of GPUs hold ours."""


@dataclass(frozen=True)
class Topology:
    """``shape`` is chips along each side of a slice, or (hosts, GPUs of each)."""

    text: str
    device: Device
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        """How many devices jax shows of all slices together."""
        return math.prod(self.shape) * self.slices * self.device.cores

    @property
    def chips(self) -> int:
        """What is paid for."""
        return math.prod(self.shape) * self.slices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Along which sides of a slice the last chip is a neighbour of the first.

        In 3D, along all where the slice is of whole cubes of 4x4x4; in 2D along those
        of 16, the side of a pod.
        """
        if not self.device.dimensions:
            return ()
        if self.device.dimensions == 2:
            return tuple(side == 16 for side in self.shape)
        return (all(side % 4 == 0 for side in self.shape),) * 3


def parse_topology(text: str) -> Topology:
    """``v5p:4x4x4``, ``v5e:16x16*2`` (two slices), ``h100:8``, ``h100:4x8``.

    Raises:
      UserError: what is wrong, and what is allowed.
    """
    text = text.strip().lower()
    name, colon, rest = text.partition(":")
    if name not in DEVICES:
        near = "v5e" if name.startswith("v5lite") else nearest(name, DEVICES)
        hint = f"; nearest: {near}" if near else ""
        raise UserError(
            f"{FLAG}={text}: {name!r} is no device that can be planned for{hint};"
            f" allowed: {', '.join(DEVICES)}"
        )
    device = DEVICES[name]
    found = re.fullmatch(r"([0-9]{1,5}(?:x[0-9]{1,5})*)(?:\*([0-9]{1,4}))?", rest)
    if not colon or not found:
        raise UserError(
            f"{FLAG}={text}: {name} needs its size after a colon, as {_example(name)}"
        )
    shape = tuple(int(side) for side in found[1].split("x"))
    slices = int(found[2] or 1)
    if device.platform == "tpu":
        _check_slice(text, device, shape)
        if not 1 <= slices <= MOST_SLICES:
            raise UserError(
                f"{FLAG}={text}: {slices} slices are not allowed; from 1 to"
                f" {MOST_SLICES}"
            )
        return Topology(text, device, shape, slices)
    if found[2]:
        hosts = math.prod(shape[:-1]) * slices
        raise UserError(
            f"{FLAG}={text}: *{found[2]} is for slices of TPUs; hosts are written"
            f" {name}:{hosts}x{shape[-1]}"
        )
    shape = (1, *shape) if len(shape) == 1 else shape
    sizes = (1, 2, 4, 8)
    if len(shape) != 2 or shape[1] not in sizes or not 1 <= shape[0] <= MOST_HOSTS:
        raise UserError(
            f"{FLAG}={text}: hosts x GPUs of each, with 1, 2, 4 or 8 GPUs and up to"
            f" {MOST_HOSTS} hosts, as {name}:8 or {name}:4x8"
        )
    return Topology(text, device, shape)


def _example(name: str) -> str:
    sizes = {0: "8 (GPUs) or 4x8 (hosts x GPUs)", 2: "4x4", 3: "4x4x4"}
    return f"{name}:{sizes[DEVICES[name].dimensions]}"


def _check_slice(text: str, device: Device, shape: tuple[int, ...]) -> None:
    name = device.name
    if device.dimensions == 2:
        allowed = ", ".join("x".join(map(str, each)) for each in PLANE)
        if shape not in PLANE:
            raise UserError(
                f"{FLAG}={text}: no such slice; a {name} pod is cut into {allowed}"
            )
        return
    cubes = all(side % 4 == 0 and side for side in shape)
    if len(shape) != 3 or not (cubes or shape in PARTS_OF_CUBE):
        allowed = ", ".join("x".join(map(str, each)) for each in PARTS_OF_CUBE)
        raise UserError(
            f"{FLAG}={text}: no such slice; {name} has {allowed}, and three sides that"
            " are multiples of 4, as 4x4x8"
        )
    if math.prod(shape) > LARGEST[name]:
        raise UserError(
            f"{FLAG}={text}: {math.prod(shape)} chips are more than the largest slice"
            f" of {name}, {LARGEST[name]}; several smaller ones are written as"
            f" {name}:8x8x8*2"
        )


def sizes_on(topology: Topology, sizes: Mapping[str, int]) -> dict[str, int]:
    """``config.mesh`` with the rest (-1) filled in.

    Raises:
      UserError: the topology does not divide so.
    """
    shape, count = dict(sizes), topology.devices
    fixed = math.prod(size for size in shape.values() if size != -1)
    rest = [axis for axis, size in shape.items() if size == -1]
    if count % fixed if rest else fixed != count:
        text = " x ".join(f"{axis}={size}" for axis, size in shape.items())
        needed = "a multiple of " if rest else ""
        remedy = "change a size" + (" or set one to -1" if not rest else "")
        raise UserError(
            f"config.mesh: {text} needs {needed}{fixed} devices and --topology="
            f"{topology.text} has {count}; {remedy}"
        )
    for axis in rest:
        shape[axis] = count // fixed
    return shape


def topology_here(devices: Sequence[Any]) -> Topology:
    """That of the devices jax sees, so that a run can be planned where it begins.

    Raises:
      UserError: it is none that can be planned for.
    """
    kind, count = devices[0].device_kind, len(devices)
    name = KINDS.get(kind)
    if name is None:
        words = kind.lower().replace("-", " ").split()
        name = next((each for each in DEVICES if each in words), None)
        size = re.search(r"(\d+)gb\b", kind.lower())  # of 40 or 80, as of the A100
        if name and size and int(size[1]) < 0.95 * DEVICES[name].memory / GIB:
            name = None
    if name is None:
        raise UserError(
            f"config.mesh.layout: auto cannot plan for the devices that are here"
            f" ({kind}); it can for {', '.join(DEVICES)};"
            " --config.mesh.layout=manual takes the sizes that config.mesh has"
        )
    try:
        found = parse_topology(f"{name}:{_size_here(DEVICES[name], devices)}")
    except UserError as problem:
        raise UserError(
            f"config.mesh.layout: auto cannot plan for these {count} devices; take"
            f" manual, and sizes of config.mesh ({problem})"
        ) from problem
    return replace(found, device=_allowed(found.device, devices[0]))


def _allowed(device: Device, one: Any) -> Device:
    """A GPU with as much memory as jax lets a program of this process have."""
    told = getattr(one, "memory_stats", lambda: None)()
    limit = (told or {}).get("bytes_limit")
    if device.platform != "cuda" or not limit:
        return device
    return replace(device, memory=min(device.memory, limit))


def _size_here(device: Device, devices: Sequence[Any]) -> str:
    if not device.dimensions:
        hosts = len({each.process_index for each in devices})
        return f"{hosts}x{len(devices) // hosts}"
    sides = [
        max(each.coords[side] for each in devices) + 1
        for side in range(device.dimensions)
    ]
    slices = len({getattr(each, "slice_index", 0) for each in devices})
    return "x".join(map(str, sides)) + f"*{slices}" * (slices > 1)
