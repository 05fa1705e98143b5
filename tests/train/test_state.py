"""States of a run in its phases: what moves, what stays, what begins anew."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from jaxlm.core.mesh import make_mesh, replicated
from jaxlm.core.types import LossSum
from jaxlm.train.config import OptimizerConfig
from jaxlm.train.optimizer import make_optimizer
from jaxlm.train.phases import make_phases, parse_phases
from jaxlm.train.state import States
from jaxlm.train.step import make_step

NAMES = ("backbone/kernel", "classifier/kernel")
WRITTEN = ("head@2steps", "all")


def schedule(count):
    return 0.1 / (1.0 + count)


def states_of(*written):
    mesh, _ = make_mesh({"data": 2, "fsdp": 4})
    split = jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp"))
    kernel = jax.ShapeDtypeStruct((8,), jnp.float32)
    return States(
        make_optimizer(OptimizerConfig(), schedule),
        make_phases(parse_phases(written), NAMES, 6, (4,)),
        {"backbone": {"kernel": kernel}, "classifier": {"kernel": kernel}},
        {"backbone": {"kernel": split}, "classifier": {"kernel": split}},
        replicated(mesh),
    )


def params():
    return {
        "backbone": {"kernel": jnp.arange(8.0)},
        "classifier": {"kernel": jnp.ones(8)},
    }


def objective(trainable, frozen, batch, key, step):
    """Half the squares of what both kernels say of a row."""
    kernels = [
        {**frozen, **trainable}[name]["kernel"] for name in ("backbone", "classifier")
    ]
    said = sum((batch["x"] * kernel[None]).sum(-1) for kernel in kernels)
    weight = batch["mask"].sum().astype(jnp.float32)
    return {"squares": LossSum((said**2).sum() / 2, weight)}, {}


def step_of(states):
    step = jax.jit(make_step(objective, states.optimizer), donate_argnums=0)
    random = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(random.normal(size=(4, 8)), jnp.float32),
        "mask": jnp.ones((4, 1), bool),
    }
    return lambda state: step(state, batch)[0]


def counts(state):
    found = optax.tree.get_all_with_path(state.optimizer, "count")
    return {path[-1].tuple_name: int(count) for path, count in found}


def test_moments_are_kept_of_what_is_trained_alone():
    state = states_of(*WRITTEN).new(params(), 0)
    assert [*state.trainable] == ["classifier"]
    assert [*state.frozen] == ["backbone"]
    kernels = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape]
    assert len(kernels) == 2  # mean and variance of one kernel


def test_what_is_frozen_stays_to_the_bit_and_moves_in_its_phase():
    states = states_of(*WRITTEN)
    step, state = step_of(states), states.new(params(), 0)
    for _ in range(2):
        state = step(state)
    before = params()["backbone"]["kernel"]
    assert np.array_equal(state.frozen["backbone"]["kernel"], before)
    assert not np.array_equal(state.trainable["classifier"]["kernel"], jnp.ones(8))
    state = step(states.enter(state, 1))
    assert state.frozen == {}
    assert not np.array_equal(state.trainable["backbone"]["kernel"], before)


def test_moments_begin_anew_with_a_phase_and_the_schedule_goes_on():
    states = states_of(*WRITTEN)
    step, state = step_of(states), states.new(params(), 0)
    for _ in range(2):
        state = step(state)
    assert counts(state) == {"ScaleByAdamState": 2, "ScaleByScheduleState": 2}
    key = np.array(state.key)
    state = states.enter(state, 1)
    assert counts(state) == {"ScaleByAdamState": 0, "ScaleByScheduleState": 2}
    assert (int(state.step), int(state.phase)) == (2, 1)
    assert np.array_equal(state.key, key)
    before = np.array(state.trainable["backbone"]["kernel"])
    moved = np.abs(np.array(step(state).trainable["backbone"]["kernel"]) - before)
    # Adam's first step is the learning rate, corrected for the bias: 0.1 / 3 here,
    # and weight decay of 0.01 of a kernel of at most 7 besides.
    np.testing.assert_allclose(moved, 0.1 / 3, rtol=0.08)


@pytest.mark.parametrize("step", [0, 2, 3])
def test_what_a_checkpoint_is_read_as_is_what_the_run_has_there(step):
    states = states_of(*WRITTEN)
    state = states.new(params(), 0)
    take = step_of(states)
    for number in range(step):
        state = take(states.enter(state, 1) if number == 2 else state)

    wanted, found = states.abstract(step), state
    assert jax.tree.structure(wanted) == jax.tree.structure(found)
    for path, leaf in jax.tree.leaves_with_path(found):
        other = dict(jax.tree.leaves_with_path(wanted))[path]
        assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)
