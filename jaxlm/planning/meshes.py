"""The mesh of a slice or a cluster that is not here, of devices that compile alone."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jaxlm.core.errors import UserError
from jaxlm.planning.targets import target_config
from jaxlm.planning.topology import FLAG, Topology

if TYPE_CHECKING:
    from jax.sharding import Mesh

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""What keeps libtpu from looking for chips, a metadata server or other processes."""
COMPILERS = {
    "tpu": ("libtpu",),
    "cuda": ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"),
}
REMEDY = {
    "tpu": "pip install 'jaxlm[plan-tpu]'",
    "cuda": "pip install 'jaxlm[plan-gpu]'",
}


def prepare_environment() -> None:
    """Before jax is imported: the process compiles, and runs on nothing but its CPU."""
    os.environ.update(ENVIRONMENT)


def make_mesh(topology: Topology, sizes: Mapping[str, int]) -> Mesh:
    """The mesh that jax would make there: neighbours on it are neighbours in the torus.

    Raises:
      UserError: the compiler is not installed, or the sizes do not fit the slice.
    """
    from jax.sharding import AxisType, Mesh

    from jaxlm.core.arrangement import arrange

    grid = arrange(_devices(topology), sizes)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _devices(topology: Topology) -> list[Any]:
    from jax.experimental import topologies

    platform, shape = topology.device.platform, topology.shape
    options: dict[str, Any]
    if platform == "tpu":
        name = f"{topology.device.name}:{'x'.join(map(str, shape))}"
        # libtpu wants three, of a plane too.
        wrap = (*topology.wraps, False)[:3]
        options = {"wrap": wrap} if any(wrap) else {}
        if topology.device.name == "v4":  # its two cores as one device, as Cloud has it
            options["chip_config_name"] = "megacore"
        if math.prod(shape) == 1:  # libtpu takes four chips of a host for granted
            options["chips_per_host_bounds"] = (1, 1, 1)
        if topology.slices > 1:
            options["num_slices"] = topology.slices
    else:
        name = topology.text.replace(":", "_")
        options = {
            "target_config": target_config(topology.device.name),
            "topology": f"1x{shape[0]}x{shape[1]}",
        }
    try:
        found = topologies.get_topology_desc(
            topology_name=name, platform=platform, **options
        )
    except Exception as problem:
        check_compiler(topology)
        text = " ".join(str(problem).split())
        raise UserError(
            f"{FLAG}={topology.text}: the compiler does not know it: {text[:300]}"
        ) from problem
    return list(found.devices)


def check_compiler(topology: Topology) -> None:
    """Refuse a topology whose compiler is not installed; without importing it.

    Raises:
      UserError: it is not.
    """
    platform = topology.device.platform
    if not any(map(_is_installed, COMPILERS[platform])):
        raise UserError(
            f"{FLAG}={topology.text}: the compiler for it is not installed;"
            f" {REMEDY[platform]}"
        )


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of what it would be a part of
        return False


def places(topology: Topology, mesh: Mesh) -> list[list[int]]:
    """Of each device in the mesh's order: its slice or host, and its place there."""
    found = []
    for device in mesh.devices.flat:
        if topology.device.platform == "cuda":
            found.append([device.process_index, device.id % topology.shape[1]])
        else:
            sides = list(device.coords)[: len(topology.shape)]
            found.append([getattr(device, "slice_index", 0) or 0, *sides])
    return found
