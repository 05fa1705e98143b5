"""One Transformer, however it runs: scanned, unrolled, recomputed, cut into stacks."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.grouping import regroup
from jaxlm.core.mesh import Rules, make_mesh
from jaxlm.core.trees import flatten
from jaxlm.models.architecture import Dropout
from jaxlm.models.functional import functional
from jaxlm.models.heads import Head
from jaxlm.models.layers import dropout, gelu, hashed_bits
from jaxlm.models.stacks import rematerialise
from jaxlm.models.transformer import Transformer

KEY = jax.random.key(7)
# Another order of operations in fp32: rounding of 1e-7, some dozen operations deep.
# Sums over tokens of the gradients differ by up to 5e-6 (jax 0.12 on Python 3.13).
TOLERANCE = {"rtol": 2e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def batch(make_batch):
    random = np.random.default_rng(0)
    rows = [[(random.integers(1, 50, n), n % 2) for n in row] for row in [(5, 3), (7,)]]
    return make_batch(rows, 9)


@pytest.fixture(scope="module")
def params(tiny_config):
    return jax.jit(functional(partial(Transformer, tiny_config)).init)(
        jax.random.key(1)
    )


@pytest.fixture(scope="module")
def run(batch):
    """Outputs and gradients, dropout on unless the key is None."""

    @cache
    def compiled(config, **options):
        model = functional(partial(Transformer, config, **options))

        def loss(params, key):
            outputs = model.apply(params, batch, key)
            real = batch["mask"][:, :, None]
            hidden = jnp.where(real, jnp.sin(outputs["hidden"].astype(jnp.float32)), 0)
            return hidden.sum() + outputs["pooled"].astype(jnp.float32).sum(), outputs

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    def made(config, params, key=KEY, **options):
        (_, outputs), gradients = compiled(config, **options)(params, key)
        return outputs, gradients

    return made


@pytest.fixture(scope="module")
def forward(batch):
    """The deterministic outputs; other fields of the batch may be given."""

    @cache
    def compiled(config, **options):
        return jax.jit(functional(partial(Transformer, config, **options)).apply)

    def made(config, params, changes=(), key=None, **options):
        apply = compiled(config, **options)
        return apply(params, {**batch, **dict(changes)}, key)

    return made


@pytest.fixture(scope="module")
def scanned(run, tiny_config, params):
    return run(tiny_config, params)


def check_equal(found, expected):
    for name, value in flatten(expected).items():
        np.testing.assert_allclose(
            flatten(found)[name], value, err_msg=name, **TOLERANCE
        )


@pytest.mark.parametrize(
    ("splits", "remat"),
    [((), "block"), ((), "dots"), ((1,), "none"), ((1,), "block"), ((1,), "dots")],
)
def test_layers_unrolled_or_recomputed_equal_scanned_ones_with_dropout_on(
    run, tiny_config, params, scanned, splits, remat
):
    config = replace(tiny_config, splits=splits)
    outputs, gradients = run(config, grouped(params, config), remat=remat)
    check_equal(outputs, scanned[0])
    check_equal(grouped(gradients, tiny_config), scanned[1])


def test_an_unknown_rematerialisation_is_refused():
    with pytest.raises(ValueError, match="allowed: none, block, dots"):
        rematerialise(lambda x: x, "full")


def grouped(params, config):
    """Parameters in the stacks of a config."""
    return regroup(params, flatten(functional(partial(Transformer, config)).shapes))


def test_every_leaf_of_a_stack_names_its_axes(tiny_config):
    model = functional(partial(Transformer, replace(tiny_config, splits=(1,))))
    axes, shapes = flatten(model.axes), flatten(model.shapes)
    assert axes.keys() == shapes.keys()
    for name, leaf in shapes.items():
        assert len(axes[name]) == len(leaf.shape), name
        assert (axes[name][0] == "layers") == name.startswith("layers"), name


COLLECT = ("hidden_states", "attention")


@pytest.fixture(scope="module")
def collected(batch):
    """All outputs, what is collected among them, dropout on unless the key is None."""

    def made(config, params, key=KEY, changes=(), **options):
        model = functional(partial(Transformer, config, **options))
        apply = jax.jit(partial(model.apply, collect=COLLECT))
        return apply(params, {**batch, **dict(changes)}, key)

    return made


@pytest.fixture(scope="module")
def collected_scanned(collected, tiny_config, params):
    return collected(tiny_config, params)


@pytest.mark.parametrize(
    ("splits", "options"),
    [
        ((), {"remat": "block"}),
        ((), {"remat": "dots"}),
        ((1,), {"remat": "block"}),
        ((1,), {}),
    ],
)
def test_what_is_collected_is_the_same_however_layers_run(
    collected, collected_scanned, tiny_config, params, splits, options
):
    config = replace(tiny_config, splits=splits)
    cut = grouped(params, config)
    check_equal(collected(config, cut, **options), collected_scanned)


def test_hidden_states_end_with_the_output_and_are_of_every_layer(
    collected_scanned, tiny_config, batch
):
    states = collected_scanned["hidden_states"]
    assert states.shape == (*batch["tokens"].shape[:1], 3, 9, tiny_config.width)
    assert (states[:, -1] == collected_scanned["hidden"]).all()
    assert not np.allclose(states[:, 0], states[:, 1])


def test_attention_is_in_fp32_of_a_token_s_own_segment_and_before_dropout(
    collected, tiny_config, params, batch
):
    found = collected(tiny_config, params, dtype=jnp.bfloat16)["attention"]
    assert found.dtype == jnp.float32
    assert found.shape == (2, tiny_config.layers, tiny_config.heads, 9, 9)
    segments = batch["segments"]
    same = segments[:, :, None] == segments[:, None, :]
    real = np.broadcast_to(batch["mask"][:, :, None], same.shape)
    each = np.moveaxis(np.asarray(found), 0, 2)
    assert (each[:, :, real & ~same] == 0).all()
    np.testing.assert_allclose(each.sum(-1)[:, :, batch["mask"]], 1, rtol=1e-6)


def test_nothing_is_returned_that_was_not_asked_for(forward, tiny_config, params):
    assert set(forward(tiny_config, params)) == {"hidden", "pooled"}


def test_one_name_may_be_collected_alone_and_beside_a_head(tiny_config, batch):
    model = functional(
        lambda rngs: Head(Transformer(tiny_config, rngs), "hidden", 3, rngs)
    )
    params = jax.eval_shape(model.init, KEY)
    found = jax.eval_shape(
        partial(model.apply, collect=("attention",)), params, batch, KEY
    )
    assert set(found) == {"hidden", "pooled", "logits", "attention"}


@pytest.mark.parametrize("collect", [("hidden",), ("attention", "atention"), "logits"])
def test_an_unknown_name_to_collect_is_refused(tiny_config, batch, collect):
    model = functional(partial(Transformer, tiny_config))
    params = jax.eval_shape(model.init, KEY)
    with pytest.raises(ValueError, match="any of: hidden_states, attention"):
        jax.eval_shape(partial(model.apply, collect=collect), params, batch)


def test_an_encoder_refuses_a_cache(tiny_config, batch):
    model = functional(partial(Transformer, tiny_config))
    params = jax.eval_shape(model.init, KEY)
    with pytest.raises(ValueError, match="an encoder has no cache"):
        jax.eval_shape(partial(model.apply, cache={}), params, batch)


def test_tokens_that_do_not_divide_over_their_devices_are_computed_alike(
    collected, tiny_config, params
):
    # 9 tokens over 2 devices: the compiler pads.
    rules = Rules.of({"batch": ("data",), "sequence": ("context",)})
    mesh, _ = make_mesh({"data": 2, "context": 2})
    with jax.set_mesh(mesh):
        found = collected(tiny_config, params, rules=rules)
    check_equal(found, collected(tiny_config, params))


def test_bf16_is_close_to_fp32_within_its_rounding(forward, tiny_config, params):
    exact = np.asarray(forward(tiny_config, params)["hidden"])
    rounded = forward(tiny_config, params, dtype=jnp.bfloat16)["hidden"]
    assert rounded.dtype == jnp.bfloat16
    # 8 bits of significand: 2**-9 an operation, a dozen operations in each of 2 layers.
    assert np.linalg.norm(np.float32(rounded) - exact) < 0.02 * np.linalg.norm(exact)


def test_without_a_key_nothing_is_drawn(forward, tiny_config, params):
    still = replace(tiny_config, dropout=Dropout.of(0.0))
    without_key = forward(tiny_config, params)
    without_rate = forward(still, params, key=KEY)
    for name, value in without_key.items():
        assert (np.asarray(value) == np.asarray(without_rate[name])).all(), name


def test_a_key_draws_the_same_dropout_again_and_another_key_another(
    run, tiny_config, params, scanned
):
    again, _ = run(tiny_config, params)
    other, _ = run(tiny_config, params, key=jax.random.key(8))
    assert (np.asarray(again["hidden"]) == np.asarray(scanned[0]["hidden"])).all()
    assert not np.allclose(other["hidden"], scanned[0]["hidden"])


def test_padding_influences_no_real_hidden_state(forward, tiny_config, params, batch):
    mask = batch["mask"]
    noise = {"tokens": np.where(mask, batch["tokens"], 49)}
    hidden = np.asarray(forward(tiny_config, params)["hidden"])
    disturbed = np.asarray(forward(tiny_config, params, noise)["hidden"])
    assert (hidden[mask] == disturbed[mask]).all()
    assert not np.allclose(hidden, disturbed)


def test_types_are_zero_where_the_batch_has_none(forward, tiny_config, params, batch):
    apply = jax.jit(functional(partial(Transformer, tiny_config)).apply)
    bare = {name: value for name, value in batch.items() if name != "types"}
    zeros = {"types": np.zeros_like(batch["types"])}
    found, expected = apply(params, bare), forward(tiny_config, params, zeros)
    assert (np.asarray(found["hidden"]) == np.asarray(expected["hidden"])).all()


def test_nnx_is_used_as_it_is_today(tiny_config, recwarn):
    model = functional(partial(Transformer, tiny_config))
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    names = ("tokens", "types", "segments", "positions")
    batch = dict.fromkeys(names, tokens)
    batch["starts"] = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    jax.eval_shape(model.apply, params, batch)
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9999])
def test_dropout_keeps_its_share_and_scales_by_it(rate):
    count = 2**20
    kept = np.asarray(dropout(jnp.ones((2**8, 2**12)), rate, KEY))
    np.testing.assert_allclose(np.unique(kept), [0, 1 / (1 - rate)], rtol=1e-6)
    # Five standard deviations of a binomial.
    deviation = np.sqrt(rate * (1 - rate) / count)
    assert abs((kept > 0).mean() - (1 - rate)) < 5 * deviation


@pytest.fixture(scope="module")
def masks():
    """Signs, so that what is independent has products of mean 0: [keys, B, H, S]."""
    keys = jax.random.split(KEY, 4)
    bits = [hashed_bits(key, (64, 32, 128)) for key in (*keys, jax.random.key(8))]
    return np.where(np.stack(bits) >> 31, 1.0, -1.0)


@pytest.mark.parametrize(("axis", "shift"), [(0, 1), (0, 2), (1, 1), (2, 1), (3, 1)])
@pytest.mark.parametrize("apart", [1, 2, 8, 16])
def test_masks_of_other_keys_and_places_are_independent(masks, axis, shift, apart):
    moved = np.roll(masks, shift if axis == 0 else apart, axis)
    # Five standard deviations of a mean of independent signs.
    assert abs((masks * moved).mean()) < 5 / np.sqrt(masks.size)


def test_all_bits_of_a_mask_s_numbers_are_even():
    bits = np.asarray(hashed_bits(KEY, (1024, 1023))).ravel()
    for place in range(32):
        ones = (bits >> place & 1).mean()
        assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(bits.size), place
    counts = np.bincount(bits >> 20, minlength=4096)
    expected = bits.size / 4096
    # A chi-squared of 4,095 degrees of freedom has a deviation of about 90.
    assert abs(((counts - expected) ** 2 / expected).sum() - 4095) < 5 * 90


def test_a_mask_does_not_depend_on_how_a_mesh_splits_it():
    mesh, _ = make_mesh({"data": 4, "tensor": 2})
    spec = jax.sharding.PartitionSpec("data", "tensor", None)
    placed = jax.sharding.NamedSharding(mesh, spec)
    draw = partial(hashed_bits, shape=(8, 6, 10))
    split = jax.jit(draw, out_shardings=placed)(KEY)
    assert (np.asarray(split) == np.asarray(jax.jit(draw)(KEY))).all()


@pytest.mark.parametrize(("rate", "key"), [(0.0, KEY), (0.5, None)])
def test_no_rate_or_no_key_drops_nothing(rate, key):
    x = jnp.arange(8.0)
    assert dropout(x, rate, key) is x


def test_new_weights_and_the_head_s_do_not_hang_on_how_depth_is_cut(tiny_config):
    def made(splits):
        config = replace(tiny_config, layers=4, splits=splits)
        model = functional(
            lambda rngs: Head(Transformer(config, rngs), "hidden", 3, rngs)
        )
        whole = functional(
            lambda rngs: Head(
                Transformer(replace(config, splits=()), rngs), "hidden", 3, rngs
            )
        )
        return regroup(jax.jit(model.init)(KEY), flatten(whole.shapes))

    one = flatten(made(()))
    for splits in ((1, 2, 3), (3,)):
        for name, leaf in flatten(made(splits)).items():
            np.testing.assert_array_equal(leaf, one[name], err_msg=name)


def test_gelu_in_bf16_is_that_of_fp32_rounded():
    x = jnp.linspace(-5, 5, 999, dtype=jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    found = np.asarray(gelu(x), np.float32)
    # Half a unit of bf16's 8 bits; and 1 + erf(x) of fp32 where that is all but 0.
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-6)
