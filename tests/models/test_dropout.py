"""What is dropped, and how much of it, is what transformers drops.

Both sides write down the rate and the number of elements of everything that goes
through a dropout while a small model is run; the two lists are compared.
"""

import importlib
import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.models.checkpoint import open_checkpoint, own_head
from jaxlm.models.families import FAMILIES
from jaxlm.models.functional import functional
from jaxlm.models.pretrained import build, fitted
from tests.models import families
from tests.models.test_refusals import BASES

OPTIONS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    *("classifier_dropout_prob", "pooler_dropout", "cls_dropout"),
    *("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout"),
    *("embd_pdrop", "resid_pdrop", "attn_pdrop", "hidden_dropout"),
    *("embedding_dropout", "mlp_dropout", "residual_dropout", "dropout_rate"),
)
"""All keys of rates; every model is given all of them, each another rate."""
RATES = {key: (number + 1) / 64 for number, key in enumerate(OPTIONS)}
CONFIGS = {case.model: case.config for case in families.CASES.values()}
# Of what it drops, its other classifier's is of no use here.
del CONFIGS["AlbertForPreTraining"]
for stem, base in {
    "DistilBert": families.DISTILBERT,
    "Electra": families.ENCODER,
    "ModernBert": families.MODERNBERT,
    "DebertaV2": families.DEBERTA,
    "GPT2": families.GPT2,
    "GPTNeoX": CONFIGS["GPTNeoXForCausalLM"],
    "Llama": families.DECODER,
}.items():
    CONFIGS[f"{stem}ForQuestionAnswering"] = base
# One layer: those of a kind are traced once.
ONE = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 1
)
USERS = ("attention", "blocks", "encoder_decoder", "heads", "multi_head", "transformer")
TOKENS = np.random.default_rng(0).integers(3, 61, (2, 7))


def theirs(torch, name, options, folder, monkeypatch):
    """What transformers drops; config.json is written into the folder."""
    import transformers

    kind = getattr(transformers, name)
    config = kind.config_class(**options, attn_implementation="eager")
    config.architectures = [name]
    config.save_pretrained(folder)
    found = Counter()

    def record(x, p=0.5, training=True, inplace=False):
        if training and p:
            found[p, x.numel()] += 1
        return x

    model = kind(config).train()
    given = {"input_ids": torch.tensor(TOKENS)}
    if config.is_encoder_decoder:
        given["decoder_input_ids"] = given["input_ids"]
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.functional, "dropout", record)
        model(**given)
    return found


def opened(folder):
    """The model of a config.json, and a batch."""
    checkpoint = open_checkpoint(f"random:{folder}")
    head = own_head(checkpoint)
    checkpoint = replace(checkpoint, config=fitted(checkpoint, head))
    model = functional(lambda rngs: build(checkpoint, head, rngs))
    ones = np.ones_like(TOKENS)
    batch = {
        "tokens": TOKENS,
        "segments": ones,
        "positions": ones * np.arange(7),
        "starts": np.zeros((2, 1), np.int32),
    }
    if checkpoint.config.decoder is not None:
        batch |= {f"target_{name}": batch[name] for name in list(batch)[:3]}
    return model, batch


@contextmanager
def recorded(monkeypatch, record):
    jax.clear_caches()  # layers that were traced for another test drop nothing here
    with monkeypatch.context() as patched:
        for user in USERS:
            module = importlib.import_module(f"jaxlm.models.{user}")
            patched.setattr(module, "dropout", record)
        yield


def ours(folder, monkeypatch):
    found = Counter()

    def record(x, rate, key):
        if rate and key is not None:  # without a key nothing is dropped
            found[rate, x.size] += 1
        return x

    model, batch = opened(folder)
    with recorded(monkeypatch, record):
        jax.eval_shape(partial(model.apply, key=jax.random.key(0)), model.shapes, batch)
    return found


@pytest.mark.parity
@pytest.mark.parametrize(
    "rates",
    [
        pytest.param(RATES, id="all given"),
        pytest.param({}, id="none given", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_drops_is_dropped_at_its_rate(
    torch, name, rates, tmp_path, monkeypatch
):
    options = {**CONFIGS[name], **ONE, **rates}
    wanted = theirs(torch, name, options, tmp_path, monkeypatch)
    assert ours(tmp_path, monkeypatch) == wanted


NULLS = [
    ("bert", "hidden_dropout_prob"),
    ("bert", "attention_probs_dropout_prob"),
    ("albert", "classifier_dropout_prob"),
    ("distilbert", "seq_classif_dropout"),
    ("modernbert", "classifier_dropout"),
    ("deberta-v2", "pooler_dropout"),
    ("gpt2", "attn_pdrop"),
    ("gpt_neox", "hidden_dropout"),
    ("t5", "dropout_rate"),
]


@pytest.mark.parametrize(("kind", "key"), NULLS)
def test_a_rate_of_null_is_refused_where_transformers_refuses_it(kind, key):
    with pytest.raises(UserError, match=f"{key}=null is not allowed; a number, at"):
        FAMILIES[kind].to_config({**BASES[kind], key: None})


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
def test_attention_of_a_llama_may_have_a_rate_of_null_which_is_none(kind):
    config = FAMILIES[kind].to_config({**BASES[kind], "attention_dropout": None})
    assert config.dropout.weights == 0.0


@pytest.mark.parametrize("kind", ["deberta-v2", "gpt_neox", "t5"])
def test_no_two_masks_are_drawn_by_one_key(kind, tmp_path, monkeypatch):
    config = {
        "model_type": kind,
        **BASES[kind],
        **ONE,
        **RATES,
        "conv_kernel_size": 3,
        "conv_act": "tanh",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = []

    def record(x, rate, key):
        if rate:
            found.append(jax.random.key_data(key).tobytes())
        return x

    model, batch = opened(tmp_path)
    params = jax.jit(model.init)(jax.random.key(0))
    with recorded(monkeypatch, record), jax.disable_jit():
        model.apply(params, batch, key=jax.random.key(0))
    assert len(found) == len(set(found)) >= 4
