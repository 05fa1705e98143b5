"""The mesh of ``config.mesh.layout=auto``: what the planner finds best on this machine.

Free of jax until a mesh is planned, as its compiling processes begin here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxlm.core import config as configs
from jaxlm.experiment.config import AXES, ExperimentConfig

Say = Callable[[str], None]


def settled(
    config: ExperimentConfig, workdir: Path | None, say: Say
) -> ExperimentConfig:
    """The config with sizes for its mesh, where they are left to the planner.

    A run that is resumed on as many devices keeps those that it began with. Process 0
    plans for all.

    Raises:
      UserError: the devices cannot be planned for, or the step fits no mesh of them.
    """
    if config.mesh.layout == "manual":
        return config
    from jaxlm.core.hosts import here

    sizes = here().decide(lambda: kept(workdir) or planned(config, say))
    text = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    say(f"layout {text or 'one device'}, by the planner")
    return configured(config, sizes)


def kept(workdir: Path | None) -> dict[str, int] | None:
    """The sizes that the run of a workdir has; None where none, or others, fit."""
    import jax

    path = None if workdir is None else workdir / configs.FILE
    if path is None or not path.exists():
        return None
    mesh = configs.read(path, ExperimentConfig).mesh
    fits = math.prod(mesh.sizes.values()) == jax.device_count()
    return mesh.sizes if fits and mesh.layout == "manual" else None


def planned(config: ExperimentConfig, say: Say) -> dict[str, int]:
    """The fastest mesh of the devices that are here, each candidate compiled."""
    import jax

    from jaxlm.planning import planner
    from jaxlm.planning.topology import topology_here

    def configure(overrides: tuple[str, ...]) -> ExperimentConfig:
        pairs = (each.removeprefix("--config.mesh.").split("=") for each in overrides)
        return configured(config, {axis: int(size) for axis, size in pairs})

    topology = topology_here(jax.devices())
    say(f"layout: planning a mesh of {topology.text}")
    return planner.choose_mesh(planner.Wanted(build, configure, topology), say)


def configured(config: ExperimentConfig, sizes: dict[str, int]) -> ExperimentConfig:
    """The config with a mesh of these sizes, 1 where none is given."""
    given: dict[str, Any] = {axis: sizes.get(axis, 1) for axis in AXES}
    return replace(config, mesh=replace(config.mesh, layout="manual", **given))


def build(chosen: ExperimentConfig, mesh: Any) -> Any:
    """The step of a config on a mesh; what a compiling process calls."""
    from jaxlm.experiment.planned import build as planned

    return planned(chosen, mesh)
