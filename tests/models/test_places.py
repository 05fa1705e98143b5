"""Places of rows: what is taken there, what is put back, and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxlm.models.places import places_of, put_back, taken

LENGTH = 16


@pytest.fixture(scope="module")
def chosen():
    rows = np.random.default_rng(0).random((5, LENGTH)) < 0.3
    rows[0], rows[1] = False, True  # none, and more than there is room for
    return jnp.asarray(rows)


@pytest.fixture(scope="module")
def places(chosen):
    return places_of(chosen, 8)


def test_places_ascend_and_end_in_none(chosen, places):
    for row, found in zip(np.asarray(chosen), np.asarray(places), strict=True):
        first = np.flatnonzero(row)[:8]
        assert found.tolist() == [*first, *[LENGTH] * (8 - len(first))]


@pytest.mark.parametrize("inner", [(), (3,)])
def test_what_is_taken_is_put_back_where_it_was(chosen, places, inner):
    x = jax.random.normal(jax.random.key(0), (5, LENGTH, *inner))
    among = np.asarray(chosen & (jnp.cumsum(chosen, axis=1) <= 8))
    wanted = np.where(among.reshape(*among.shape, *[1] * len(inner)), x, 0)
    few = taken(x, places, LENGTH)
    assert few.shape == (5, 8, *inner)
    assert (np.asarray(put_back(few, places, LENGTH)) == wanted).all()


def test_gradients_are_exact(places):
    x = jax.random.normal(jax.random.key(0), (5, LENGTH, 3))
    few = taken(x, places, LENGTH)
    check_grads(lambda x: taken(x, places, LENGTH), (x,), 2, modes=["rev"])
    check_grads(lambda x: put_back(x, places, LENGTH), (few,), 2, modes=["rev"])


def test_no_gradient_is_a_scatter(places):
    """GPUs sum those in any order, and no two runs are equal bit for bit."""

    def loss(x):
        return jnp.square(taken(x, places, LENGTH)).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones((5, LENGTH, 3))))
    assert "gather" in text and "scatter" not in text
