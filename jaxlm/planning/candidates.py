"""Which configs to try: what saves memory, and what a search varies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from jaxlm.core.schema import leaves
from jaxlm.planning.topology import Topology, sizes_on

REMAT = ("none", "dots", "block", "offload")
"""``config.model.remat``, from the fastest to the least memory; those there are."""
RECOMPUTED = {"none": 0.0, "dots": 0.1, "block": 0.3, "offload": 0.35}
"""About how much slower they are."""
TENSOR = (1, 2, 4, 8)
MOST_MICROBATCHES = 256
LEAST_BLOCK = 512
"""Of splash attention. Smaller blocks skip more of what a mask hides, which a plan
counts, but are more steps of the kernel's pipeline, of whose cost it has no figure."""


def remedies(config: Any, topology: Topology) -> list[tuple[str, ...]]:
    """Single changes, and some together, that make a step need less memory."""
    found: list[tuple[str, ...]] = []
    remat, choices = config.model.remat, remat_choices(config)
    less = [each for each in choices if REMAT.index(each) > REMAT.index(remat)]
    found += [(remat_override(each),) for each in less[-2:]]
    more = microbatches(config, topology)
    accumulation = config.train.microbatches(topology.devices)
    larger = [each for each in more if each > accumulation]
    found += [accumulation_overrides(each) for each in (larger[:1] + larger[-1:])]
    sizes = config.mesh.sizes
    if sizes["fsdp"] != -1 and sizes["fsdp"] < topology.devices:
        found.append(mesh_overrides(fsdp=-1, data=1))
    if larger and less:
        found.append((remat_override(less[-1]), *accumulation_overrides(larger[-1])))
    if topology.devices % 2 == 0:
        found.append(mesh_overrides(data=1, fsdp=-1, tensor=2))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Variant:
    """One of a search's configurations, and what it is likely to need and to cost."""

    overrides: tuple[str, ...]
    bytes: float
    slowness: float


def variants(
    config: Any, topology: Topology, facts: Mapping[str, Any], capacity: float
) -> list[tuple[str, ...]]:
    """What a search compiles, the likeliest first, of what is likely to fit.

    ``facts`` are those of the config as it is, once compiled. Less that is computed
    again is faster, then fewer microbatches; parameters split over all devices by fsdp
    are the usual start (Zhao et al., 2023, arXiv:2304.11277).
    """
    choices = remat_choices(config)
    counts = microbatches(config, topology)
    found = [
        Variant(
            (*mesh, *accumulation_overrides(count), remat_override(remat)),
            likely_bytes(facts, topology, count, remat, sizes_of(mesh, topology)),
            RECOMPUTED[remat] + 0.02 * math.log2(count) + 0.05 * place,
        )
        for (place, mesh), count, remat in product(
            enumerate(mesh_choices(topology)), counts, choices
        )
    ]
    small = [each for each in found if each.bytes < capacity]
    small.sort(key=lambda each: each.slowness)
    least = sorted(found, key=lambda each: each.bytes)  # where nothing seems to fit
    return [each.overrides for each in small or least]


def blocks(config: Any, facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Other blocks of splash attention for a step, from the smallest on.

    None where something else computes attention, or rows are too short for others.
    """
    sizes: Mapping[str, int] = facts["attention_blocks"]
    mine = sizes.get(str(config.model.attention_block))
    others: dict[int, str] = {}
    for most, size in sizes.items():
        if size >= LEAST_BLOCK and size != mine:
            others.setdefault(size, most)
    return [
        (f"--config.model.attention_block={others[size]}",) for size in sorted(others)
    ]


def likely_bytes(
    facts: Mapping[str, Any],
    topology: Topology,
    microbatches: int,
    remat: str,
    sizes: Mapping[str, int],
) -> float:
    """A rough guess of a device's bytes: which candidates to compile, nothing else.

    The state and its gradient, of which each device along ``data`` has all; what each
    layer keeps of each token, in two bytes a number; one layer whole; the logits and
    their gradient in fp32.
    """
    tensor, known = sizes["tensor"], facts["mesh"]
    more = known["fsdp"] * known["tensor"] / (sizes["fsdp"] * tensor)
    tokens = facts["tokens_per_step"] / topology.devices * tensor / microbatches
    width, inner = facts["width"], facts["mlp_width"] / tensor
    whole = 2 * (10 * width + 3 * inner)
    kept = {"none": whole, "dots": 2 * (5 * width + 1.5 * inner), "block": 2 * width}
    layers = facts["layers"] * kept.get(remat, 0.0)
    logits = 8 * facts["outputs"] / tensor
    state = facts["optimizer_bytes"] + 2 * facts["parameter_bytes"]
    return more * state + tokens * (layers + whole + logits)


def mesh_choices(topology: Topology) -> list[tuple[str, ...]]:
    """Meshes worth a try: fsdp over all; data outside of hosts or slices, or else along
    a side of the torus; data over all, which gathers nothing; tensor."""
    outer = topology.slices if topology.device.dimensions else topology.shape[0]
    if outer == 1 and topology.device.dimensions:
        outer = topology.shape[0]
    found = [mesh_overrides(data=1, fsdp=-1)]
    if 1 < outer < topology.devices:
        found.append(mesh_overrides(data=outer, fsdp=-1))
    if topology.devices > 1:
        found.append(mesh_overrides(data=-1))
    for tensor in TENSOR[1:]:
        if topology.devices % tensor == 0 and tensor <= topology.shape[-1]:
            found.append(mesh_overrides(data=1, fsdp=-1, tensor=tensor))
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


def sizes_of(mesh: tuple[str, ...], topology: Topology) -> dict[str, int]:
    """The sizes of the axes in overrides of a mesh."""
    pairs = (each.rpartition(".")[2].split("=") for each in mesh)
    return sizes_on(topology, {axis: int(size) for axis, size in pairs})


def remat_choices(config: Any) -> list[str]:
    """What ``config.model.remat`` may be, from the fastest on."""
    allowed = leaves(type(config))["model.remat"].rule.choices or ()
    return [each for each in REMAT if each in allowed]


def remat_override(value: str) -> str:
    return f"--config.model.remat={value}"


def accumulation_overrides(count: int) -> tuple[str, str]:
    return (
        f"--config.train.accumulation={count}",
        "--config.train.rows_per_device=none",
    )


def mesh_overrides(**sizes: int) -> tuple[str, ...]:
    """Every axis that is not named is 1."""
    whole = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes
    return tuple(f"--config.mesh.{axis}={size}" for axis, size in whole.items())
