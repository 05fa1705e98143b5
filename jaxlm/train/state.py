"""Everything that a run must remember to go on exactly, in each of its phases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.core.types import Params
from jaxlm.train.objective import join
from jaxlm.train.optimizer import optimizer_shardings, with_schedule_at
from jaxlm.train.phases import Phases


class State(NamedTuple):
    """The whole state of training; a checkpoint holds just this.

    ``optimizer`` has moments of what is trainable only. ``key`` is the raw data (u32)
    of the dropout key that every step folds its number into. Nothing is kept of the
    data's order: it is a plan, and ``step`` is the place in it. ``phase`` counts from 0
    (see ``Phases.at``).
    """

    trainable: Params
    frozen: Params
    optimizer: Any
    step: jax.Array
    key: jax.Array
    phase: jax.Array


@dataclass(frozen=True)
class States:
    """Makes the states of a run: the first, and those that a phase begins with.

    ``shapes`` and ``shardings`` are trees like the parameters; ``whole`` is how a
    scalar lies on the mesh.
    """

    optimizer: optax.GradientTransformation
    phases: Phases
    shapes: Params
    shardings: Params
    whole: jax.sharding.Sharding

    def new(self, params: Params, seed: int) -> State:
        """The state before the first step."""
        make = jax.jit(
            partial(self._make, seed=seed), out_shardings=self._placed(phase=0)
        )
        # Not donated: donating what came from numpy may alias host memory on CPU.
        return make(params)

    def enter(self, state: State, phase: int) -> State:
        """A state as the first of a phase: other parameters move, moments begin anew.

        Moments that went on would be corrected for a bias that those of parameters
        which begin to move do not have. The learning rate goes on. ``state`` is used
        up, as by a step.
        """

        def change(params: Params, step: jax.Array, key: jax.Array) -> State:
            trainable, frozen = self.phases.split(params, phase)
            moments = with_schedule_at(self.optimizer.init(trainable), step)
            return State(trainable, frozen, moments, step, key, jnp.int32(phase))

        params = join(state.trainable, state.frozen)
        for leaf in jax.tree.leaves(state.optimizer):
            leaf.delete()  # as donated ones are: the old moments make room for the new
        make = jax.jit(change, donate_argnums=0, out_shardings=self._placed(phase))
        return make(params, state.step, state.key)

    def abstract(self, step: int) -> State:
        """Shapes, dtypes and shardings of the state after ``step`` steps."""
        phase = self.phases.at(step)
        shapes = jax.eval_shape(partial(self._make, seed=0, phase=phase), self.shapes)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            shapes,
            self._placed(phase),
        )

    def held(self, state: State) -> State:
        """A state, inside a step, told to lie as the step was given it.

        Left to the compiler, the result of some layouts lies otherwise: the next step
        would be compiled anew, and one after a restart, whose state lies by the rules,
        would sum in another order.
        """
        structure = jax.tree.structure(state.trainable)
        placed = (self._placed(phase) for phase in range(len(self.phases.begins)))
        mine = next(
            each for each in placed if jax.tree.structure(each.trainable) == structure
        )
        return jax.lax.with_sharding_constraint(state, mine)

    def _make(self, params: Params, seed: int, phase: int = 0) -> State:
        trainable, frozen = self.phases.split(params, phase)
        moments = self.optimizer.init(trainable)
        key = jax.random.key_data(jax.random.key(seed))
        zero = jnp.int32(0)
        return State(trainable, frozen, moments, zero, key, zero)

    def _placed(self, phase: int) -> Any:
        whole: Any = self.whole
        trainable, frozen = self.phases.split(self.shardings, phase)
        shapes, _ = self.phases.split(self.shapes, phase)
        moments = optimizer_shardings(self.optimizer, shapes, trainable, whole)
        return State(trainable, frozen, moments, whole, whole, whole)
