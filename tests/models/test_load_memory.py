"""Loading in parts: what each device reads, and the memory of real processes."""

import sys

import jax
import numpy as np
import pytest

from jaxlm.core.mesh import Rules, make_mesh
from jaxlm.core.safetensors import WeightFiles
from jaxlm.models.pretrained import load
from tools import load_memory

SPLIT = Rules.of({"width": ("fsdp",)})


@pytest.fixture
def reads(monkeypatch):
    """The names and the sizes of all that is read."""
    found, read = [], WeightFiles.read

    def noted(self, name, slice=None):
        value = read(self, name, slice)
        found.append((name, value.size))
        return value

    monkeypatch.setattr(WeightFiles, "read", noted)
    return found


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("fsdp", [8, 2])
def test_every_number_is_read_once_a_layer_of_a_part_at_a_time(
    tmp_path, reads, scan, fsdp
):
    """With fsdp=2 each part lies on four devices, and is read for the first of them."""
    load_memory.make(tmp_path, 1, 64)
    shapes = load_memory.shapes(1, 64)
    mesh, _ = make_mesh({"data": 8 // fsdp, "fsdp": fsdp})
    model = load(str(tmp_path), mesh=mesh, rules=SPLIT, scan=scan)
    sizes = dict.fromkeys(name for name, _ in reads)
    for name in sizes:
        sizes[name] = sum(size for each, size in reads if each == name)
    wanted = load_memory.shapes(model.config.layers, 64)
    assert sizes == {name: int(np.prod(shape)) for name, shape in wanted.items()}
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    assert max(size for _, size in reads) == largest // fsdp
    whole = load(str(tmp_path), scan=scan)
    for one, other in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(whole.params), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_processes_grow_by_at_most_a_fifth_more_than_they_hold(tmp_path):
    assert load_memory.make(tmp_path, 2000, 2048) >= 2e9
    for scan in (False, True):
        for each in load_memory.measure(tmp_path, scan):
            assert each["devices"] == 8
            assert each["growth"] <= 1.2 * each["held"], each
