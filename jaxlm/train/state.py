"""Everything that a run must remember to go on exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxlm.core.types import Params


class State(NamedTuple):
    """The whole state of training; a checkpoint holds just this.

    ``key`` is the raw data (u32) of the dropout key that every step folds its number
    into. Nothing is kept of the data's order: it is a plan, and ``step`` is the place
    in it. ``phase`` is 0: no run has a second phase yet.
    """

    trainable: Params
    frozen: Params
    optimizer: Any
    step: jax.Array
    key: jax.Array
    phase: jax.Array
