"""Where a token stands: rotations, T5's buckets and DeBERTa's rows, by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import Buckets, Disentangled, Rope
from jaxlm.models.families.rope import read_rope
from jaxlm.models.positions import bucket, distances, rotate, rotation, table_row

ROPE = Rope((1.0, 0.3, 0.01))


def turned(x, positions, rope=ROPE):
    """``x [S, K]``, one head of one row."""
    places = jnp.asarray(positions, jnp.int32)[None]
    angles = rotation(rope, places)
    return np.asarray(rotate(jnp.asarray(x, jnp.float32)[None, :, None], angles))[
        0, :, 0
    ]


def vectors(count, size=8):
    return np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)


def test_a_pair_is_turned_by_its_frequency_times_the_position():
    x = vectors(1, 6)
    found = turned(x, [5])[0]
    pairs = x[0, :3].astype(complex) + 1j * x[0, 3:]
    wanted = pairs * np.exp(1j * 5 * np.array(ROPE.frequencies))
    # fp32 of angles up to 5 and of numbers around 1.
    np.testing.assert_allclose(found[:3], wanted.real, atol=1e-6)
    np.testing.assert_allclose(found[3:], wanted.imag, atol=1e-6)


def test_scores_hang_on_distances_alone():
    x = vectors(7)
    near, far = (turned(x, np.arange(7) + shift) for shift in (0, 1000))
    scores = near @ near.T
    # Angles near 1000 are known to 6e-5 in fp32, for vectors of norm 3.
    np.testing.assert_allclose(far @ far.T, scores, atol=2e-3)
    assert np.abs(scores - x @ x.T).max() > 0.1


def test_what_is_beyond_the_rotated_dimensions_stays():
    x = vectors(4)
    assert (turned(x, [0, 1, 2, 3])[:, 6:] == x[:, 6:]).all()
    assert (turned(x, [0, 0, 0, 0]) == x).all()


def test_a_magnitude_multiplies_what_is_rotated():
    x = vectors(3, 6)
    found = turned(x, [0, 1, 2], Rope(ROPE.frequencies, 1.5))
    np.testing.assert_allclose(found, 1.5 * turned(x, [0, 1, 2]), rtol=1e-6, atol=1e-6)


def test_vectors_in_bf16_are_turned_in_fp32():
    x = jnp.asarray(vectors(2), jnp.bfloat16)[None, :, None]
    found = rotate(x, rotation(ROPE, jnp.array([[900, 901]])))
    assert found.dtype == jnp.bfloat16
    exact = turned(np.asarray(x, np.float32)[0, :, 0], [900, 901])
    np.testing.assert_allclose(
        np.asarray(found, np.float32)[0, :, 0], exact, rtol=2**-8, atol=2**-12
    )


def bucket_by_hand(distance, count, most, causal):
    """One distance, as section 2.1 of arXiv:1910.10683 has it."""
    offset = 0
    if causal:
        distance = max(distance, 0)
    else:
        count //= 2
        offset = count if distance < 0 else 0
        distance = abs(distance)
    exact = count // 2
    if distance < exact:
        return offset + distance
    share = math.log(distance / exact) / math.log(most / exact)
    return offset + min(exact + int(share * (count - exact)), count - 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("count", "most"), [(32, 128), (8, 15), (10, 21)])
def test_buckets_are_those_of_a_distance_at_a_time(causal, count, most):
    apart = np.arange(-150, 151)
    found = np.asarray(bucket(jnp.asarray(apart), Buckets(count, most), causal))
    wanted = [bucket_by_hand(each, count, most, causal) for each in apart.tolist()]
    edges = np.flatnonzero(found != wanted)
    # On an edge, such as 32 of 8 to 128, fp32 and f64 may round to either side.
    assert len(edges) <= 4 and (np.abs(found - wanted)[edges] == 1).all()
    assert set(found) <= set(range(count)) and len(set(found)) >= count - 1


def row_by_hand(distance, span, buckets, most):
    """One distance, as DeBERTa's second version has it."""
    middle = buckets // 2
    if buckets and abs(distance) > middle:
        share = math.log(abs(distance) / middle) / math.log((most - 1) / middle)
        far = middle + math.ceil(round(share * (middle - 1), 9))
        distance = int(math.copysign(far, distance))
    return min(max(distance + span, 0), 2 * span - 1)


@pytest.mark.parametrize(
    ("span", "buckets", "most"), [(8, 8, 41), (256, 256, 512), (11, 0, 11)]
)
def test_rows_of_the_table_are_those_of_a_distance_at_a_time(span, buckets, most):
    kind = Disentangled(span, buckets, most, True, True, True, True)
    apart = np.arange(-600, 601)
    found = np.asarray(table_row(jnp.asarray(apart), kind))
    wanted = [row_by_hand(each, span, buckets, most) for each in apart.tolist()]
    edges = np.flatnonzero(found != wanted)
    # On an edge, which distances of -600 to 600 seldom hit, fp32 may round up.
    assert len(edges) <= 4 and (np.abs(found - wanted)[edges] == 1).all()
    assert (np.diff(found) >= 0).all()
    assert found.min() == 0 and found.max() == 2 * span - 1


def test_a_distance_is_how_far_a_key_lies_behind():
    assert distances(jnp.arange(2, 4), jnp.arange(4)).tolist() == [
        [2, 1, 0, -1],
        [3, 2, 1, 0],
    ]


def test_the_base_may_stand_at_three_places_and_for_each_kind_of_layer():
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    each = {"rope_parameters": {"full_attention": newer["rope_parameters"]}}
    wanted = (1.0, pytest.approx(0.1))
    assert read_rope({"rope_theta": 100.0}, 4).frequencies == wanted
    assert read_rope(newer, 4).frequencies == wanted
    assert read_rope(each, 4, layer_type="full_attention").frequencies == wanted
    assert read_rope({}, 4, theta=100.0).frequencies == wanted


def test_linear_scaling_divides_every_frequency():
    scaling = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    plain, scaled = read_rope({}, 8), read_rope(scaling, 8)
    np.testing.assert_allclose(scaled.frequencies, np.array(plain.frequencies) / 4)


def test_llama3_scaling_keeps_fast_turns_and_slows_slow_ones():
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = np.array(read_rope({"rope_theta": 5e5}, 128).frequencies)
    found = np.array(
        read_rope({"rope_theta": 5e5, "rope_scaling": scaling}, 128).frequencies
    )
    waves = 2 * np.pi / plain
    fast, slow = waves < 8192 / 4, waves > 8192 / 1
    np.testing.assert_allclose(found[fast], plain[fast], rtol=1e-6)
    np.testing.assert_allclose(found[slow], plain[slow] / 8, rtol=1e-6)
    between = found[~fast & ~slow] / plain[~fast & ~slow]
    assert len(between) and ((between > 1 / 8) & (between < 1)).all()


def test_yarn_grows_what_is_rotated_with_the_logarithm_of_its_factor():
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    assert read_rope({"rope_scaling": scaling}, 8).magnitude == pytest.approx(
        0.1 * math.log(4) + 1
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rope_type": "dynamic"}, "rope_type='dynamic' is not supported; allowed: de"),
        ({"rope_type": "linear"}, "factor is missing"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor is missing"),
        ({"rope_type": "yarn"}, "original_max_position_embeddings is missing"),
        ({"rope_theta": 0.5}, "rope_theta=0.5 is not allowed"),
    ],
)
def test_a_scaling_that_we_lack_or_that_lacks_numbers_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        read_rope({"rope_parameters": options}, 8)
