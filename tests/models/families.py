"""Small random models of every family, as transformers builds them.

A case is a class of transformers, and what its config changes: head counts, biases,
activations, ties, windows. Numbers are odd where nothing asks for even ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ENCODER = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 41,
}
DECODER = {**ENCODER, "head_dim": 10, "num_key_value_heads": 1}
GPT2 = {
    "vocab_size": 61,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 41,
}
T5 = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 37,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 15,
}
DISTILBERT = {
    "vocab_size": 61,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 3,
    "hidden_dim": 37,
    "max_position_embeddings": 41,
}
MODERNBERT = {
    **ENCODER,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
DEBERTA = {
    **ENCODER,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
V3 = {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


@dataclass(frozen=True)
class Case:
    """A class of transformers and its config; ``least`` is the first token drawn."""

    model: str
    config: dict[str, Any] = field(default_factory=dict)
    least: int = 3


def cases(base: dict[str, Any], prefix: str, variants: dict[str, Any]) -> dict:
    """Cases by ``Prefix-variant``; a variant is (what the class ends in, changes)."""
    return {
        f"{prefix}-{name}": Case(f"{prefix}{end}", {**base, **changes})
        for name, (end, changes) in variants.items()
    }


HEADS = {
    "tokens": ("ForTokenClassification", {"num_labels": 5}),
    "text": ("ForSequenceClassification", {"num_labels": 5, "pad_token_id": 0}),
}
MASKED = {
    "masked": ("ForMaskedLM", {}),
    "untied": ("ForMaskedLM", {**UNTIED, "num_attention_heads": 4}),
}
NARROW = {"embedding_size": 17}

CASES: dict[str, Case] = {
    **cases(
        ENCODER,
        "Bert",
        {
            **MASKED,
            "pretraining": ("ForPreTraining", {"hidden_act": "gelu_new"}),
            "answers": ("ForQuestionAnswering", {"hidden_act": "relu"}),
            **HEADS,
        },
    ),
    **cases(ENCODER, "Roberta", {**MASKED, **HEADS}),
    **cases(ENCODER, "XLMRoberta", {**MASKED, **HEADS}),
    **cases(
        DISTILBERT,
        "DistilBert",
        {
            "masked": ("ForMaskedLM", {}),
            "untied": ("ForMaskedLM", {**UNTIED, "n_heads": 4, "activation": "relu"}),
            "sinusoidal": ("ForMaskedLM", {"sinusoidal_pos_embds": True}),
            **HEADS,
        },
    ),
    **cases(
        {**ENCODER, **NARROW},
        "Albert",
        {
            **MASKED,
            "groups": ("ForMaskedLM", {"num_hidden_layers": 4, "num_hidden_groups": 2}),
            "same-width": ("ForMaskedLM", {"embedding_size": 24}),
            "pretraining": ("ForPreTraining", {}),
            **HEADS,
        },
    ),
    **cases(
        ENCODER,
        "Electra",
        {
            "masked": ("ForMaskedLM", {"embedding_size": 24}),
            "narrow": ("ForMaskedLM", {**NARROW, "num_attention_heads": 4}),
            "untied": ("ForMaskedLM", {**NARROW, **UNTIED}),
            "detector": ("ForPreTraining", {**NARROW, "hidden_act": "relu"}),
            "tokens": ("ForTokenClassification", {"num_labels": 5, **NARROW}),
            "text": ("ForSequenceClassification", {"num_labels": 5}),
        },
    ),
    **cases(
        MODERNBERT,
        "ModernBert",
        {
            "masked": ("ForMaskedLM", {"num_hidden_layers": 7}),
            "untied": ("ForMaskedLM", {**UNTIED, "num_attention_heads": 4}),
            "biased": (
                "ForMaskedLM",
                {
                    "attention_bias": True,
                    "mlp_bias": True,
                    "norm_bias": True,
                    "classifier_bias": True,
                    "num_attention_heads": 2,
                },
            ),
            "tokens": ("ForTokenClassification", {"num_labels": 5}),
            "text": ("ForSequenceClassification", {"num_labels": 5}),
            "mean": (
                "ForSequenceClassification",
                {"num_labels": 5, "classifier_pooling": "mean"},
            ),
        },
    ),
    **cases(
        DEBERTA,
        "DebertaV2",
        {
            "masked": ("ForMaskedLM", V3),
            "projections": ("ForMaskedLM", {"num_attention_heads": 4}),
            "c2p": ("ForMaskedLM", {"pos_att_type": ["c2p"], "type_vocab_size": 2}),
            "short": ("ForMaskedLM", {**V3, "max_relative_positions": 11}),
            "positions": ("ForMaskedLM", {**V3, "position_biased_input": True}),
            "convolution": ("ForMaskedLM", {**V3, "conv_kernel_size": 3}),
            "narrow": ("ForMaskedLM", {**V3, **NARROW}),
            "newer-head": ("ForMaskedLM", {**V3, "legacy": False}),
            "tokens": ("ForTokenClassification", {"num_labels": 5, **V3}),
            "text": ("ForSequenceClassification", {"num_labels": 5, **V3}),
        },
    ),
    **cases(
        GPT2,
        "GPT2",
        {
            "causal": ("LMHeadModel", {}),
            "untied": ("LMHeadModel", {**UNTIED, "n_head": 4, "n_inner": 41}),
            "unscaled": ("LMHeadModel", {"scale_attn_weights": False}),
            "relu": ("LMHeadModel", {"activation_function": "relu"}),
            "tokens": ("ForTokenClassification", {"num_labels": 5}),
            "text": ("ForSequenceClassification", {"num_labels": 5, "pad_token_id": 0}),
        },
    ),
    **cases(
        {**ENCODER, "hidden_size": 48},
        "GPTNeoX",
        {
            "causal": ("ForCausalLM", {}),
            "tied": ("ForCausalLM", {**TIED, "num_attention_heads": 4}),
            "serial": ("ForCausalLM", {"use_parallel_residual": False}),
            "unbiased": ("ForCausalLM", {"attention_bias": False}),
            "tokens": ("ForTokenClassification", {"num_labels": 5}),
        },
    ),
    **cases(
        DECODER,
        "Llama",
        {
            "causal": ("ForCausalLM", {}),
            "tied": ("ForCausalLM", {**TIED, "num_key_value_heads": 3}),
            "biased": (
                "ForCausalLM",
                {
                    "attention_bias": True,
                    "mlp_bias": True,
                    "num_attention_heads": 6,
                    "num_key_value_heads": 2,
                },
            ),
            "llama3": ("ForCausalLM", {"rope_parameters": LLAMA3}),
            "linear": (
                "ForCausalLM",
                {
                    "rope_parameters": {
                        "rope_type": "linear",
                        "rope_theta": 100.0,
                        "factor": 2.0,
                    }
                },
            ),
            "yarn": ("ForCausalLM", {"rope_parameters": YARN}),
            "tokens": ("ForTokenClassification", {"num_labels": 5}),
            "text": ("ForSequenceClassification", {"num_labels": 5, "pad_token_id": 0}),
        },
    ),
    **cases(
        {**DECODER, "sliding_window": 5},
        "Mistral",
        {
            "causal": ("ForCausalLM", {}),
            "tied": ("ForCausalLM", {**TIED, "num_key_value_heads": 3}),
            "whole": ("ForCausalLM", {"sliding_window": None}),
        },
    ),
    **cases(
        {key: value for key, value in DECODER.items() if key != "head_dim"},
        "Qwen2",
        {
            "causal": ("ForCausalLM", {}),
            "tied": ("ForCausalLM", {**TIED, "num_key_value_heads": 3}),
            "sliding": (
                "ForCausalLM",
                {
                    "use_sliding_window": True,
                    "sliding_window": 5,
                    "max_window_layers": 1,
                },
            ),
        },
    ),
    **cases(
        DECODER,
        "Qwen3",
        {
            "causal": ("ForCausalLM", {}),
            "tied": ("ForCausalLM", {**TIED, "num_key_value_heads": 3}),
            "biased": ("ForCausalLM", {"attention_bias": True}),
        },
    ),
    **cases(
        {**DECODER, "sliding_window": 5},
        "Gemma2",
        {
            "causal": ("ForCausalLM", {}),
            "untied": ("ForCausalLM", {**UNTIED, "num_key_value_heads": 3}),
            "caps": (
                "ForCausalLM",
                {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
            ),
            "scalar": ("ForCausalLM", {"query_pre_attn_scalar": 17}),
        },
    ),
    **{
        name.replace("Gemma3For", "Gemma3-"): case
        for name, case in cases(
            {**DECODER, "sliding_window": 5, "num_hidden_layers": 7},
            "Gemma3",
            {
                "causal": ("ForCausalLM", {}),
                "pattern": ("ForCausalLM", {"sliding_window_pattern": 3}),
                "untied": ("ForCausalLM", {**UNTIED, "num_key_value_heads": 3}),
            },
        ).items()
    },
    **cases(
        T5,
        "T5",
        {
            "relu": ("ForConditionalGeneration", {}),
            "gated": ("ForConditionalGeneration", {"feed_forward_proj": "gated-gelu"}),
            "silu": (
                "ForConditionalGeneration",
                {"feed_forward_proj": "gated-silu", "num_heads": 4},
            ),
            "untied": (
                "ForConditionalGeneration",
                {"feed_forward_proj": "gated-gelu", **UNTIED},
            ),
        },
    ),
    **cases(
        T5,
        "MT5",
        {
            "gated": ("ForConditionalGeneration", {}),
            "relu": ("ForConditionalGeneration", {"feed_forward_proj": "relu"}),
        },
    ),
}

SLOW = {
    *("Bert-untied", "Bert-pretraining", "Bert-tokens"),
    *("Roberta-untied", "Roberta-tokens", "Roberta-text"),
    *("XLMRoberta-masked", "XLMRoberta-tokens", "XLMRoberta-text"),
    *("DistilBert-sinusoidal", "DistilBert-untied", "DistilBert-tokens"),
    *("Albert-masked", "Albert-same-width", "Albert-pretraining", "Albert-tokens"),
    *("Albert-text", "Electra-masked", "Electra-untied", "Electra-tokens"),
    *("Electra-text", "ModernBert-untied", "ModernBert-tokens", "ModernBert-text"),
    *("DebertaV2-short", "DebertaV2-positions", "DebertaV2-narrow"),
    *("DebertaV2-newer-head", "DebertaV2-tokens", "DebertaV2-c2p"),
    *("GPT2-unscaled", "GPT2-relu", "GPT2-tokens", "GPT2-text"),
    *("GPTNeoX-unbiased", "GPTNeoX-tokens", "GPTNeoX-tied"),
    *("Llama-tied", "Llama-linear", "Llama-tokens"),
    *("Mistral-whole", "Mistral-tied", "Qwen2-tied", "Qwen3-tied", "Qwen3-biased"),
    *("Gemma2-caps", "Gemma2-scalar", "Gemma2-untied", "Gemma3-untied"),
    *("T5-gated", "T5-silu", "MT5-relu"),
}
"""Cases whose parts others have too: ``pytest -m slow`` alone runs them."""
