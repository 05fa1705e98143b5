"""What heads read from hidden states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.functional import functional
from jaxlm.models.heads import Head
from jaxlm.models.transformer import Transformer, pool

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [0, 1, 0, 0, 0, 0, 0]], np.int32)
BATCH = {"segments": SEGMENTS, "starts": np.zeros((2, 3), np.int32)}


def test_segment_mean_equals_numpy_s():
    hidden = np.random.default_rng(0).normal(size=(2, 7, 4)).astype(np.float32)
    found = pool(jnp.asarray(hidden), BATCH, "mean")
    expected = np.zeros((2, 3, 4))
    for row, place in [(0, 0), (0, 1), (1, 0)]:
        expected[row, place] = hidden[row][SEGMENTS[row] == place + 1].mean(axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_absent_example_has_a_mean_of_zero():
    found = pool(jnp.ones((2, 7, 4)), BATCH, "mean")
    assert (np.asarray(found)[[0, 1, 1], [2, 1, 2]] == 0).all()


def test_a_bf16_mean_counts_beyond_256_tokens():
    batch = {"segments": np.ones((1, 301), np.int32), "starts": np.zeros((1, 1))}
    found = pool(jnp.ones((1, 301, 2), jnp.bfloat16), batch, "mean")
    assert found.dtype == jnp.bfloat16
    assert (np.asarray(found, np.float32) == 1).all()


@pytest.mark.parametrize("reads", ["hidden", "pooled", "mean"])
def test_logits_are_fp32_of_the_shape_that_is_read(reads, tiny_config, make_batch):
    rows = [[(range(1, 6), 0), (range(7, 9), 0)], [(range(3, 9), 0)]]
    batch = make_batch(rows, 8)
    model = functional(
        lambda rngs: Head(
            Transformer(tiny_config, rngs, dtype=jnp.bfloat16),
            reads,
            3,
            rngs,
        )
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(model.apply, params, batch)["logits"]
    assert logits.shape == ((2, 8, 3) if reads == "hidden" else (2, 2, 3))
    assert logits.dtype == jnp.float32
