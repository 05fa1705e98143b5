"""Fingerprints: the same on every layout, another for any changed bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.core.mesh import make_mesh
from jaxlm.train.fingerprint import fingerprints

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]
LAYOUTS = [
    PartitionSpec(),
    PartitionSpec("data"),
    PartitionSpec(None, "data"),
    PartitionSpec("tensor", "data"),
    PartitionSpec(("data", "tensor")),
]
compiled = jax.jit(fingerprints)


def fingerprint(array):
    (found,) = compiled(array)
    return int(found)


def some(dtype, shape=(8, 16)):
    values = np.random.default_rng(0).normal(size=shape) * 50
    return np.asarray(jnp.asarray(values).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_layout_over_eight_devices_changes_it(dtype):
    mesh, _ = make_mesh({"data": 4, "tensor": 2})
    array = some(dtype)
    found = {
        fingerprint(jax.device_put(array, NamedSharding(mesh, layout)))
        for layout in LAYOUTS
    }
    assert found == {fingerprint(jnp.asarray(array))}


@pytest.mark.parametrize("dtype", [each for each in DTYPES if each != "bool"])
def test_any_flipped_bit_changes_it(dtype):
    array = some(dtype, (3, 4))
    before = fingerprint(jnp.asarray(array))
    kind = np.dtype(f"u{array.dtype.itemsize}")
    for place in range(array.size):
        for bit in range(8 * array.dtype.itemsize):
            bits = array.copy().view(kind)
            bits.reshape(-1)[place] ^= kind.type(1 << bit)
            assert fingerprint(jnp.asarray(bits.view(array.dtype))) != before


def test_any_flipped_truth_value_changes_it():
    array = some("bool", (3, 4))
    before = fingerprint(jnp.asarray(array))
    for place in np.ndindex(array.shape):
        other = array.copy()
        other[place] ^= True
        assert fingerprint(jnp.asarray(other)) != before


def test_swapped_values_change_it():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert fingerprint(array) != fingerprint(array[::-1].copy())


def test_scalars_and_empty_arrays_have_one_in_the_order_of_leaves():
    found = compiled({"scalar": jnp.int32(7), "empty": jnp.zeros((0, 3))})
    assert found.tolist() == [0, 7]


def test_nan_is_a_value_like_others():
    nan = jnp.full(3, jnp.nan)
    assert fingerprint(nan) == fingerprint(nan)
