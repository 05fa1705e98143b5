"""Exports of checkpoints as they are: the names and bits of every family."""

from __future__ import annotations

import json

import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.safetensors import open_weights
from jaxlm.core.shards import parse_size
from jaxlm.experiment.exporting import language_class
from jaxlm.models.exporting import param_tensors
from jaxlm.models.families import FAMILIES
from jaxlm.models.pretrained import load
from tests.models.families import CASES

NAMES = [
    "Bert-pretraining", "Roberta-text", "XLMRoberta-tokens", "DistilBert-text",
    "Albert-pretraining", "Electra-detector", "ModernBert-mean", "DebertaV2-newer-head",
    "DebertaV2-text", "GPT2-untied", "GPT2-text", "GPTNeoX-causal", "Llama-tokens",
    "Mistral-tied", "Qwen2-causal", "Qwen3-causal", "Gemma2-causal", "Gemma3-causal",
    "T5-relu", "T5-gated", "MT5-gated", "Bert-answers",
]  # fmt: skip


def tensors(folder):
    files = open_weights(folder)
    return {name: files.read(name) for name in files.names}


def same(ours, theirs):
    assert list(sorted(ours)) == list(sorted(theirs))
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape, name
        assert ours[name].tobytes() == value.tobytes(), name


def built(torch, name, folder):
    """The model of a case, every parameter random."""
    import transformers

    case = CASES[name]
    kind = getattr(transformers, case.model)
    torch.manual_seed(1)
    theirs = kind(kind.config_class(**case.config)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    theirs.save_pretrained(folder)
    return kind


def opened(folder, kind):
    """A model of transformers that misses nothing and has nothing left."""
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not found[problem], found
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_goes_in_and_out_bit_for_bit(torch, name, call, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    kind = built(torch, name, source)
    theirs = tensors(source)
    answer = call("export", f"--model={source}", f"--output={out}")
    assert answer.code == 0, answer
    same(tensors(out), theirs)
    before, after = (json.loads((each / "config.json").read_text()) for each in
                     (source, out))  # fmt: skip
    assert after == before
    has = (source / "generation_config.json").exists()
    assert (out / "generation_config.json").exists() == has
    opened(out, kind)
    # Through our own parameters, as a run goes.
    model = load(str(out), scan=True)
    written = param_tensors(model.checkpoint, model.params, model.head, "fp32")
    ours = {tensor.name: tensor.read() for tensor in written}
    if name.endswith("pretraining"):  # whose second head we have no use for
        beside = ("pooler", "sop_classifier", "seq_relationship")
        theirs = {
            each: value
            for each, value in theirs.items()
            if not any(part in each for part in beside)
        }
    same(ours, theirs)


def test_names_of_classes_are_those_of_transformers(torch):
    from transformers.models.auto import modeling_auto as auto

    kinds = {"tokens": "TOKEN_CLASSIFICATION", "text": "SEQUENCE_CLASSIFICATION"}
    kinds |= {"answers": "QUESTION_ANSWERING"}
    for kind, name in kinds.items():
        theirs = getattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES")
        for family in FAMILIES.values():
            ours = family.class_name(kind)
            if kind in family.heads:
                assert ours == theirs.get(family.model_type), (family.model_type, kind)


def test_language_models_have_the_classes_of_transformers(torch):
    """As its own tables have them, which are hidden where there is no PyTorch."""
    from transformers.models.auto import modeling_auto as auto

    masked = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    for family in FAMILIES.values():
        kind = family.model_type
        assert language_class(family, causal=False) == masked.get(kind), kind
        assert language_class(family, causal=True) == causal.get(kind), kind


def test_the_classifier_of_texts_has_a_bias_where_transformers_has_one():
    for name, case in CASES.items():
        if name.endswith(("-text", "-mean")):
            kind = case.model.partition("For")[0]
            (family,) = [each for each in FAMILIES.values() if each.stem == kind]
            config = family.to_config({**case.config, "model_type": family.model_type})
            own = "classifier/bias" in {row.ours for row in family.heads["text"]}
            assert config.pooling.classifier_bias == own, name


def test_sizes_are_read_as_transformers_reads_them():
    assert [parse_size(each) for each in ("5GB", "1.5kb", "2MiB", 7, "30")] == [
        5_000_000_000, 1500, 2 * 2**20, 7, 30
    ]  # fmt: skip
    for text in ("", "GB", "-1GB", "1 PB", "1e3", "0.1"):
        with pytest.raises(UserError):
            parse_size(text)
