"""How long a collective takes on a network: rings of a torus, switches, hosts apart.

The usual bounds by bandwidth (Chan et al., 2007, "Collective communication"; as in "How
To Scale Your Model", jax-ml.github.io/scaling-book/sharding and /gpus). D is the whole
array, of which each of n devices has or gets 1/n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.planning.topology import Topology

GATHERS = ("all-gather", "reduce-scatter", "all-reduce")
INSIDE = 6
"""Links to a neighbour that the way between the two devices of one chip of tpu7x is as
fast as (docs.cloud.google.com/tpu/docs/tpu7x)."""


@dataclass(frozen=True)
class Network:
    """``places`` i64[devices, 1 + dimensions]: of each device, in the mesh's order.

    The first number is its slice or host, the others where it stands in that.
    ``latency`` is that of one hop in seconds; ``share`` of the links' bandwidth that a
    collective gets.
    """

    topology: Topology
    places: np.ndarray
    share: float = 1.0
    latency: float = 0.0

    def seconds(self, kind: str, size: float, members: Sequence[int]) -> float:
        """Of one collective over ``members``.

        ``size``: bytes of D for a gather, scatter or reduction; else those that each
        device has.
        """
        n = len(members)
        if n < 2:
            return 0.0
        where = self.places[np.asarray(members)]
        apart = len(np.unique(where[:, 0]))
        near = n // apart
        times = 2.0 if kind == "all-reduce" else 1.0
        if kind in GATHERS:
            inner = size * (near - 1) / near / self._speed(where) if near > 1 else 0.0
            outer = self._between(size, apart, near)
            # Within hosts and between them data flow at the same time.
            return times * (max(inner, outer) / self.share + self._wait(where, apart))
        if kind == "all-to-all":
            inner = self._exchange(size, where) if near > 1 else 0.0
            outer = self._between(size * near, apart, near)
            return max(inner, outer) / self.share + self._wait(where, apart)
        speed = self.topology.device.network if apart > 1 else self._way(where)
        return size / speed / self.share + self.latency

    def _between(self, size: float, apart: int, near: int) -> float:
        """Between slices or hosts, whose members each use their own way out."""
        if apart == 1:
            return 0.0
        return size * (apart - 1) / apart / (near * self.topology.device.network)

    def _speed(self, where: np.ndarray) -> float:
        """B/s of a device to the others of its slice or host, all its ways together."""
        device = self.topology.device
        if not device.dimensions:
            return device.link
        sides = self._sides(where)
        if not sides:
            return INSIDE * device.link
        # A chip's links are shared: all that comes to it by them is for those of its
        # devices that are in the group, and groups of the others want as much.
        mine = len(where) / len(np.unique(where, axis=0)) / device.cores
        return mine * sum(self._side(where, side) for side in sides)

    def _way(self, where: np.ndarray) -> float:
        """B/s from a device to another of its slice or host, while all send."""
        device = self.topology.device
        if device.dimensions and len(np.unique(where, axis=0)) == 1:
            return INSIDE * device.link
        return device.link / device.cores

    def _sides(self, where: np.ndarray) -> list[int]:
        """Along which sides of the torus a group lies; one where it is no box."""
        extents = [len(np.unique(column)) for column in where[:, 1:].T]
        used = [side for side, extent in enumerate(extents) if extent > 1]
        near = len(np.unique(where[:, 1:], axis=0))
        whole = math.prod(extents[side] for side in used) == near
        return used if whole else used[:1]

    def _side(self, where: np.ndarray, side: int) -> float:
        """Along one side: both directions of a ring, one of a line."""
        extent = len(np.unique(where[:, 1 + side]))
        topology = self.topology
        ring = topology.wraps[side] and extent == topology.shape[side] and extent > 2
        return topology.device.link * (2 if ring else 1)

    def _exchange(self, size: float, where: np.ndarray) -> float:
        """All to all: on a ring a quarter of a gather of all that is exchanged."""
        if not self.topology.device.dimensions:
            return size / self.topology.device.link
        sides = self._sides(where)
        if not sides:
            return size / (INSIDE * self.topology.device.link)
        longest = max(len(np.unique(where[:, 1 + side])) for side in sides)
        slowest = min(self._side(where, side) for side in sides)
        return size * self.topology.device.cores * longest / 4 / slowest

    def _wait(self, where: np.ndarray, apart: int) -> float:
        """Latency of the hops: half a ring's, as both directions are used."""
        if not self.topology.device.dimensions:
            return self.latency * (1 + math.log2(apart))
        extents = [len(np.unique(column)) for column in where[:, 1:].T]
        return self.latency * max(1.0, sum(extents) / 2)
