"""Processes meet on a mesh, of which each must have a part."""

from dataclasses import dataclass
from unittest import mock

import jax
import numpy as np
import pytest

from jaxlm.core import meeting
from jaxlm.core.errors import UserError
from jaxlm.core.meeting import check_reach, greet, meet
from jaxlm.core.mesh import make_mesh


@dataclass(frozen=True)
class Device:
    process_index: int


def test_a_mesh_that_leaves_a_process_out_is_refused():
    devices = np.array([Device(0), Device(0), Device(1)])
    mesh = mock.Mock(spec=jax.sharding.Mesh, devices=devices, size=3)
    check_reach(mesh, 2)
    with pytest.raises(UserError, match="leave process 2 of 3 without one; raise"):
        check_reach(mesh, 3)


def test_all_sets_of_axes_are_greeted(monkeypatch):
    mesh, _ = make_mesh({"data": 2, "fsdp": 1, "tensor": 2, "context": 2})
    made, sums = [], meeting._sum_along

    def noting(mesh, axes):
        program, ones = sums(mesh, axes)
        made.append((axes, float(program(ones))))
        return program, ones

    monkeypatch.setattr(meeting, "_sum_along", noting)
    greet(mesh)
    assert [total for _, total in made] == [8.0] * 7
    assert (("data",), 8.0) in made and (("data", "tensor", "context"), 8.0) in made


def test_a_process_alone_meets_nobody(monkeypatch):
    monkeypatch.setattr(meeting, "greet", None)
    meet(make_mesh({"data": 8})[0])
