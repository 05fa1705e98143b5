"""What a save writes: copies of a state's arrays, beside which training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core.grouping import join_stacks
from jaxlm.train.fingerprint import fingerprints


class Staging:
    """The items of one save after another.

    On a CPU, what a save leaves to a step is felt: every array costs Python and locks,
    every fresh page of memory its zeros. There, stacks of layers are joined, and copies
    lie where those of the save before did, which must be on disk. Elsewhere that would
    be the device's memory, and the host's copy is not ours.
    """

    def __init__(self) -> None:
        self._phase, self._rooms = -1, dict[str, Any]()

    def stage(self, items: Mapping[str, Any], phase: int) -> dict[str, Any]:
        """Each item as it is written, and ``fingerprints u32[leaves]`` of that.

        The items themselves are left as they are.
        """
        if phase != self._phase:  # whose moments are others
            self._phase, self._rooms = phase, {}
        staged = {}
        for name, item in items.items():
            if on_cpu():
                room = self._rooms.pop(name, None) or make_room(item)
                item, marks = copied(item, room)
                self._rooms[name] = item if room is not None else None
            else:
                marks = marked(item)
            staged[name] = {"arrays": item, "fingerprints": marks}
        return staged


marked = jax.jit(fingerprints)


@partial(jax.jit, donate_argnames="room", keep_unused=True)
def copied(item: Any, room: Any) -> tuple[Any, jax.Array]:
    """A copy with stacks joined, in the memory of ``room``, and its fingerprints."""
    item = jax.tree.map(jnp.copy, join_stacks(item))
    return item, fingerprints(item)


def make_room(item: Any) -> Any:
    """Arrays that a copy may take the place of; None where it may not."""
    if not alone(item):  # the copy's shardings are the compiler's to choose
        return None
    shapes = jax.eval_shape(join_stacks, item)
    return jax.jit(lambda: jax.tree.map(jnp.zeros_like, shapes))()


def alone(item: Any) -> bool:
    """Whether all arrays lie on one device."""
    leaves = jax.tree.leaves(item)
    return all(len(leaf.sharding.device_set) == 1 for leaf in leaves)


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"
