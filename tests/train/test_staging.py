"""What a save writes: copies that stand still, in memory that is used again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.train.staging import Staging
from tests.train.states import equal, mesh_of


def items_of(number, mesh, *stacks):
    """Stacks of one layer of these names; the n-th is filled with ``number + n``."""
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = {
        name: {"kernel": jnp.full((1, 8), number + n)} for n, name in enumerate(stacks)
    }
    return {"params": jax.device_put({**params, "bias": jnp.full(3, number)}, whole)}


def pointers(staged):
    leaves = jax.tree.leaves(staged["params"]["arrays"])
    return [leaf.unsafe_buffer_pointer() for leaf in leaves]


def test_a_save_lies_where_the_one_before_did():
    staging, mesh = Staging(), mesh_of()
    places = [
        pointers(staging.stage(items_of(number, mesh, "layers"), phase=0))
        for number in (1.0, 2.0, 3.0)
    ]
    assert places[0] == places[1] == places[2]


def test_what_is_still_read_is_not_written_over():
    staging, mesh = Staging(), mesh_of()
    first = staging.stage(items_of(1.0, mesh, "layers"), phase=0)
    read = np.asarray(first["params"]["arrays"]["bias"])  # no copy, on a CPU
    second = staging.stage(items_of(2.0, mesh, "layers"), phase=0)
    assert read.tolist() == [1, 1, 1]
    assert second["params"]["arrays"]["bias"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("devices", [1, 2])
def test_stacks_are_joined_and_the_state_is_left_as_it_is(devices):
    mesh = mesh_of(fsdp=devices)
    items = items_of(5.0, mesh, "layers[0:1]", "layers[1:2]")
    before = jax.tree.map(np.array, items["params"])
    staged = Staging().stage(items, phase=0)["params"]
    assert set(staged["arrays"]) == {"layers", "bias"}
    kernel = staged["arrays"]["layers"]["kernel"]
    np.testing.assert_array_equal(kernel, np.repeat([[5.0], [6.0]], 8, axis=1))
    assert staged["fingerprints"].shape == (2,)
    assert equal(items["params"], before)


def test_another_phase_has_a_place_of_its_own():
    staging, mesh = Staging(), mesh_of()
    staging.stage(items_of(1.0, mesh, "layers[0:1]"), phase=0)
    items = items_of(2.0, mesh, "layers[0:1]", "layers[1:2]")
    staged = staging.stage(items, phase=1)["params"]
    assert staged["arrays"]["layers"]["kernel"].shape == (2, 8)


def test_elsewhere_arrays_are_written_as_they_are(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    items = items_of(1.0, mesh_of(), "layers[0:1]", "layers[1:2]")
    staged = Staging().stage(dict(items), phase=0)["params"]
    assert staged["arrays"] is items["params"]
    assert staged["fingerprints"].shape == (3,)
