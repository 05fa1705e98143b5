"""Perplexity: which tokens are scored, and how."""

import jax
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.models.perplexity import Score, perplexity, windows
from jaxlm.models.pretrained import load, make_batch


@pytest.fixture(scope="module")
def sorter(shared_models):
    return load(str(shared_models / "gpt-nano-sort"))


@pytest.mark.parametrize("stride", [1, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 2, 6, 7, 8, 21, 22, 23])
def test_overlapping_windows_score_every_token_once_but_the_first(count, stride):
    seen = np.zeros(count, int)
    for window in windows(count, 7, stride):
        assert window.stop - window.start <= 7
        seen[window.stop - window.scored : window.stop] += 1
    # Without overlap the first of each window has nothing before it.
    first = np.arange(count) % 7 == 0 if stride == 7 else np.arange(count) == 0
    np.testing.assert_array_equal(seen, ~first)


def test_the_score_is_that_of_each_token_given_those_before_it(sorter):
    tokens = np.random.default_rng(0).integers(0, 3, 23)
    total, scored = 0.0, 0
    for window in windows(len(tokens), 8, 3):
        ids = tokens[window.start : window.stop]
        batch = make_batch(sorter.config, ids[None], None, "here")
        logits = jax.jit(sorter.apply)(sorter.params, batch)["logits"][0, :-1]
        each = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]]
        total += each[-window.scored :].sum()
        scored += window.scored
    found = perplexity(sorter, tokens.tolist(), length=8, stride=3)
    assert found.tokens == scored == 22
    assert found.total == pytest.approx(total, rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(total / scored), rel=1e-5)


def test_no_tokens_have_no_perplexity():
    assert np.isnan(Score().perplexity)


@pytest.mark.parametrize(
    ("length", "stride", "words"),
    [
        (1, 1, "length=1"),
        (12, None, "11 positions"),
        (8, 9, "stride=9"),
        (8, 0, "stride=0"),
    ],
)
def test_windows_that_the_model_cannot_read_are_refused(sorter, length, stride, words):
    with pytest.raises(UserError, match=words):
        perplexity(sorter, [0, 1, 2], length=length, stride=stride)


@pytest.mark.parametrize("tokens", [[], [1], [[1, 2, 3]], "abc", [0.5, 1.5]])
def test_what_is_no_text_of_tokens_has_no_perplexity(sorter, tokens):
    with pytest.raises(UserError, match="the tokens of one text"):
        perplexity(sorter, tokens, length=8)


def test_an_encoder_has_no_perplexity():
    with pytest.raises(UserError, match="no causal|not a causal"):
        perplexity(load("random:tiny"), [1, 2, 3], length=8)
