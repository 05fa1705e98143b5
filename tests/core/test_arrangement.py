"""Devices in a mesh: a slice's torus inside, other slices outside."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm.core.arrangement import arrange
from jaxlm.core.errors import UserError


def slices(count, sides=(2, 2, 1)):
    """Fake TPU devices, slice by slice, in an order of no use."""
    made = []
    for number in range(count):
        for coords in np.ndindex(*sides):
            made.append(
                SimpleNamespace(
                    id=len(made),
                    platform="tpu",
                    device_kind="TPU v5p",
                    process_index=number,
                    slice_index=number,
                    coords=coords,
                    core_on_chip=0,
                )
            )
    return made[::-1]


def sizes(**given):
    return {"data": 1, "fsdp": 1, "tensor": 1, "context": 1, **given}


def test_rows_go_between_slices_and_the_rest_stays_inside():
    grid = arrange(slices(2), sizes(data=2, fsdp=2, tensor=2))
    for place in range(2):
        inside = {device.slice_index for device in grid[place].flat}
        assert len(inside) == 1
    assert len({device.id for device in grid.flat}) == 8


def test_where_data_does_not_divide_fsdp_spans_the_slices():
    grid = arrange(slices(2), sizes(fsdp=8))
    order = [device.slice_index for device in grid.flat]
    assert order in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)


def test_slices_that_no_axis_of_rows_spans_are_refused():
    with pytest.raises(UserError, match="neither data=1 nor fsdp=1 divides by the 2"):
        arrange(slices(2), sizes(tensor=8))


def test_an_axis_of_no_whole_sides_is_refused_with_the_sides():
    with pytest.raises(UserError, match=r"tensor=16 .*4x4x4: each axis"):
        arrange(slices(1, (4, 4, 4)), sizes(fsdp=2, data=2, tensor=16))


def test_other_devices_stand_in_their_order():
    devices = [SimpleNamespace(platform="cpu", device_kind="cpu", id=n) for n in "abcd"]
    grid = arrange(devices, {"data": 2, "fsdp": 2})
    assert [device.id for device in grid.flat] == [*"abcd"]
