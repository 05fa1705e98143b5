"""Cross-entropy: its value, its gradient, and what it keeps for that."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.tasks.losses import cross_entropies, cross_entropy

RANDOM = np.random.default_rng(0)
LOGITS = jnp.asarray(RANDOM.normal(size=(3, 5, 7)) * 10, jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(0, 7, (3, 5)), jnp.int32)


def test_losses_and_their_gradient_are_those_of_optax():
    def ours(logits):
        return cross_entropies(logits, LABELS)

    def theirs(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)

    found, pull = jax.vjp(ours, LOGITS)
    wanted, pull_theirs = jax.vjp(theirs, LOGITS)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    weights = jnp.asarray(RANDOM.normal(size=(3, 5)), jnp.float32)
    np.testing.assert_allclose(pull(weights)[0], pull_theirs(weights)[0], atol=1e-6)


def test_a_label_below_zero_counts_as_the_first_and_weighs_nothing():
    weights = jnp.where(jnp.arange(5) < 3, 1.0, 0.0)[None].repeat(3, 0)
    labels = jnp.where(weights > 0, LABELS, -1)

    def total(logits):
        return cross_entropy(logits, labels, weights).total

    gradient = jax.grad(total)(LOGITS)
    assert not gradient[:, 3:].any() and gradient[:, :3].any()
    first = cross_entropies(LOGITS, jnp.zeros_like(LABELS))
    np.testing.assert_array_equal(cross_entropies(LOGITS, labels)[:, 3:], first[:, 3:])


def test_a_logit_that_stands_for_none_has_no_gradient():
    least = float(jnp.finfo(jnp.float32).min)
    logits = LOGITS.at[..., 6].set(least)
    labels = jnp.minimum(LABELS, 5)
    gradient = jax.grad(lambda x: cross_entropies(x, labels).sum())(logits)
    assert not gradient[..., 6].any()
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-5)


def test_the_backward_pass_keeps_the_logits_and_no_exponential_of_each():
    _, pull = jax.vjp(lambda logits: cross_entropies(logits, LABELS), LOGITS)
    large = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= LOGITS.size]
    assert len(large) == 1
    np.testing.assert_array_equal(large[0], LOGITS)
