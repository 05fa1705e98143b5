"""One optimizer step: sums before divisions, however the batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.core.types import LossSum
from jaxlm.train.config import TrainConfig
from jaxlm.train.state import State
from jaxlm.train.step import make_step

ROWS, PLACES, WIDTH, LABELS = 8, 6, 3, 4
COUNTS = (6, 1, 5, 2, 6, 1, 1, 3)  # real tokens of each row


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    real = np.arange(PLACES)[None] < np.array(COUNTS)[:, None]
    return {
        "mask": jnp.asarray(real),
        "x": jnp.asarray(random.normal(size=(ROWS, PLACES, WIDTH)), jnp.float32),
        "labels": jnp.asarray(random.integers(0, LABELS, (ROWS, PLACES)), jnp.int32),
        "paired": jnp.asarray([1, 0, 0, 0, 1, 0, 1, 0], jnp.bool_),
    }


def objective(trainable, frozen, batch, key, step):
    """Two losses with different weights: over words, and over the few paired rows."""
    logits = batch["x"] @ trainable["kernel"] + trainable["bias"][None, None]
    logits = logits * frozen["scale"]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    words = batch["mask"].astype(jnp.float32)
    squares = (logits**2).sum((1, 2)) * batch["paired"]
    right = (logits.argmax(-1) == batch["labels"]) * words
    losses = {
        "words": LossSum((each * words).sum(), words.sum()),
        "pairs": LossSum(squares.sum(), batch["paired"].sum().astype(jnp.float32)),
    }
    return losses, {"accuracy": LossSum(right.sum(), words.sum())}


def new_state(optimizer):
    kernel = np.random.default_rng(1).normal(size=(WIDTH, LABELS))
    trainable = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.zeros(LABELS),
    }
    frozen = {"scale": jnp.float32(0.5)}
    key = jax.random.key_data(jax.random.key(0))
    zero = jnp.int32(0)
    return State(trainable, frozen, optimizer.init(trainable), zero, key, zero)


def take(batch, accumulation, objective=objective):
    optimizer = optax.sgd(1.0)
    step = jax.jit(make_step(objective, optimizer, accumulation))
    return step(new_state(optimizer), batch)


def whole_batch_loss(trainable, batch):
    frozen = {"scale": jnp.float32(0.5)}
    losses, _ = objective(trainable, frozen, batch, None, 0)
    return sum(each.total / each.weight for each in losses.values())


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_microbatches_give_the_gradient_of_the_whole_batch(batch, accumulation):
    before = new_state(optax.sgd(1.0)).trainable
    loss, gradient = jax.value_and_grad(whole_batch_loss)(before, batch)
    state, figures = take(batch, accumulation)
    # Sums of at most 36 f32 terms of order 1: a few units in the last place.
    np.testing.assert_allclose(figures["loss"], loss, rtol=1e-6)
    for name in before:
        moved = before[name] - state.trainable[name]
        np.testing.assert_allclose(moved, gradient[name], rtol=2e-5, atol=2e-6)
    norm = optax.tree.norm(gradient)
    np.testing.assert_allclose(figures["gradient_norm"], norm, rtol=1e-6)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_a_mean_of_means_would_be_far_from_the_loss(batch, accumulation):
    before = new_state(optax.sgd(1.0)).trainable
    parts = [
        {name: leaf[number::accumulation] for name, leaf in batch.items()}
        for number in range(accumulation)
    ]
    frozen = {"scale": jnp.float32(0.5)}
    means = [objective(before, frozen, part, None, 0)[0]["words"] for part in parts]
    mean = np.mean([each.total / each.weight for each in means])
    whole = objective(before, frozen, batch, None, 0)[0]["words"]
    assert abs(mean - whole.total / whole.weight) > 1e-3


@pytest.mark.parametrize("accumulation", [1, 4])
def test_figures_are_sums_over_the_whole_batch(batch, accumulation):
    _, figures = take(batch, accumulation)
    assert figures["losses"]["words"].weight == sum(COUNTS)
    assert figures["losses"]["pairs"].weight == 3
    assert figures["measures"]["accuracy"].weight == sum(COUNTS)
    assert figures["tokens"] == sum(COUNTS)


def test_a_loss_without_weight_in_the_batch_adds_nothing(batch):
    unpaired = {**batch, "paired": jnp.zeros(ROWS, jnp.bool_)}
    state, figures = take(unpaired, 2)
    words = figures["losses"]["words"]
    np.testing.assert_allclose(figures["loss"], words.total / words.weight, rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trainable))


def test_a_step_counts_and_leaves_the_key_and_the_frozen_alone(batch):
    state, _ = take(batch, 2)
    before = new_state(optax.sgd(1.0))
    assert int(state.step) == 1
    assert np.array_equal(state.key, before.key)
    assert np.array_equal(state.frozen["scale"], before.frozen["scale"])


def noise(trainable, frozen, batch, key, step):
    """A loss that is the random number which dropout would start from."""
    draw = jax.random.uniform(key) + 0 * trainable["bias"].sum()
    return {"draw": LossSum(draw, jnp.float32(1))}, {}


def test_every_step_draws_its_own_dropout(batch):
    optimizer = optax.sgd(1.0)
    step = jax.jit(make_step(noise, optimizer))
    state, draws = new_state(optimizer), []
    for _ in range(3):
        state, figures = step(state, batch)
        draws.append(float(figures["loss"]))
    assert len(set(draws)) == 3


def test_every_microbatch_draws_its_own_dropout(batch):
    def recorded(trainable, frozen, batch, key, step):
        draw = jax.random.uniform(key) + 0 * trainable["bias"].sum()
        square = LossSum(draw**2, jnp.float32(1))
        return {"draw": LossSum(draw, jnp.float32(1))}, {"square": square}

    _, figures = take(batch, 2, recorded)
    total, squares = (
        figures["losses"]["draw"].total,
        figures["measures"]["square"].total,
    )
    assert not np.isclose(2 * squares, total**2)  # equal only if both draws are


@pytest.mark.parametrize(
    ("given", "devices", "count"),
    [
        ({}, 8, 1),
        ({"rows_per_device": 4}, 8, 2),
        ({"rows_per_device": 4}, 3, 6),  # 64 rows and 8 of padding
        ({"rows_per_device": 5}, 6, 3),  # 11 a device; 12 places
        ({"rows_per_device": 4}, 7, 5),  # 10 a device: not 3, with 2 of 12 empty
        ({"rows_per_device": 100}, 8, 1),
        ({"rows_per_device": 4, "accumulation": 16}, 8, 16),
    ],
)
def test_microbatches_follow_from_the_rows_that_a_device_takes(given, devices, count):
    assert TrainConfig(batch_size=64, **given).microbatches(devices) == count
