"""Reading checkpoints: names, dtypes, shards, and every refusal in one line."""

import json
from dataclasses import replace
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.mesh import Rules, make_mesh
from jaxlm.core.safetensors import write
from jaxlm.core.trees import flatten
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.models.checkpoint import open_checkpoint
from jaxlm.models.exporting import Layout, export_source
from jaxlm.models.families.bert import BERT
from jaxlm.models.functional import functional
from jaxlm.models.pretrained import load
from jaxlm.models.transformer import Transformer
from jaxlm.models.weights import load_weights

CONFIG = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
QUERY = "encoder.layer.1.attention.self.query.weight"
UP = "encoder.layer.0.intermediate.dense.weight"


def their_weights():
    """Random tensors under transformers' names, of the shapes that PyTorch has."""
    width, mlp = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),
        "embeddings.position_embeddings.weight": (12, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "encoder.layer.{layer}.intermediate.dense.weight": (mlp, width),
        "encoder.layer.{layer}.intermediate.dense.bias": (mlp,),
        "encoder.layer.{layer}.output.dense.weight": (width, mlp),
    }
    random = np.random.default_rng(0)
    tensors = {}
    for weight in BERT.weights:
        square = (width, width) if weight.transpose else (width,)
        shape = shapes.get(weight.theirs, square)
        for layer in range(2 if "{layer}" in weight.theirs else 1):
            name = weight.theirs.format(layer=layer)
            tensors[name] = random.normal(size=shape).astype(np.float32)
    return tensors


@pytest.fixture
def save(tmp_path):
    def saved(tensors, **config):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | config))
        write(tmp_path / "model.safetensors", tensors)
        return tmp_path

    return saved


def check_loaded(params, tensors):
    """Every parameter against the tensor that it came from, bit for bit."""
    params = flatten(params)
    for weight in BERT.weights:
        if weight.ours not in params:
            continue
        ours = np.asarray(params[weight.ours])
        stacked = "{layer}" in weight.theirs
        for layer in range(2 if stacked else 1):
            theirs = np.asarray(tensors[weight.theirs.format(layer=layer)], np.float32)
            theirs = theirs.T if weight.transpose else theirs
            assert np.array_equal(ours[layer] if stacked else ours, theirs), weight.ours


def refusal(open_model, folder):
    with pytest.raises(UserError) as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_every_weight_lies_where_the_table_says(save, open_model):
    tensors = their_weights()
    params = open_model(save(tensors), pooler=True).params
    check_loaded(params, tensors)
    assert len(flatten(params)) == len(BERT.weights)


def test_a_pooler_is_left_out_where_the_model_has_none(save, open_model):
    assert "pooler" not in open_model(save(their_weights())).params


def test_weights_load_into_several_stacks(save, open_model):
    tensors = their_weights()
    params = flatten(open_model(save(tensors), splits=(1,)).params)
    found = params["layers[1:2]/attention/query/kernel"]
    assert np.array_equal(found[0], tensors[QUERY].T)


def test_names_under_the_prefix_of_a_model_with_a_head_load(save, open_model):
    tensors = their_weights()
    heads = {
        "classifier.weight": np.zeros((3, 16), np.float32),
        "cls.predictions.bias": np.zeros(40, np.float32),
    }
    prefixed = {f"bert.{name}": value for name, value in tensors.items()}
    check_loaded(open_model(save(prefixed | heads), pooler=True).params, tensors)


def test_gamma_and_beta_load_as_weight_and_bias(save, open_model):
    tensors = their_weights()

    def old(name):
        return name.replace("Norm.weight", "Norm.gamma").replace(
            "Norm.bias", "Norm.beta"
        )

    folder = save({old(name): value for name, value in tensors.items()})
    check_loaded(open_model(folder).params, tensors)


def test_a_buffer_of_position_ids_is_ignored(save, open_model):
    tensors = their_weights()
    folder = save(tensors | {"embeddings.position_ids": np.arange(12).reshape(1, 12)})
    check_loaded(open_model(folder).params, tensors)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_weights_of_another_precision_load_as_fp32(save, open_model, dtype):
    tensors = {name: value.astype(dtype) for name, value in their_weights().items()}
    params = open_model(save(tensors)).params
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    check_loaded(params, tensors)


def test_all_bad_names_are_listed_in_one_message(save, open_model):
    tensors = their_weights()
    del tensors[QUERY], tensors["embeddings.LayerNorm.bias"]
    tensors |= {"decoder.weight": np.zeros(2, np.float32), "extra": tensors[UP]}
    tensors[UP] = np.zeros((25, 16), np.float32)
    message = refusal(open_model, save(tensors))
    missing, unexpected, misshapen = message.partition("config.json; ")[2].split("; ")
    assert missing == f"missing: embeddings.LayerNorm.bias, {QUERY}"
    assert unexpected == "unexpected: decoder.weight, extra"
    assert misshapen == f"misshapen: {UP} [25, 16] (config.json asks for [24, 16])"


def test_of_many_bad_names_the_first_are_listed(save, open_model):
    extra = {f"extra{number:02}": np.zeros(1, np.float32) for number in range(12)}
    message = refusal(open_model, save(their_weights() | extra))
    assert message.endswith("extra08, extra09 and 2 more")


def test_a_missing_name_is_spelt_as_transformers_has_it(save):
    tensors = {f"bert.{name}": value for name, value in their_weights().items()}
    del tensors[f"bert.{QUERY}"]
    tensors["classifier.weight"] = np.zeros((2, 16), np.float32)
    tensors["classifier.bias"] = np.zeros(2, np.float32)
    folder = save(tensors, architectures=["BertForTokenClassification"])
    with pytest.raises(UserError, match=f"missing: bert.{QUERY}$"):
        load(folder)


def test_tables_without_axes_are_misshapen(save):
    scalar, name = np.zeros((), np.float32), "embeddings.word_embeddings.weight"
    tensors = their_weights() | {name: scalar, "cls.predictions.decoder.weight": scalar}
    folder = save(tensors, architectures=["BertForMaskedLM"])
    with pytest.raises(UserError, match=rf"misshapen: {name} \[\] "):
        load(folder)


def test_what_is_not_finite_in_an_export_is_refused_with_its_folder(
    save, tmp_path_factory
):
    tensors = their_weights()
    tensors[QUERY][0, 0] = np.nan
    folder, out = save(tensors), tmp_path_factory.mktemp("export") / "out"
    with pytest.raises(UserError, match=f"{folder}: .* NaN or .*; fetch the model"):
        export_source(str(folder), out, Layout(), lambda *_: "")


@pytest.mark.parametrize("target", ["absent", "model.safetensors"])
def test_a_broken_link_to_weights_is_called_one(save, open_model, target):
    folder = save(their_weights())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)
    assert f"a broken link, to {target}" in refusal(open_model, folder)


def test_an_index_of_nothing_is_refused(save, open_model):
    folder = save(their_weights())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "weight_map is empty" in refusal(open_model, folder)


@pytest.mark.parametrize("shape", [[0, 10**30], [0, 2**62], [0] + [1] * 40])
def test_a_shape_that_no_tensor_has_is_refused(save, open_model, shape):
    folder = save(their_weights())
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps({"pooler.x": entry}).encode()
    content = len(text).to_bytes(8, "little") + text
    (folder / "model.safetensors").write_bytes(content)
    assert "which no tensor has" in refusal(open_model, folder)


def test_a_missing_pooler_is_refused_with_what_to_do(save, open_model):
    tensors = {k: v for k, v in their_weights().items() if not k.startswith("pooler.")}
    with pytest.raises(UserError, match="config.task.pooling=mean needs no pooler"):
        open_model(save(tensors), pooler=True)


def test_the_dropout_of_the_head_may_be_its_own(save):
    folder = save(their_weights(), hidden_dropout_prob=0.2, classifier_dropout=0.3)
    rates = open_checkpoint(str(folder)).config.dropout
    assert (rates.mlp, rates.tokens, rates.text) == (0.2, 0.3, 0.3)


def test_the_dropout_of_the_head_is_that_of_the_layers_where_none(save):
    folder = save(their_weights(), hidden_dropout_prob=0.2, classifier_dropout=None)
    assert open_checkpoint(str(folder)).config.dropout.text == 0.2


def load_backbone(checkpoint, shapes, placed):
    return load_weights(checkpoint, {"backbone": shapes}, {"backbone": placed})[
        "backbone"
    ]


MESH = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
RULES = Rules.of(
    {
        "batch": ("data", "fsdp"),
        "sequence": ("context",),
        "width": ("fsdp",),
        "heads": ("tensor",),
        "mlp": ("tensor",),
        "vocab": ("tensor",),
    }
)


def test_weights_born_on_a_mesh_equal_those_on_one_device(save, open_model):
    tensors = their_weights()
    folder = save(tensors)
    plain = open_model(folder, pooler=True)
    mesh, _ = make_mesh(MESH)
    placed = RULES.shardings(mesh, plain.axes, plain.shapes)
    params = load_backbone(plain.checkpoint, plain.shapes, placed)
    check_loaded(params, tensors)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.is_equivalent_to(
        placed["layers"]["mlp"]["up"]["kernel"], kernel.ndim
    )
    assert kernel.addressable_shards[0].data.shape == (2, 8, 12)


def test_a_model_on_a_mesh_computes_what_one_device_does(save, open_model, make_batch):
    folder = save(their_weights())
    plain = open_model(folder)
    model = open_model(folder, rules=RULES)
    mesh, _ = make_mesh(MESH)
    random = np.random.default_rng(0)
    batch = make_batch([[(random.integers(1, 40, n), 0)] for n in (8, 3, 5, 7)], 8)
    expected = jax.jit(plain.apply)(plain.params, batch)["hidden"]
    placed = RULES.shardings(mesh, model.axes, model.shapes)
    params = load_backbone(model.checkpoint, model.shapes, placed)
    with jax.set_mesh(mesh):
        found = jax.jit(model.apply)(params, batch)["hidden"]
    # The same sums in two parts: fp32 rounding.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_built_in_tiny_model_has_a_tokenizer_and_no_weights():
    checkpoint = open_checkpoint("random:tiny")
    assert checkpoint.weights is None
    tokenizer = Tokenizer(checkpoint.directory)
    assert tokenizer.vocab_size <= checkpoint.config.vocab_size
    with pytest.raises(ValueError, match="no weights"):
        load_weights(checkpoint, {}, {})


def test_a_random_source_takes_the_architecture_of_another(save):
    checkpoint = open_checkpoint(f"random:{save(their_weights())}")
    assert checkpoint.weights is None
    assert checkpoint.config.width == 16


def test_new_parameters_follow_the_initialisation_of_the_config():
    config = replace(open_checkpoint("random:tiny").config, pooler=True)
    model = functional(partial(Transformer, config))
    params = flatten(jax.jit(model.init)(jax.random.key(0)))
    kernels = params["layers/mlp/up/kernel"]
    # 16,384 draws of a normal: the deviation is known to 1/sqrt(2 * 16384) = 0.6%.
    assert abs(float(kernels.std()) / 0.02 - 1) < 0.03
    assert not np.array_equal(kernels[0], kernels[1])
    assert (np.asarray(params["layers/mlp/up/bias"]) == 0).all()
    assert (np.asarray(params["layers/mlp_norm/scale"]) == 1).all()
