"""Tied or not: what the files hold wins over what config.json says."""

import json

import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import SINGLE, open_weights, write
from jaxlm.models.checkpoint import open_checkpoint
from jaxlm.models.pretrained import load, logits

pytestmark = pytest.mark.parity

DECODER = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
T5 = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
TOKENS = np.random.default_rng(0).integers(3, 61, (2, 9))
TARGETS = np.random.default_rng(1).integers(3, 61, (2, 5))
# Logits are about 1; fp32 rounding in another order is a few 1e-6 of that.
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def make(torch, tmp_path):
    """``make(kind, config)``: a folder of random weights that transformers wrote."""
    import transformers

    def made(name, config, **options):
        torch.manual_seed(0)
        kind = getattr(transformers, name)
        kind(kind.config_class(**config, **options)).save_pretrained(tmp_path)
        return tmp_path

    return made


def add(folder, value):
    """Put one tensor more into the file of a folder."""
    files = open_weights(folder)
    write(
        folder / SINGLE, {each: files.read(each) for each in files.names} | value(files)
    )


def theirs(torch, name, folder, **targets):
    """The logits of transformers for a folder."""
    import transformers

    model = getattr(transformers, name).from_pretrained(folder).eval()
    given = {each: torch.tensor(value) for each, value in targets.items()}
    with torch.no_grad():
        return model(torch.tensor(TOKENS), **given).logits.numpy()


def tied(folder):
    config = open_checkpoint(str(folder)).config
    return (config.decoder or config).language.tied


def test_a_kernel_that_equals_the_table_is_the_table(torch, make):
    folder = make("LlamaForCausalLM", DECODER)
    table = "model.embed_tokens.weight"
    add(folder, lambda files: {"lm_head.weight": files.read(table)})
    assert tied(folder) and "language" not in load(str(folder)).params
    wanted = theirs(torch, "LlamaForCausalLM", folder)
    np.testing.assert_allclose(logits(str(folder), TOKENS), wanted, **NEAR)


def test_a_kernel_of_other_values_is_the_models_own(torch, make):
    folder = make("LlamaForCausalLM", DECODER)
    kernel = np.random.default_rng(2).normal(size=(61, 24), scale=0.1)
    add(folder, lambda files: {"lm_head.weight": kernel.astype(np.float32)})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert not tied(folder)
    wanted = theirs(torch, "LlamaForCausalLM", folder)
    np.testing.assert_allclose(logits(str(folder), TOKENS), wanted, **NEAR)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("own", ["none", "equal", "different"])
def test_a_t5_is_tied_and_scaled_as_transformers_has_it(torch, make, given, own):
    name = "T5ForConditionalGeneration"
    folder = make(name, T5, tie_word_embeddings=given)
    kernel = np.random.default_rng(2).normal(size=(61, 24)).astype(np.float32)
    if own == "equal":
        add(folder, lambda files: {"lm_head.weight": files.read("shared.weight")})
    if own == "different":
        add(folder, lambda files: {"lm_head.weight": kernel})
    assert tied(folder) == (own != "different")
    wanted = theirs(torch, name, folder, decoder_input_ids=TARGETS)
    found = logits(str(folder), TOKENS, targets=TARGETS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_flan_t5_of_the_hub_has_a_kernel_of_its_own(torch, make):
    name = "T5ForConditionalGeneration"
    folder = make(name, T5, tie_word_embeddings=False)
    kernel = np.random.default_rng(2).normal(size=(61, 24)).astype(np.float32)
    add(folder, lambda files: {"lm_head.weight": kernel})
    # As transformers 4 wrote it.
    hf = json.loads((folder / "config.json").read_text())
    del hf["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps(hf | {"tie_word_embeddings": False}))
    assert not tied(folder)
    wanted = theirs(torch, name, folder, decoder_input_ids=TARGETS)
    found = logits(str(folder), TOKENS, targets=TARGETS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


BERT = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 41,
}
PREDICTIONS = "cls.predictions"


def changed(folder, change):
    """The file of a folder, ``change`` made to the dict of its tensors."""
    files = open_weights(folder)
    tensors = {name: files.read(name) for name in files.names}
    write(folder / SINGLE, change(tensors))


@pytest.mark.parametrize("own", ["kernel", "bias", "kernel and bias"])
def test_a_bert_has_what_differs_of_its_own_kernel_and_bias(torch, make, own):
    folder = make("BertForMaskedLM", BERT)
    random = np.random.default_rng(2)
    kernel = random.normal(size=(61, 24), scale=0.1).astype(np.float32)
    biases = random.normal(size=(2, 61)).astype(np.float32)
    more = {f"{PREDICTIONS}.bias": biases[0]}
    if "kernel" in own:
        more[f"{PREDICTIONS}.decoder.weight"] = kernel
    if "bias" in own:
        more[f"{PREDICTIONS}.decoder.bias"] = biases[1]
    changed(folder, lambda tensors: tensors | more)
    assert tied(folder) == ("kernel" not in own)
    wanted = theirs(torch, "BertForMaskedLM", folder)
    np.testing.assert_allclose(logits(str(folder), TOKENS), wanted, **NEAR)


@pytest.mark.parametrize(
    ("name", "config", "table", "kernel"),
    [
        ("LlamaForCausalLM", DECODER, "model.embed_tokens.weight", "lm_head.weight"),
        (
            "BertForMaskedLM",
            BERT,
            "bert.embeddings.word_embeddings.weight",
            f"{PREDICTIONS}.decoder.weight",
        ),
    ],
)
def test_a_tied_table_may_be_there_as_the_kernel_alone(
    torch, make, name, config, table, kernel
):
    folder = make(name, config)
    changed(folder, lambda tensors: {kernel: tensors.pop(table), **tensors})
    wanted = theirs(torch, name, folder)
    np.testing.assert_allclose(logits(str(folder), TOKENS), wanted, **NEAR)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "lm_head.weight"])
def test_a_t5_may_have_its_table_under_another_name(torch, make, name):
    kind = "T5ForConditionalGeneration"
    folder = make(kind, T5)
    changed(folder, lambda tensors: {name: tensors.pop("shared.weight"), **tensors})
    wanted = theirs(torch, kind, folder, decoder_input_ids=TARGETS)
    found = logits(str(folder), TOKENS, targets=TARGETS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_t5_whose_encoder_has_a_table_of_its_own_is_refused(make):
    folder = make("T5ForConditionalGeneration", T5)
    other = np.ones((61, 24), np.float32)
    add(folder, lambda files: {"encoder.embed_tokens.weight": other})
    with pytest.raises(UserError, match="encoder.embed_tokens.weight differs from sha"):
        open_checkpoint(str(folder))
