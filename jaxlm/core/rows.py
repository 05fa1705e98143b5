"""Which rows of a batch lie on this process's devices, and how they come there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxlm.core.types import Batch


@dataclass(frozen=True)
class Rows:
    """The ``count`` rows of a batch, and how they lie on a mesh.

    Which are this process's follows from the sharding alone: where another axis of the
    mesh lies across processes, several hold, and read, the same rows; and processes may
    hold unlike numbers of them.
    """

    sharding: NamedSharding
    count: int

    @cached_property
    def own(self) -> tuple[int, ...]:
        """The rows on this process's devices, ascending."""
        parts = self.sharding.addressable_devices_indices_map((self.count,)).values()
        found = {
            row for part in parts if part for row in range(*part[0].indices(self.count))
        }
        return tuple(sorted(found))

    def place(self, arrays: Mapping[str, np.ndarray]) -> Batch:
        """Arrays of the rows ``own`` [len(own), ...] as those of all rows, in place."""
        if self.sharding.is_fully_addressable:
            return {
                name: jax.device_put(value, self.sharding)
                for name, value in arrays.items()
            }
        where = {row: place for place, row in enumerate(self.own)}

        def placed(value: np.ndarray) -> jax.Array:
            def part(index: Any) -> np.ndarray:  # a slice for each dimension
                rows = range(*index[0].indices(self.count))
                return value[where[rows[0]] : where[rows[-1]] + 1]

            shape = (self.count, *value.shape[1:])
            return jax.make_array_from_callback(shape, self.sharding, part)

        return {name: placed(value) for name, value in arrays.items()}
