"""Which rows of a batch are a process's own, and that each device holds its own."""

from unittest import mock

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.mesh import make_mesh
from jaxlm.core.rows import Rows

AXES = ("data", "fsdp", "tensor", "context")
ROWS = PartitionSpec(("data", "fsdp"))


def rows(sizes, count, held):
    """The rows of one process, to which jax says that it holds these devices."""
    mesh, _ = make_mesh(dict(zip(AXES, sizes, strict=True)))
    sharding = NamedSharding(mesh, ROWS)
    own = {mesh.devices.flat[number] for number in held}

    def indices(shape):
        whole = sharding.devices_indices_map(shape)
        return {device: whole[device] for device in own}

    fake = mock.Mock(wraps=sharding, is_fully_addressable=False)
    fake.addressable_devices_indices_map = indices
    return Rows(fake, count).own


@pytest.mark.parametrize(
    ("sizes", "held", "expected"),
    [
        ((8, 1, 1, 1), range(4), [0, 1, 2, 3]),
        ((8, 1, 1, 1), range(4, 8), [4, 5, 6, 7]),
        ((2, 4, 1, 1), range(4, 8), [4, 5, 6, 7]),
        ((2, 2, 2, 1), range(4), [0, 1, 2, 3]),
        # Devices that are not together, as of a hybrid mesh.
        ((8, 1, 1, 1), (0, 1, 6, 7), [0, 1, 6, 7]),
        # Processes that hold the same rows, of which each has half a model.
        ((1, 1, 8, 1), range(4), [*range(8)]),
        ((1, 1, 8, 1), range(4, 8), [*range(8)]),
        ((2, 1, 2, 2), range(2, 6), [*range(8)]),
        # Unlike numbers of rows: four devices here, two there.
        ((6, 1, 1, 1), range(4), [0, 1, 2, 3]),
        ((6, 1, 1, 1), range(4, 6), [4, 5]),
    ],
)
def test_the_rows_of_a_process_follow_from_its_devices(sizes, held, expected):
    count = 6 if 6 in sizes else 8
    assert rows(sizes, count, held) == tuple(expected)


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 4, 2)])
def test_rows_that_are_placed_are_those_given(sizes):
    mesh, _ = make_mesh(dict(zip(AXES, sizes, strict=True)))
    mine = Rows(NamedSharding(mesh, ROWS), 8)
    assert mine.own == tuple(range(8))
    values = {"tokens": np.arange(24).reshape(8, 3), "ids": np.arange(8)}
    placed = mine.place(values)
    for name, value in values.items():
        assert placed[name].sharding.is_equivalent_to(mine.sharding, value.ndim)
        assert np.array_equal(placed[name], value)


def test_rows_of_several_processes_are_cut_for_each_device():
    """By the way of several processes, here of one that holds all devices."""
    mesh, _ = make_mesh({"data": 4, "tensor": 2})
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    mine = Rows(sharding, 8)
    values = {"tokens": np.arange(24).reshape(8, 3)}
    with mock.patch.object(
        NamedSharding, "is_fully_addressable", new_callable=mock.PropertyMock
    ) as whole:
        whole.return_value = False
        placed = mine.place(values)["tokens"]
    assert np.array_equal(placed, values["tokens"])
    assert placed.sharding == sharding
