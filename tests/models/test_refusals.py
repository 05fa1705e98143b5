"""An option of a config.json that a family lacks is refused by name, never ignored."""

import math

import pytest

from jaxlm.core.errors import UserError
from jaxlm.models.families import DECODERS, FAMILIES
from tests.models import families

BASES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), families.ENCODER),
    "albert": families.ENCODER,
    "distilbert": families.DISTILBERT,
    "modernbert": families.MODERNBERT,
    "deberta-v2": families.DEBERTA,
    **{family.model_type: families.DECODER for family in DECODERS},
    "gpt2": families.GPT2,
    **dict.fromkeys(("t5", "mt5"), families.T5),
}

LACKED = [
    ("bert", "position_embedding_type", "relative_key"),
    ("bert", "is_decoder", True),
    ("bert", "add_cross_attention", True),
    ("bert", "hidden_act", "mish"),
    ("bert", "hidden_act", ["gelu"]),
    ("bert", "num_attention_heads", 5),
    ("bert", "hidden_size", 24.5),
    ("bert", "hidden_dropout_prob", 1.0),
    ("bert", "tie_word_embeddings", "yes"),
    ("bert", "num_hidden_layers", 1_000_000),
    *(("bert", "num_hidden_layers", each) for each in (True, "3", 3.0, [3], None)),
    *(("gpt2", "vocab_size", each) for each in (10**12, True, "61", 61.0, -1, None)),
    ("deberta-v2", "type_vocab_size", 2.0),
    ("roberta", "position_embedding_type", "relative_key_query"),
    ("roberta", "max_position_embeddings", 2),
    ("xlm-roberta", "is_decoder", True),
    ("electra", "position_embedding_type", "relative_key"),
    ("electra", "embedding_size", 0),
    ("albert", "inner_group_num", 2),
    ("albert", "num_hidden_groups", 2),
    ("distilbert", "activation", "mish"),
    ("distilbert", "n_heads", 5),
    ("modernbert", "layer_types", ["full_attention"] * 2),
    ("modernbert", "layer_types", ["full_attention", "chunked_attention", "mamba"]),
    ("modernbert", "classifier_pooling", "max"),
    ("modernbert", "hidden_activation", "mish"),
    ("deberta-v2", "relative_attention", False),
    ("deberta-v2", "pos_att_type", ["p2p"]),
    ("deberta-v2", "norm_rel_ebd", "batch_norm"),
    ("deberta-v2", "conv_kernel_size", 4),
    ("deberta-v2", "attention_head_size", 7),
    ("deberta-v2", "position_buckets", 3),
    ("gpt2", "add_cross_attention", True),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "activation_function", "mish"),
    ("gpt2", "n_head", 5),
    ("gpt_neox", "hidden_act", "mish"),
    ("gpt_neox", "num_attention_heads", 5),
    ("llama", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
    ("llama", "rope_parameters", {"rope_type": "proportional", "rope_theta": 100.0}),
    ("llama", "rope_scaling", "linear"),
    ("llama", "num_key_value_heads", 2),
    ("llama", "hidden_act", "mish"),
    ("mistral", "sliding_window", 0),
    ("qwen2", "use_sliding_window", "no"),
    ("qwen3", "rope_scaling", {"type": "dynamic"}),
    ("gemma2", "layer_types", ["full_attention"] * 4),
    ("gemma2", "use_bidirectional_attention", True),
    ("gemma2", "hidden_activation", "mish"),
    ("gemma3_text", "layer_types", ["sliding_attention"]),
    ("gemma3_text", "use_bidirectional_attention", True),
    ("t5", "feed_forward_proj", "gated-mish"),
    ("t5", "is_encoder_decoder", False),
    ("mt5", "feed_forward_proj", "maxout"),
]
ASKED_AS = {"rope_scaling": "rope_", "rope_parameters": "rope_type"}


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
SCALED = [
    (LLAMA3, "low_freq_factor", 4.0),
    (LLAMA3, "high_freq_factor", 0.5),
    (YARN, "mscale", "1"),
    (YARN, "mscale_all_dim", [1]),
    # By it 1 + 0.1 of its product with the logarithm of the factor would be 0.
    (YARN, "mscale_all_dim", -10 / math.log(4)),
]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_base_is_taken_so_that_it_is_the_option_that_is_refused(kind):
    config = FAMILIES[kind].to_config({**BASES[kind]})
    assert config.vocab_size == 61


@pytest.mark.parametrize(("kind", "option", "value"), LACKED)
def test_an_option_that_we_lack_is_refused_by_name(kind, option, value):
    with pytest.raises(UserError) as refused:
        FAMILIES[kind].to_config({**BASES[kind], option: value})
    message = str(refused.value)
    assert message.startswith("config.json: ") and "\n" not in message
    assert ASKED_AS.get(option, option) in message


@pytest.mark.parametrize(("scaling", "option", "value"), SCALED)
def test_a_number_of_a_scaling_that_cannot_be_is_refused_by_name(
    scaling, option, value
):
    config = {**BASES["llama"], "rope_scaling": scaling}
    FAMILIES["llama"].to_config(config)
    with pytest.raises(UserError, match=rf"config.json: .*{option}"):
        FAMILIES["llama"].to_config(
            config | {"rope_scaling": scaling | {option: value}}
        )


def test_types_of_positions_are_read_as_transformers_reads_them():
    base, spelt = BASES["deberta-v2"], {"pos_att_type": "C2P | p2c"}
    wanted = FAMILIES["deberta-v2"].to_config(base)
    assert FAMILIES["deberta-v2"].to_config({**base, **spelt}) == wanted


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_size_that_is_missing_is_named(kind):
    config = {name: BASES[kind][name] for name in BASES[kind] if name != "vocab_size"}
    with pytest.raises(UserError, match="vocab_size is missing"):
        FAMILIES[kind].to_config(config)
