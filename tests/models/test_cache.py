"""The cache: what it keeps, and that tokens read in pieces are tokens read at once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.models.cache import empty_cache, in_ring, rows_of, window
from jaxlm.models.pretrained import load

WINDOW, SLOTS = 5, 40
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
    "initializer_range": 0.3,
}
LOCAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], **SIZES}
MIXED = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    **SIZES,
    "sliding_window_pattern": 3,
}
CASES = {
    "local layers apart": (LOCAL, False, [WINDOW] * 3),
    "local layers in a scan": (LOCAL, True, [WINDOW]),
    "local and global apart": (MIXED, False, [WINDOW, WINDOW, SLOTS]),
    "local and global in a scan": (MIXED, True, [SLOTS]),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    config, scan, slots = CASES[request.param]
    (tmp_path / "config.json").write_text(json.dumps(config))
    return load(f"random:{tmp_path}", scan=scan), slots


def stacks(cache):
    return [leaf for leaf in cache.values() if isinstance(leaf, dict)]


def test_local_layers_keep_as_many_tokens_as_they_see(case):
    model, slots = case
    cache = empty_cache(model.config, 2, SLOTS)
    assert [stack["key"].shape[-2] for stack in stacks(cache)] == slots


@pytest.mark.parametrize("pieces", [[30], [3, 1, 9, 1, 1, 9, 3, 3]])
def test_tokens_read_in_pieces_are_tokens_read_at_once(case, pieces):
    """Longer than the window, and beyond it; one row is padded on the left."""
    model, _ = case
    tokens = np.random.default_rng(0).integers(0, 61, (2, 30))
    segments = np.ones((2, 30), np.int32)
    segments[1, :7] = 0
    batch = {
        "tokens": jnp.asarray(tokens),
        "segments": jnp.asarray(segments),
        "positions": jnp.asarray(np.maximum(segments.cumsum(1) - 1, 0)),
    }
    apply = jax.jit(lambda *inputs, **options: model.apply(*inputs, **options))
    wanted = apply(model.params, batch)["logits"]
    cache = empty_cache(model.config, 2, SLOTS)
    start = 0
    for count in pieces:
        part = {name: value[:, start : start + count] for name, value in batch.items()}
        outputs = apply(model.params, part, cache=cache)
        cache, start = outputs["cache"], start + count
        found = outputs["logits"][:, -1]  # those of the last token alone
        real = segments[:, start - 1] > 0
        # fp32 sums in another order.
        np.testing.assert_allclose(
            found[real], wanted[real, start - 1], rtol=1e-4, atol=1e-5
        )


def test_a_ring_holds_the_last_tokens_and_none_that_were_not_there():
    assert in_ring(jnp.int32(1), 4).tolist() == [0, 1, -2, -1]
    assert in_ring(jnp.int32(9), 4).tolist() == [8, 9, 6, 7]
    segments = jnp.asarray([[0, 0, 1, 1, 1, 1, 0, 0]])
    seen, slots = window(segments, jnp.asarray([5]), 4)
    assert (seen.tolist(), slots.tolist()) == ([[1, 1, 1, 1]], [4, 5, 2, 3])
    seen, slots = window(segments, jnp.asarray([3, 4, 5]), 4)
    assert slots.tolist() == [0, 1, 2, -1, 3, 4, 5]
    assert seen.tolist() == [[0, 0, 1, 0, 1, 1, 1]]


def test_rows_may_come_several_times_or_never(case):
    model, _ = case
    cache = jax.tree.map(
        lambda leaf: jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape),
        empty_cache(model.config, 3, SLOTS),
    )
    taken = rows_of(cache, jnp.asarray([2, 2, 0, 1]))
    assert taken["slot"] == cache["slot"]
    order = [2, 2, 0, 1]
    assert (taken["segments"] == cache["segments"][jnp.asarray(order)]).all()
    for found, stack in zip(stacks(taken), stacks(cache), strict=True):
        key = np.moveaxis(np.asarray(stack["key"]), -4, 0)[order]
        assert (np.moveaxis(np.asarray(found["key"]), -4, 0) == key).all()
