"""Checkpoints: which are kept, which is best, and what comes back."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.errors import UserError
from jaxlm.core.grouping import regroup
from jaxlm.train.checkpoints import OtherLayout
from jaxlm.train.retention import choose
from jaxlm.train.state import State
from tests.train.states import (
    abstract_of,
    abstracted,
    equal,
    mesh_of,
    opened,
    placed,
    save_all,
    state_of,
)


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = [0.1, 0.9, 0.3, 0.8, 0.2, 0.4]
    steps, best = save_all(tmp_path, scores, keep_last=2, keep_best=2)
    assert steps == [2, 4, 5, 6]
    assert best == 2


def test_of_equal_scores_the_earliest_is_the_best_and_kept(tmp_path):
    steps, best = save_all(tmp_path, [0.1, 0.5, 0.5, 0.5, 0.5])
    assert steps == [2, 4, 5]
    assert best == 2


def test_only_the_last_are_kept_where_no_best_is_asked_for(tmp_path):
    steps, _ = save_all(tmp_path, [0.9, 0.1, 0.1], keep_last=1, keep_best=0)
    assert steps == [3]


def test_checkpoints_without_a_score_are_never_the_best(tmp_path):
    scores = [None, float("nan"), 0.2, None, None]
    steps, best = save_all(tmp_path, scores)
    assert steps == [3, 4, 5]
    assert best == 3


def test_saves_leave_no_threads_behind(tmp_path):
    """Each would keep three files open too, until a long run has too many."""
    counts = {}
    with opened(tmp_path) as checkpoints:
        for step in range(1, 13):
            checkpoints.save(state_of(step))
            if step % 4 == 0:  # and else as in a run, which does not wait
                checkpoints.wait()
                counts[step] = threading.active_count()
    # What Orbax has for itself comes with the first saves, and a pool may grow by one.
    assert counts[12] <= counts[4] + 2


def test_there_is_no_best_where_nothing_was_scored(tmp_path):
    steps, best = save_all(tmp_path, [None, None])
    assert (steps, best) == ([1, 2], None)


def test_metrics_that_are_not_numbers_are_left_out(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), {"f1": np.float32(0.5), "note": "x", "no": None})
        checkpoints.wait()
        assert checkpoints.best() == 1


def deep_state(names, mesh):
    """A state of four layers, 8 wide, in the stacks of these names."""
    whole = {"layers": {"kernel": jnp.arange(32.0).reshape(4, 8)}, "bias": jnp.ones(8)}
    params = regroup(whole, [*(f"{name}/kernel" for name in names), "bias"])
    key = jnp.array([0, 7], jnp.uint32)
    state = State(params, {}, {}, jnp.int32(1), key, jnp.int32(0))
    return jax.tree.map(jax.device_put, state, placed(state, mesh))


GROUPINGS = [["layers"], ["layers[0:1]", "layers[1:4]"], ["layers[0:2]", "layers[2:4]"]]


@pytest.mark.parametrize("there", GROUPINGS)
@pytest.mark.parametrize("here", GROUPINGS)
def test_parameters_come_back_in_another_grouping_of_layers(tmp_path, there, here):
    # Two devices split the layers of a stack, where they can.
    odd = "layers[0:1]" in [*there, *here]
    mesh = mesh_of(fsdp=1 if odd else 2)
    wanted = deep_state(here, mesh).trainable
    abstract = abstracted(wanted, mesh)
    with opened(tmp_path) as checkpoints:
        checkpoints.save(deep_state(there, mesh))
        checkpoints.wait()
        found = checkpoints.restore_params(1, abstract)
    assert equal(found, wanted)
    same = jax.tree.map(lambda a, b: a.sharding == b.sharding, found, abstract)
    assert all(jax.tree.leaves(same))


def half_trained(stacks, mesh):
    """Four layers of which the last two are trained, in these stacks, with moments."""
    rows = jnp.arange(32.0).reshape(4, 8)
    trainable = {
        f"layers[{start}:{stop}]": {"kernel": rows[start:stop]}
        for start, stop in stacks
    }
    moments = optax.adam(1e-3).init(trainable)
    moments = (moments[0]._replace(mu=trainable, count=jnp.int32(5)), *moments[1:])
    frozen = {"layers[0:2]": {"kernel": rows[:2]}}
    key = jnp.array([0, 7], jnp.uint32)
    state = State(trainable, frozen, moments, jnp.int32(1), key, jnp.int32(0))
    return jax.tree.map(jax.device_put, state, placed(state, mesh))


@pytest.mark.parametrize("turned", [False, True])
def test_moments_of_some_layers_come_back_in_another_grouping(tmp_path, turned):
    together, apart = [(2, 4)], [(2, 3), (3, 4)]
    there, here = (apart, together) if turned else (together, apart)
    wanted = half_trained(here, mesh_of())
    with opened(tmp_path) as checkpoints:
        checkpoints.save(half_trained(there, mesh_of()))
        checkpoints.wait()
        found = checkpoints.restore(1, abstracted(wanted, mesh_of()))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert equal(found, wanted)


def test_layers_that_devices_cannot_split_on_disk_come_back_split(tmp_path):
    wanted = deep_state(["layers"], mesh_of(fsdp=2)).trainable
    with opened(tmp_path) as checkpoints:
        checkpoints.save(deep_state(["layers[0:1]", "layers[1:4]"], mesh_of()))
        checkpoints.wait()
        abstract = abstracted(wanted, mesh_of(fsdp=2))
        assert equal(checkpoints.restore_params(1, abstract), wanted)


def test_parameters_of_another_depth_are_refused_in_any_grouping(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(deep_state(["layers[0:2]", "layers[2:4]"], mesh_of()))
        checkpoints.wait()
        deeper = {"layers": {"kernel": jnp.ones((5, 8))}, "bias": jnp.ones(8)}
        with pytest.raises(OtherLayout, match=r"layers/kernel is \S+\[4, 8\], not"):
            checkpoints.restore_params(1, abstracted(deeper, mesh_of()))


def test_a_state_comes_back_as_it_was(tmp_path):
    save_all(tmp_path, [0.5, 0.6])
    with opened(tmp_path) as checkpoints:
        assert equal(checkpoints.restore(2, abstract_of()), state_of(2))
        abstract = abstract_of()
        params = checkpoints.restore_params(1, abstract.trainable)
        assert equal(params, state_of(1).trainable)


def test_a_state_comes_back_on_another_mesh(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_of(3, mesh_of(fsdp=4, tensor=2)))
    mesh = mesh_of(fsdp=2, tensor=4)
    with opened(tmp_path) as checkpoints:
        found = checkpoints.restore(3, abstract_of(mesh))
    assert equal(found, state_of(3))
    kernel = found.trainable["layer"]["kernel"]
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    bump = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0
    )
    with opened(tmp_path, keep_last=9) as checkpoints:
        for step in (1, 2, 3, 4):
            state = state_of(step)
            checkpoints.save(state)
            for _ in range(50):  # overwrites the buffers while they are being written
                state = bump(state)
    with opened(tmp_path, keep_last=9) as checkpoints:
        for step in (1, 2, 3, 4):
            assert equal(checkpoints.restore(step, abstract_of()), state_of(step))


def test_a_step_is_saved_once(tmp_path):
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), {"f1": 0.5})
        checkpoints.save(state_of(1))  # still being written
        checkpoints.wait()
        checkpoints.save(state_of(1))
        assert checkpoints.best() == 1


def test_what_is_frozen_comes_back_apart_and_is_read_as_one_tree(tmp_path):
    def halved(state):
        trainable = {"head": state.trainable["head"], "layer": {}}
        trainable["layer"]["bias"] = state.trainable["layer"]["bias"]
        frozen = {"layer": {"kernel": state.trainable["layer"]["kernel"]}}
        return state._replace(trainable=trainable, frozen=frozen)

    with opened(tmp_path) as checkpoints:
        checkpoints.save(halved(state_of(1)))
        checkpoints.wait()
        found = checkpoints.restore(1, halved(abstract_of()))
        params = checkpoints.restore_params(1, abstract_of().trainable)
    assert equal(found, halved(state_of(1)))
    assert equal(params, state_of(1).trainable)


def test_a_reader_sees_what_was_saved_since(tmp_path):
    save_all(tmp_path, [0.5])
    with opened(tmp_path, clean=False) as reader:
        with opened(tmp_path) as writer:
            writer.save(state_of(2), {"f1": 0.9})
        assert reader.steps() == [1]
        reader.reload()
        assert reader.steps() == [1, 2]
        assert reader.best() == 2


def test_choosing_steps(tmp_path):
    save_all(tmp_path, [0.5, 0.9, 0.1, 0.2])
    with opened(tmp_path) as checkpoints:
        assert choose(checkpoints, "best") == [2]
        assert choose(checkpoints, "last") == [4]
        assert choose(checkpoints, "all") == [2, 3, 4]
        assert choose(checkpoints, "3") == [3]
        with pytest.raises(UserError, match="--step=1: not there; allowed: best"):
            choose(checkpoints, "1")


def test_choosing_among_none_says_to_train_first(tmp_path):
    with opened(tmp_path) as checkpoints, pytest.raises(UserError, match="train with"):
        choose(checkpoints, "best")
