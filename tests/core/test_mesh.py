"""Rules from logical axes to mesh axes, and the mesh itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxlm.core.errors import UserError
from jaxlm.core.mesh import NO_RULES, Rules, make_mesh

RULES = Rules.of(
    {
        "batch": ["data", "fsdp"],
        "width": ["fsdp", "tensor"],
        "mlp": ["tensor"],
        "vocab": ["tensor"],
        "layers": [],
    }
)
SIZES = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(SIZES)[0]


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("width", "mlp"), (("fsdp", "tensor"), None)),
        (("mlp", "width"), ("tensor", "fsdp")),
        (("batch", "sequence", "width"), (("data", "fsdp"), None, "tensor")),
        (("layers", None, "labels"), (None, None, None)),
    ],
)
def test_a_mesh_axis_is_used_once_by_the_first_that_asks(axes, expected):
    assert RULES.partition(axes) == PartitionSpec(*expected)


def test_rules_of_one_table_are_one_static_value():
    again = Rules.of(dict(RULES.table))
    assert again == RULES and hash(again) == hash(RULES)
    assert RULES != NO_RULES


def test_every_leaf_of_a_tree_has_the_sharding_of_its_axes(mesh):
    axes = {"table": ("vocab", "width"), "layers": {"bias": ("layers", "mlp")}}
    shapes = {
        "table": jax.ShapeDtypeStruct((6, 4), jnp.float32),
        "layers": {"bias": jax.ShapeDtypeStruct((3, 4), jnp.float32)},
    }
    found = RULES.shardings(mesh, axes, shapes)
    assert found["table"].spec == PartitionSpec("tensor", "fsdp")
    assert found["layers"]["bias"].spec == PartitionSpec(None, "tensor")


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (
            ("vocab", None),
            (7, 4),
            "config.mesh.tensor: 2 devices cannot split vocab=7 of head/table evenly;"
            " a divisor of 7, or another config.mesh.rules.vocab"
            " or config.model.vocab_multiple=2",
        ),
        (
            (None, "width"),
            (7, 6),
            "config.mesh.fsdp x config.mesh.tensor: 4 devices cannot split width=6 of"
            " head/table evenly; a divisor of 6, or another config.mesh.rules.width",
        ),
    ],
)
def test_what_does_not_divide_is_told_the_sizes_and_the_rule(
    mesh, axes, shape, message
):
    with pytest.raises(UserError) as caught:
        RULES.shardings(
            mesh,
            {"head": {"table": axes}},
            {"head": {"table": jax.ShapeDtypeStruct(shape, jnp.float32)}},
        )
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("rule", "rows", "accumulation", "expected"),
    [
        (("data", "fsdp"), 5, 1, 8),
        (("data", "fsdp"), 9, 2, 16),
        (("tensor",), 5, 1, 6),
        ((), 5, 1, 5),
        ((), 5, 3, 6),
    ],
)
def test_rows_are_rounded_up_to_what_their_rule_splits(
    mesh, rule, rows, accumulation, expected
):
    rules = Rules.of({"batch": rule})
    assert rules.rows_on_mesh(mesh, rows, accumulation) == expected


def test_without_a_mesh_or_without_rules_nothing_is_constrained(mesh):
    x = jnp.zeros((4, 4))
    assert RULES.constrain(x, ("batch", "width")) is x
    with jax.set_mesh(mesh):
        assert NO_RULES.constrain(x, ("batch", "width")) is x
        assert NO_RULES.gather(x, ("batch", "width")) is x


def test_a_kernel_split_by_the_axes_of_the_rows_gives_the_right_product(mesh):
    # Without Rules.gather, XLA of jaxlib 0.10 gives sums that are wrong by their size.
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 8, 32)).astype(np.float32)
    kernel = random.normal(size=(32, 16)).astype(np.float32)
    axes = ("mlp", "width")

    @jax.jit
    def product(x, kernel):
        x = RULES.constrain(x, ("batch", "sequence", "mlp"))
        y = jnp.matmul(x, RULES.gather(kernel, axes))
        return RULES.constrain(y, ("batch", "sequence", "width"))

    placed = jax.device_put(kernel, RULES.sharding(mesh, axes, kernel.shape, "kernel"))
    with jax.set_mesh(mesh):
        found = product(jax.device_put(x, RULES.batch_sharding(mesh)), placed)
    # Sums of 32 products of normals in fp32.
    np.testing.assert_allclose(found, x @ kernel, atol=1e-4)


def test_devices_that_are_left_over_are_told(mesh):
    _, notice = make_mesh({"data": 3, "tensor": 2})
    assert notice == "the mesh uses the first 6 of 8 devices (data=3 x tensor=2)"
    assert make_mesh(SIZES)[1] is None


def test_one_axis_may_take_the_rest():
    mesh, _ = make_mesh({"data": -1, "tensor": 2})
    assert dict(mesh.shape) == {"data": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 16}, "data=16 needs 16 devices and there are 8; lower a size or"),
        (
            {"data": -1, "tensor": 3},
            "a multiple of 3 devices and there are 8; lower a size$",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_the_machine_is_refused(sizes, message):
    with pytest.raises(UserError, match="config.mesh: .*" + message) as problem:
        make_mesh(sizes)
    assert ("set one to -1" in str(problem.value)) == (-1 not in sizes.values())


def test_a_divisor_is_named_where_one_axis_could_have_it():
    wide = make_mesh({"data": 2, "fsdp": 1, "tensor": 4, "context": 1})[0]
    with pytest.raises(UserError, match="a divisor of 6 such as 2, or another"):
        RULES.sharding(wide, ("mlp",), (6,), "up")
