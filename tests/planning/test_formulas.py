"""FLOPs that a model needs, against counts from elsewhere."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxlm.models.architecture import LayerKind
from jaxlm.models.families import FAMILIES
from jaxlm.models.functional import functional
from jaxlm.models.heads import LanguageModel
from jaxlm.models.transformer import Transformer
from jaxlm.planning.formulas import layer_matrices, model_flops, seen
from jaxlm.planning.hlo import parse
from jaxlm.planning.work import dot_flops

LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "intermediate_size": 11008, "vocab_size": 32000,
    "max_position_embeddings": 4096,
}  # fmt: skip
SMALL = {
    "bert": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 128, "max_position_embeddings": 64,
    },
    "llama": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 128,
        "max_position_embeddings": 64,
    },
    "gpt2": {
        "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64,
    },
}  # fmt: skip


def test_llama_7b_needs_six_flops_a_parameter_and_attention():
    config = FAMILIES["llama"].to_config(LLAMA)
    found = model_flops(config, 4096, vocabulary=True)
    # 6,738,415,616 parameters less the table of tokens and the norms' scales.
    matrices = 6_738_415_616 - 32000 * 4096 - 65 * 4096
    assert found.layers + found.head == 2 * matrices
    # 12 layers width S of Kaplan et al. (2020), halved as a token sees half of a row.
    assert 3 * found.attention == pytest.approx(12 * 32 * 4096 * 4096 / 2, rel=3e-4)


@pytest.mark.parametrize("name", SMALL)
def test_what_a_forward_pass_computes_is_what_the_formula_says(name):
    """XLA counts each product of an unrolled model, all of attention among them."""
    config = FAMILIES[name].to_config(SMALL[name])
    config = dataclasses.replace(config, splits=(1,), pooler=False)

    def make(rngs: nnx.Rngs) -> nnx.Module:
        return LanguageModel(Transformer(config, rngs), rngs)

    model = functional(make)
    names = ("tokens", "segments", "positions")
    batch = {name: jax.ShapeDtypeStruct((2, 32), jnp.int32) for name in names}
    module = parse(jax.jit(model.apply).lower(model.shapes, batch).compile().as_text())
    counted = sum(
        dot_flops(inside, each)
        for inside in module.computations.values()
        for each in inside
        if each.opcode == "dot"
    )
    full = dataclasses.replace(config, causal=False)
    found = model_flops(full, 32, vocabulary=True)
    assert counted == pytest.approx(64 * found.forward)


def test_a_head_counts_for_the_tokens_that_it_is_needed_for():
    config = FAMILIES["llama"].to_config(LLAMA)
    whole = model_flops(config, 128, vocabulary=True)
    some = model_flops(config, 128, vocabulary=True, asked=0.15)
    assert some.head == 0.15 * whole.head and some.layers == whole.layers


def test_frozen_matrices_have_no_gradient():
    config = FAMILIES["llama"].to_config(LLAMA)
    found = model_flops(config, 128, vocabulary=True)
    whole = 3 * found.forward
    assert found.training() == whole
    assert found.training(0.0) == pytest.approx(whole - found.layers)
    below = found.layers + found.attention  # of half of them forward alone
    assert found.training(0.5, 0.5) == pytest.approx(whole - below)
    assert found.training(0.0, 0.0) == pytest.approx(found.forward + 2 * found.head)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("reach", [None, 0, 3, 6, 50])
def test_tokens_seen_are_those_counted_one_by_one(causal, reach):
    length = 7
    each = [
        sum(
            (other <= place or not causal)
            and (reach is None or abs(place - other) <= reach)
            for other in range(length)
        )
        for place in range(length)
    ]
    assert seen(LayerKind(reach=reach), length, causal) == sum(each) / length


def test_a_shared_head_of_keys_is_smaller():
    config = FAMILIES["llama"].to_config(LLAMA | {"num_key_value_heads": 8})
    saved = 2 * 4096 * (32 - 8) * 128
    whole = FAMILIES["llama"].to_config(LLAMA)
    assert layer_matrices(config) == layer_matrices(whole) - saved
