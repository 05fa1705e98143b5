"""Linear layers, on one device and on several, and products in other layouts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.core.mesh import NO_RULES, Rules, make_mesh
from jaxlm.models.layers import (
    ACTIVATIONS,
    FEW_ROWS,
    LayerNorm,
    Linear,
    RmsNorm,
    Transposed,
    gelu,
    gelu_tanh,
    matmul,
    scores_of,
)

RULES = Rules.of({"batch": ["data"], "sequence": ["context"]})
LAYOUTS = {
    "rows": {"data": 8, "context": 1},
    "tokens": {"data": 1, "context": 8},
    "both": {"data": 2, "context": 4},
}
X = np.random.default_rng(0).normal(size=(8, 16, 4)).astype(np.float32)


def gradient(rules):
    """What gives the gradients of a linear layer by its params and by x."""
    layer = Linear(
        (4, 6),
        ("width", "mlp"),
        initializer=jax.nn.initializers.normal(1.0),
        rngs=nnx.Rngs(0),
        rules=rules,
    )
    graph, params = nnx.split(layer)

    def loss(params, x):
        return (nnx.merge(graph, params)(x) ** 2).sum()

    return jax.grad(loss, argnums=(0, 1)), nnx.to_pure_dict(params)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_and_tokens_stay_where_they_are(layout):
    """Neither is gathered to be flattened: a gradient's only message is its sum."""
    expected = gradient(NO_RULES)
    expected = expected[0](expected[1], X)
    mesh, _ = make_mesh(LAYOUTS[layout])
    function, params = gradient(RULES)
    placed = RULES.sharding(mesh, ("batch", "sequence", "width"), X.shape, "x")
    with jax.set_mesh(mesh):
        x = jax.device_put(X, placed)
        program = jax.jit(function, out_shardings=(None, placed)).lower(params, x)
        program = program.compile()
        found = program(params, x)
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    messages = re.findall(rf" ({kinds})(?:-start)?\(", program.as_text())
    assert set(messages) == {"all-reduce"}
    # Sums of 128 products in fp32.
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-3),
        found,
        expected,
    )


def test_rows_are_flattened_where_no_device_splits_a_sequence():
    mesh, _ = make_mesh(LAYOUTS["rows"])
    function, params = gradient(RULES)
    for sizes, shape in (("rows", (128, 4)), ("tokens", (8, 16, 4))):
        with jax.set_mesh(make_mesh(LAYOUTS[sizes])[0]):
            jaxpr = str(jax.make_jaxpr(function)(params, X))
        products = [line for line in jaxpr.splitlines() if "dot_general" in line]
        assert products
        text = ",".join(map(str, shape[:-1]))
        assert all(re.search(rf":f32\[({text},\d|\d,\d)\]", line) for line in products)


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_transposed_kernel_gives_the_same_product_however_many_rows(rows, dtype):
    random = np.random.default_rng(rows)
    x = jnp.asarray(random.normal(size=(rows, 1, 12)), dtype)
    kernel = jnp.asarray(random.normal(size=(12, 7)), jnp.float32)

    def product(kernel, turned):
        kernel = Transposed(kernel.T) if turned else kernel
        y = matmul(x, kernel, jnp.float32)
        return jnp.square(y).sum(), y

    run = jax.jit(jax.grad(product, has_aux=True), static_argnums=1)
    (gradient, found), (expected, plain) = run(kernel, True), run(kernel, False)
    assert found.shape == (rows, 1, 7) and found.dtype == jnp.float32
    assert matmul(x, Transposed(kernel.T)).dtype == dtype
    # fp32 sums of twelve products in another order.
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-4)


PLAIN = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": jax.nn.silu}


@pytest.mark.parametrize("name", PLAIN)
def test_an_activation_keeps_its_argument_alone(name):
    x = jnp.linspace(-6.0, 6.0, 101, dtype=jnp.bfloat16)
    y, pull = jax.vjp(ACTIVATIONS[name], x)
    (kept,) = jax.tree.leaves(pull)
    np.testing.assert_array_equal(kept, x)
    wanted, pull_plain = jax.vjp(PLAIN[name], x)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(pull(y)[0], pull_plain(y)[0])


@pytest.mark.parametrize("kind", [LayerNorm, RmsNorm])
def test_a_norm_keeps_what_it_is_given_in_the_dtype_it_has(kind):
    graph, params = nnx.split(kind(16, 1e-6))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 16)), jnp.bfloat16)
    _, pull = jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, x)
    whole = [leaf for leaf in jax.tree.leaves(pull) if leaf.shape == x.shape]
    assert [leaf.dtype for leaf in whole] == [jnp.bfloat16]


def test_logits_are_of_fp32_and_their_products_backward_of_what_they_are_made_of():
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 5, 8)), jnp.bfloat16)
    table = jnp.asarray(random.normal(size=(11, 8)), jnp.bfloat16)
    weights = jnp.asarray(random.normal(size=(2, 5, 11)), jnp.float32)

    def loss(x, table):
        logits = scores_of(x, table)
        assert logits.dtype == jnp.float32
        return (logits * weights).sum()

    program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, table)
    products = [each for each in program.eqns if each.primitive.name == "dot_general"]
    read = {value.aval.dtype for each in products for value in each.invars}
    assert len(products) == 2 and read == {jnp.dtype(jnp.bfloat16)}
    found = jax.grad(loss, argnums=(0, 1))(x, table)
    full = [each.astype(jnp.float32) for each in (x, table)]
    for one, other in zip(found, jax.grad(loss, argnums=(0, 1))(*full), strict=True):
        assert one.dtype == jnp.bfloat16
        # Sums of at most 11 products of numbers that were rounded to 8 bits.
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=0.05, atol=0.1)
