"""More tokens than a checkpoint has, and padding: old rows stay, new ones are fixed."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.mesh import Rules, make_mesh
from jaxlm.core.safetensors import SINGLE, open_weights, write
from jaxlm.core.trees import flatten
from jaxlm.models.checkpoint import open_checkpoint
from jaxlm.models.pretrained import load, make_batch
from jaxlm.models.vocabulary import LEAVES, read_grown, resize
from jaxlm.models.weights import their_tensors
from tests.models.test_gguf import SIZES, weights

UNTIED = SIZES | {"vocab_size": 61, "tie_word_embeddings": False}
TABLE, KERNEL, BIAS = LEAVES
RULES = Rules.of({"vocab": ("tensor",), "width": ("fsdp",), "batch": ("data",)})


@pytest.fixture
def llama(tmp_path):
    """A folder of a small Llama with 61 tokens and a kernel of its own."""
    write(tmp_path / SINGLE, weights(UNTIED))
    (tmp_path / "config.json").write_text(json.dumps(UNTIED))
    return tmp_path


@pytest.fixture
def masked(tmp_path, torch):
    """A folder of a small BERT with 61 tokens and a bias for each."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 3, "intermediate_size": 40}
    model = BertForMaskedLM(BertConfig(**sizes))
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(tmp_path)
    return tmp_path


def leaves(model):
    return {name: np.asarray(leaf) for name, leaf in flatten(model.params).items()}


def test_old_rows_stay_new_ones_are_drawn_and_padding_is_zero(llama):
    old = leaves(load(str(llama)))
    model = load(str(llama), vocab_size=67, vocab_multiple=8)
    new = leaves(model)
    assert (model.config.vocab_size, model.config.vocab_rows) == (67, 72)
    for name in new:
        rows = new[name][:61] if name in LEAVES else new[name]
        assert np.array_equal(rows, old[name]), name
    for name in (TABLE, KERNEL):
        assert new[name].shape == (72, 64)
        assert not new[name][67:].any()
        # Of 6 x 64 draws of a normal, the deviation is known to 4 %.
        assert abs(new[name][61:67].std() / 0.02 - 1) < 0.15
        assert len(np.unique(new[name][61:67])) > 300
    assert not np.array_equal(new[TABLE][61:67], new[KERNEL][61:67])


def test_a_new_row_is_the_same_however_many_there_are(llama):
    few, many = (leaves(load(str(llama), vocab_size=size)) for size in (63, 80))
    assert np.array_equal(few[TABLE], many[TABLE][:63])


def test_another_seed_draws_other_rows(llama):
    config = resize(open_checkpoint(str(llama)).config, 67)
    zero, one = (
        read_grown(
            TABLE, np.s_[60:67, :], (67, 64), 61, config, seed, lambda _: np.ones(64)
        )
        for seed in (0, 1)
    )
    assert np.array_equal(zero[0], one[0])
    assert not np.isin(zero[1:], one[1:]).any()


@pytest.mark.parametrize("sizes", [{"tensor": 8}, {"tensor": 4, "fsdp": 2}])
def test_on_eight_devices_every_row_is_the_same(llama, sizes):
    wanted = leaves(load(str(llama), vocab_size=67, vocab_multiple=8))
    mesh, _ = make_mesh({"data": 1, "fsdp": 1, "tensor": 1} | sizes)
    model = load(str(llama), mesh=mesh, rules=RULES, vocab_size=67, vocab_multiple=8)
    found = flatten(model.params)
    for name in wanted:
        assert np.array_equal(found[name], wanted[name]), name
    rows = {shard.data.shape[0] for shard in found[TABLE].addressable_shards}
    assert rows == {72 // sizes["tensor"]}


def test_a_vocabulary_that_devices_do_not_divide_says_how_to_pad_it(llama):
    mesh, _ = make_mesh({"data": 1, "fsdp": 1, "tensor": 8})
    with pytest.raises(UserError, match="or config.model.vocab_multiple=8"):
        load(str(llama), mesh=mesh, rules=RULES)


def test_padding_has_no_probability_and_changes_no_other(llama):
    tokens = np.arange(3, 13).reshape(2, 5)

    def compute(**options):
        model = load(str(llama), **options)
        batch = make_batch(model.config, tokens, None, "")
        return np.asarray(jax.jit(model.apply)(model.params, batch)["logits"])

    plain, padded = compute(), compute(vocab_multiple=64)
    assert padded.shape == (2, 5, 64)
    # The same sums, of a matrix of another size.
    np.testing.assert_allclose(padded[..., :61], plain, rtol=1e-5, atol=1e-5)
    odds = np.asarray(jax.nn.softmax(padded, axis=-1))
    assert not odds[..., 61:].any() and np.isfinite(padded).all()


def test_a_bias_of_the_vocabulary_grows_by_zeros(masked):
    old = leaves(load(str(masked)))
    new = leaves(load(str(masked), vocab_size=62, vocab_multiple=32))
    assert np.array_equal(new[BIAS][:61], old[BIAS]) and old[BIAS].any()
    assert new[BIAS].shape == (64,) and not new[BIAS][61:].any()


def test_what_is_written_for_others_has_no_padding(llama):
    model = load(str(llama), vocab_size=67, vocab_multiple=8)
    checkpoint = replace(model.checkpoint, config=model.config)
    found = their_tensors(checkpoint, model.params, model.head)
    files = open_weights(llama)
    for name in files.names:
        value = found[checkpoint.family.canonical(name)]
        assert np.array_equal(value[: files.shape(name)[0]], files.read(name))
    assert found["embed_tokens.weight"].shape == (67, 64)


def test_tokens_are_never_taken_away(llama):
    with pytest.raises(UserError, match="60 is not allowed; the model has 61 tokens"):
        load(str(llama), vocab_size=60)
