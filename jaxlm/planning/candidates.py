"""Which configs to try: what saves memory, and a search's meshes and microbatches."""

from __future__ import annotations

from itertools import product
from typing import Any

from jaxlm.planning.topology import Topology

REMAT = ("none", "dots", "block")
"""``config.model.remat``, from the least that is computed again to the most."""
TENSOR = (1, 2, 4, 8)
MOST_MICROBATCHES = 256


def remedies(config: Any, topology: Topology) -> list[tuple[str, ...]]:
    """Single changes, and some together, that make a step need less memory."""
    found: list[tuple[str, ...]] = []
    remat = remat_of(config)
    if remat != "block":
        found.append((remat_override("block"),))
    more = microbatches(config, topology)
    accumulation = config.train.accumulation
    larger = [each for each in more if each > accumulation]
    found += [(accumulation_override(each),) for each in (larger[:1] + larger[-1:])]
    sizes = config.mesh.sizes
    if sizes["fsdp"] != -1 and sizes["fsdp"] < topology.devices:
        found.append(mesh_overrides(fsdp=-1, data=1))
    if larger and remat != "block":
        found.append((remat_override("block"), accumulation_override(larger[-1])))
    if topology.devices % 2 == 0:
        found.append(mesh_overrides(data=1, fsdp=-1, tensor=2))
    return list(dict.fromkeys(found))


def variants(config: Any, topology: Topology) -> list[tuple[str, ...]]:
    """What a search compiles, the likeliest first: the config as it is before all.

    Fewer microbatches and less that is computed again are faster, where they fit;
    parameters split over all devices by fsdp are the usual start (Zhao et al., 2023,
    arXiv:2304.11277), tensor parallelism the usual next.
    """
    found: list[tuple[str, ...]] = [()]
    meshes = mesh_choices(topology)
    counts = microbatches(config, topology)
    ranked = sorted(
        product(range(len(meshes)), range(len(counts)), range(len(REMAT))),
        key=lambda each: (each[0] + each[1] + (len(REMAT) - 1 - each[2]), each),
    )
    for mesh, count, remat in ranked:
        found.append(
            (
                *meshes[mesh],
                accumulation_override(counts[count]),
                remat_override(REMAT[remat]),
            )
        )
    return list(dict.fromkeys(found))


def mesh_choices(topology: Topology) -> list[tuple[str, ...]]:
    """Meshes worth a try: fsdp over all; data outside of hosts or slices; tensor."""
    found = [mesh_overrides(data=1, fsdp=-1)]
    for tensor in TENSOR[1:]:
        if topology.devices % tensor == 0 and tensor <= topology.shape[-1]:
            found.append(mesh_overrides(data=1, fsdp=-1, tensor=tensor))
    outer = topology.slices if topology.device.dimensions else topology.shape[0]
    if outer > 1:
        found.insert(1, mesh_overrides(data=outer, fsdp=-1))
    return found


def microbatches(config: Any, topology: Topology) -> list[int]:
    """Numbers of microbatches, from a row for each device on, doubling its rows.

    The fewest come last: they need the most memory.
    """
    rows = config.train.batch_size
    most = max(1, rows // topology.devices)
    found = [
        count
        for count in range(1, min(most, MOST_MICROBATCHES) + 1)
        if rows % count == 0 and (most // count) * count == most
    ]
    return found


def remat_of(config: Any) -> str:
    return config.model.remat


def remat_override(value: str) -> str:
    return f"--config.model.remat={value}"


def accumulation_override(count: int) -> str:
    return f"--config.train.accumulation={count}"


def mesh_overrides(**sizes: int) -> tuple[str, ...]:
    """Every axis that is not named is 1."""
    whole = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes
    return tuple(f"--config.mesh.{axis}={size}" for axis, size in whole.items())
