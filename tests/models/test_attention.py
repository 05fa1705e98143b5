"""Attention against a reference in numpy that knows no masks, only lists of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.attention import attention_bias, dense_attention
from jaxlm.models.positions import distances

# Packing and padding at once: two segments, padding inside and at the end; one segment
# after padding; padding alone.
SEGMENTS = np.array(
    [
        [1, 1, 1, 0, 2, 2, 0],
        [0, 0, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    np.int32,
)
REAL = SEGMENTS > 0


def random_inputs(seed=0):
    random = np.random.default_rng(seed)
    shape = (*SEGMENTS.shape, 2, 4)
    return [random.normal(size=shape).astype(np.float32) for _ in range(3)]


def attend(query, key, value, **options):
    return dense_attention(query, key, value, attention_bias(SEGMENTS), **options)


def reference(query, key, value, start=0, sees=lambda behind: True, cap=None):
    """Each token of each segment, one at a time, in f64; padding stays zero.

    Queries are those of the row from ``start`` on; ``sees`` says by how far behind a
    token lies whether it is seen. Heads share keys in the order of the queries'.
    """
    result = np.zeros(query.shape)
    group = query.shape[2] // key.shape[2]
    for row, place in np.argwhere(REAL):
        if not start <= place < start + query.shape[1]:
            continue
        friends = np.flatnonzero(SEGMENTS[row] == SEGMENTS[row, place])
        friends = [friend for friend in friends if sees(place - friend)]
        for head in range(query.shape[2]):
            asks = query[row, place - start, head]
            scores = key[row, friends, head // group].astype(float) @ asks
            scores /= np.sqrt(query.shape[-1])
            if cap is not None:
                scores = cap * np.tanh(scores / cap)
            weights = np.exp(scores) / np.exp(scores).sum()
            result[row, place - start, head] = (
                weights @ value[row, friends, head // group]
            )
    return result


def test_a_token_may_see_its_own_segment_and_nobody_padding():
    bias = attention_bias(jnp.array([[1, 2, 0]]))
    assert bias.shape == (1, 1, 3, 3)
    assert (np.asarray(bias[0, 0]) == 0).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, False],
    ]


def test_attention_equals_a_reference_with_packing_and_padding_at_once():
    inputs = random_inputs()
    found = np.asarray(attend(*inputs))
    # Sums of at most five fp32 products of numbers around 1.
    np.testing.assert_allclose(found[REAL], reference(*inputs)[REAL], atol=2e-6)


SEEN = {
    "all": ({}, lambda behind: True),
    "causal": ({"causal": True}, lambda behind: behind >= 0),
    "window": ({"causal": True, "reach": 2}, lambda behind: 0 <= behind <= 2),
    "itself": ({"causal": True, "reach": 0}, lambda behind: behind == 0),
    "local": ({"reach": 1}, lambda behind: abs(behind) <= 1),
}


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize("seen", SEEN)
def test_heads_that_share_keys_see_what_their_mask_allows(seen, kv_heads, start):
    options, sees = SEEN[seen]
    random = np.random.default_rng(1)
    query, key, value = (
        random.normal(size=(*SEGMENTS.shape, heads, 4)).astype(np.float32)
        for heads in (6, kv_heads, kv_heads)
    )
    # The last tokens alone ask, as they do of a cache, among all.
    query, asking = query[:, start:], SEGMENTS[:, start:]
    apart = distances(jnp.arange(start, 7), jnp.arange(7))
    bias = attention_bias(asking, SEGMENTS, apart=apart, **options)
    assert bias.shape == (3, 1, 7 - start, 7)
    found = np.asarray(dense_attention(query, key, value, bias))
    wanted = reference(query, key, value, start, sees)
    # Sums of at most five fp32 products of numbers around 1.
    np.testing.assert_allclose(found[asking > 0], wanted[asking > 0], atol=2e-6)


def test_a_cap_bounds_scores_before_the_mask():
    query, key, value = random_inputs()
    found = np.asarray(attend(5 * query, key, value, cap=2.0))
    wanted = reference(5 * query, key, value, cap=2.0)
    np.testing.assert_allclose(found[REAL], wanted[REAL], atol=2e-6)
    assert np.abs(wanted - reference(5 * query, key, value))[REAL].max() > 0.1


def test_what_is_relative_is_added_before_the_scale():
    query, key, value = random_inputs()
    relative = np.random.default_rng(2).normal(size=(3, 2, 7, 7)).astype(np.float32)
    found = attend(query, key, value, scale=0.25, relative=relative)
    bias = attention_bias(SEGMENTS) + 0.25 * relative
    wanted = dense_attention(query, key, value, bias, scale=0.25)
    np.testing.assert_allclose(found[REAL], wanted[REAL], atol=2e-6)


def test_no_token_influences_an_earlier_one_where_attention_is_causal():
    def first(key, value):
        bias = attention_bias(SEGMENTS, causal=True)
        return dense_attention(random_inputs()[0], key, value, bias)[1, 3].sum()

    for gradient in jax.grad(first, argnums=(0, 1))(*random_inputs()[1:]):
        seen = (np.abs(gradient[1]).max((1, 2)) > 0).tolist()
        assert seen == [False, False, True, True, False, False, False]


def test_a_padded_position_influences_no_real_output():
    def real_outputs(key, value):
        query = random_inputs()[0]
        return jnp.sum(jnp.where(REAL[:, :, None, None], attend(query, key, value), 0))

    for gradient in jax.grad(real_outputs, argnums=(0, 1))(*random_inputs()[1:]):
        assert (np.asarray(gradient)[~REAL] == 0).all()
        assert (np.abs(np.asarray(gradient)[REAL]).max(axis=-1) > 0).any()


def test_a_token_influences_no_other_segment():
    def second_segment(key, value):
        return attend(random_inputs()[0], key, value)[0, 4:6].sum()

    for gradient in jax.grad(second_segment, argnums=(0, 1))(*random_inputs()[1:]):
        gradient = np.asarray(gradient)
        assert (gradient[0, :4] == 0).all() and (gradient[1:] == 0).all()


def test_rows_of_padding_alone_are_finite():
    def total(*inputs):
        return attend(*inputs).sum()

    outputs = attend(*random_inputs())
    gradients = jax.grad(total, argnums=(0, 1, 2))(*random_inputs())
    assert np.isfinite(outputs).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_rows_of_padding_alone_are_finite_in_bf16():
    inputs = [jnp.asarray(part, jnp.bfloat16) for part in random_inputs()]
    outputs = attend(*inputs)
    assert outputs.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(outputs, np.float32)).all()


def test_scores_are_fp32_where_inputs_are_bf16():
    # Scores near 300 are 2 apart in bf16, and two keys that differ by less would tie.
    segments = np.ones((1, 2), np.int32)
    query = jnp.full((1, 2, 1, 1), 16.0, jnp.bfloat16)
    key = jnp.asarray([18.0, 18.125], jnp.bfloat16).reshape(1, 2, 1, 1)
    value = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    found = dense_attention(query, key, value, attention_bias(segments))
    expected = 1 / (1 + np.exp(-16 * 0.125))
    np.testing.assert_allclose(np.float32(found[0, 0, 0, 0]), expected, rtol=2**-8)


def test_gradients_are_those_of_a_softmax_at_scores_that_would_overflow():
    query, key, value = random_inputs()
    query = 60 * query  # scores up to some 200, of which exp is infinite in fp32
    weight = jnp.where(REAL[:, :, None, None], random_inputs(1)[0], 0)

    def plain(query, key, value):
        scores = jnp.einsum("bshk,bthk->bhst", query, key) / 2
        weights = jax.nn.softmax(scores + attention_bias(SEGMENTS), axis=-1)
        return (weight * jnp.einsum("bhst,bthk->bshk", weights, value)).sum()

    def ours(*inputs):
        return (weight * attend(*inputs)).sum()

    assert float(jnp.einsum("bshk,bthk->bhst", query, key).max() / 2) > 89
    everything = (0, 1, 2)
    found = jax.grad(ours, everything)(query, key, value)
    expected = jax.grad(plain, everything)(query, key, value)
    for one, other in zip(found, expected, strict=True):
        # The weights hang on differences of scores of 200, which fp32 knows to 1e-5.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_dropout_drops_attention_weights_and_keeps_their_mean():
    segments = np.ones((1, 512), np.int32)
    ones = jnp.ones((1, 512, 1, 1))
    found = dense_attention(
        ones,
        ones,
        ones,
        attention_bias(segments),
        rate=0.25,
        dropout_key=jax.random.key(0),
    )
    # 2**18 draws: the standard error of the mean is sqrt(1/3) / 512 = 0.0011.
    assert abs(float(found.mean()) - 1) < 0.005
    assert float(found.std()) > 0.01
