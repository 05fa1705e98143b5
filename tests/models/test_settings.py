"""What a folder's config.json and generation_config.json may say of a whole model."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.mesh import Rules, make_mesh
from jaxlm.models.checkpoint import BUILT_IN, open_checkpoint
from jaxlm.models.exporting import Layout, export_source
from jaxlm.models.pretrained import Pretrained, labels_of, load, logits, make_batch
from jaxlm.models.stops import own_stops
from tests.models import families

BERT = {"model_type": "bert", **families.ENCODER}
T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    **families.T5,
}
DEBERTA = {
    "model_type": "deberta-v2",
    "architectures": ["DebertaV2ForMaskedLM"],
    **families.DEBERTA,
    **families.V3,
    "num_hidden_layers": 1,
    "conv_kernel_size": 3,
    "embedding_size": 16,
    "tie_word_embeddings": False,
}
FSDP = Rules.of({"batch": ("data", "fsdp"), "width": ("fsdp",), "heads": ("tensor",)})


@pytest.fixture
def write(tmp_path):
    """``write(config)``: the source of a model of new weights."""

    def written(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return f"random:{tmp_path}"

    return written


def opened(source):
    """A model whose settings alone are read."""
    checkpoint = open_checkpoint(source)
    return Pretrained(checkpoint.config, lambda *_: {}, {}, checkpoint, "language")


def test_quantized_weights_are_refused_by_name(write):
    source = write(BERT | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(UserError, match="quantization_config is not supported: .*GPTQ"):
        open_checkpoint(source)


@pytest.mark.parametrize("count", [10**12, 10**9, "5", 2.5, True, 0, -3, None])
def test_a_number_of_labels_that_is_none_is_refused(write, count):
    heads = {"architectures": ["BertForTokenClassification"], "num_labels": count}
    with pytest.raises(UserError, match="config.json: num_labels=.* a whole number"):
        labels_of(open_checkpoint(write(BERT | heads)))


@pytest.mark.parametrize("value", ["2", True, 2.0, ["2"], [2, None], {"a": 2}])
def test_an_end_token_that_is_none_is_refused(write, value):
    model = opened(write(T5 | {"eos_token_id": value}))
    with pytest.raises(UserError, match="eos_token_id=.* is not allowed; the number"):
        own_stops(model)


@pytest.mark.parametrize(
    ("value", "stops"), [(None, ()), (2, (2,)), ([2, 3], (2, 3)), ([2, 999], (2,))]
)
def test_end_tokens_are_one_or_a_list_of_the_vocabulary(write, value, stops):
    assert own_stops(opened(write(T5 | {"eos_token_id": value}))) == stops


@pytest.mark.parametrize("value", ["0", True, 0.0, [0], -1, 61])
def test_a_start_token_that_is_none_is_refused(write, value):
    model = opened(write(T5 | {"decoder_start_token_id": value, "bos_token_id": 1}))
    with pytest.raises(UserError, match="decoder_start_token_id=.* one token of 0 to"):
        _ = model.start_token


def test_the_start_token_is_by_default_that_of_a_text(write):
    assert opened(write(T5 | {"decoder_start_token_id": 0})).start_token == 0
    assert opened(write(T5 | {"bos_token_id": 7})).start_token == 7
    with pytest.raises(UserError, match="neither decoder_start_token_id nor bos_token"):
        _ = opened(write(T5)).start_token


def test_heads_that_devices_do_not_divide_are_refused(write):
    mesh, _ = make_mesh({"data": 1, "fsdp": 1, "tensor": 2})
    with pytest.raises(UserError, match="cannot split heads=3 of the model evenly"):
        load(write(BERT), mesh=mesh, rules=FSDP)


def test_every_kernel_is_whole_over_the_devices_that_have_the_rows(write, monkeypatch):
    source = write(DEBERTA)
    tokens = np.random.default_rng(0).integers(3, 61, (8, 11))
    alone = load(source)
    batch = make_batch(alone.config, tokens, None, "")
    wanted = jax.jit(alone.apply)(alone.params, batch)["logits"]
    mesh, _ = make_mesh({"data": 1, "fsdp": 8, "tensor": 1})
    model, gathered = load(source, mesh=mesh, rules=FSDP), set()
    gather = Rules.gather

    def record(self, kernel, axes, *dtype):
        gathered.add((axes, kernel.shape))
        return gather(self, kernel, axes, *dtype)

    monkeypatch.setattr(Rules, "gather", record)
    with jax.set_mesh(mesh):
        found = jax.jit(model.apply)(model.params, batch)["logits"]
    # Sums in another order, of logits near 1.
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert {
        (("vocab", "width"), (61, 16)),  # the last kernel
        (("width", "width_out"), (24, 16)),  # what goes before it
        (("embedding", "width"), (16, 24)),  # the projection of tokens
        ((None, "width", "width_out"), (3, 24, 24)),  # the convolution
    } <= gathered


BROKEN = [
    ("tokenizer.json", "{"),
    ("tokenizer.json", "{}"),
    ("tokenizer_config.json", "{"),
    ("tokenizer_config.json", "[]"),
    ("config.json", '{"eos_token_id": "x"}'),
]


@pytest.mark.parametrize(("name", "text"), BROKEN)
def test_a_tokenizer_that_cannot_be_read_is_refused_and_not_exported(
    tmp_path, name, text
):
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(BUILT_IN["tiny"], folder)
    if name == "config.json":
        text = json.dumps(json.loads((folder / name).read_text()) | json.loads(text))
    (folder / name).write_text(text)
    refused = r"in: its tokenizer cannot be read \(.+\); fetch it again"
    with pytest.raises(UserError, match=refused) as raised:
        _ = opened(f"random:{folder}").tokenizer
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=refused):
        export_source(f"random:{folder}", out, Layout(), lambda *_: "")
    assert not out.exists()


OPTIONS = [
    ("remat", "all", "remat='all' is not allowed; one of none, block, dots"),
    ("dtype", "int32", "dtype='int32' is not allowed; one of floats"),
    ("dtype", "half-float", "dtype='half-float' is not allowed"),
    ("dtype", None, "dtype=None is not allowed"),
    ("vocab_size", 3000.0, "vocab_size=3000.0 is not allowed; a whole number"),
    ("vocab_multiple", 0, "vocab_multiple=0 is not allowed; .* at least 1"),
    ("vocab_multiple", "8", "vocab_multiple='8' is not allowed"),
]


@pytest.mark.parametrize(("option", "value", "refused"), OPTIONS)
def test_an_option_of_loading_that_is_none_is_refused(option, value, refused):
    with pytest.raises(UserError, match=refused):
        load("random:tiny", **{option: value})


ROWS = [
    ([[1, 2], [3]], None, "tokens: rows of different lengths .* pad them .* a mask"),
    ([[1, 2], [3, 4]], [[1, 1], [1]], "mask: rows of different lengths"),
    ([[]], None, r"tokens: float64\[1, 0\] is not allowed"),
    (np.zeros((0, 4), int), None, r"tokens: \[0, 4\] .* at least one row of one"),
    (np.zeros((1, 0), int), None, r"tokens: \[1, 0\] .* at least one row of one"),
    ([[1, 2]], [[1.0, 0.0]], "mask: float64 that is not true and false"),
    ([[1, 2]], [[0, -10000]], "mask: int64 that is not true and false, or 1 and 0"),
    ([[1, 2]], [["yes", "no"]], "mask: <U3 that is not true"),
]


@pytest.mark.parametrize(("tokens", "mask", "refused"), ROWS)
def test_rows_that_are_none_are_refused(tokens, mask, refused):
    config = open_checkpoint("random:tiny").config
    with pytest.raises(UserError, match=refused):
        make_batch(config, tokens, mask, "here")


@pytest.mark.parametrize("names", [None, [], ["BertModel"]])
def test_a_bare_model_is_refused_by_what_config_json_says(write, names):
    source = write(BERT | {"architectures": names})
    with pytest.raises(UserError, match="config.json: architectures.* no logits"):
        logits(source, [[1, 2]])


def test_a_class_that_is_in_no_list_is_refused(write):
    source = write(BERT | {"architectures": "BertForMaskedLM"})
    with pytest.raises(UserError, match="architectures='BertForMaskedLM' is not allow"):
        load(source)


def test_a_source_may_be_a_path(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "absent")
