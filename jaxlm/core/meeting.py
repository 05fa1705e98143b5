"""The processes of a mesh meet before they compute on it."""

from __future__ import annotations

from itertools import combinations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.core.errors import UserError
from jaxlm.core.hosts import here


def meet(mesh: Mesh) -> None:
    """Make sure that every process has a part in the mesh, and that all are there.

    Raises:
      UserError: a process has no device in it.
    """
    hosts = here()
    if hosts.count == 1:
        return
    check_reach(mesh, hosts.count)
    if mesh.devices.flat[0].platform == "cpu":
        greet(mesh)


def check_reach(mesh: Mesh, processes: int) -> None:
    """Refuse a mesh that leaves one of so many processes without a device.

    Raises:
      UserError: it does.
    """
    held = {device.process_index for device in mesh.devices.flat}
    if idle := sorted(set(range(processes)) - held):
        raise UserError(
            f"config.mesh: its {mesh.size} devices leave process {idle[0]} of"
            f" {processes} without one; raise a size or set one to -1, or start fewer"
            " processes"
        )


def greet(mesh: Mesh) -> None:
    """Sum along every set of axes once, all processes at one time.

    Those that reduce something together connect when they first do so, for which gloo
    gives the last of them 30 s. Of two that compile a step, one may well take that much
    longer on a busy machine.
    """
    axes = [name for name, size in mesh.shape.items() if size > 1]
    programs = []
    for count in range(1, len(axes) + 1):
        for chosen in combinations(axes, count):
            programs.append(_sum_along(mesh, chosen))
    here().barrier()
    for program, ones in programs:
        jax.block_until_ready(program(ones))


def _sum_along(
    mesh: Mesh, axes: tuple[str, ...]
) -> tuple[jax.stages.Compiled, jax.Array]:
    split = PartitionSpec(axes)
    shape = (mesh.size,)  # which every set of axes divides
    ones = jax.make_array_from_callback(
        shape, NamedSharding(mesh, split), lambda index: jnp.ones(shape)[index]
    )
    total = jax.shard_map(
        lambda part: jax.lax.psum(part.sum(), axes),
        mesh=mesh,
        in_specs=split,
        out_specs=PartitionSpec(),
    )
    return jax.jit(total).lower(ones).compile(), ones
