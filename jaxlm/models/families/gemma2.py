"""Gemma 2 (arXiv:2408.00118): norms before and after, soft caps, local and global."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import llama
from jaxlm.models.families.base import (
    activation,
    layer_types,
    norm,
    optional,
    read,
    require,
)

DEFAULTS = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``Gemma2Config`` of transformers to ours."""
    hf = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **hf}
    return gemma({**DEFAULTS, **hf}, every=2)


def gemma(hf: Mapping[str, Any], every: int) -> TransformerConfig:
    """What Gemma 2 and 3 share; all but each ``every``-th layer slide."""
    require(
        {"use_bidirectional_attention": False, **_known(hf)},
        "use_bidirectional_attention",
        {False: None},
    )
    config = llama.to_config({**hf, "hidden_act": "silu", "mlp_bias": False})
    layers = config.layers
    default = ["sliding_attention", "full_attention"]
    default = [default[(layer + 1) % every == 0] for layer in range(layers)]
    window = read(hf, "sliding_window", int, least=1)
    assert config.language is not None
    cap = optional(hf, "final_logit_softcapping", float)
    return replace(
        config,
        embedding_scale=config.width**0.5,
        pattern=llama.sliding(config, layer_types(hf, layers, default), window),
        norm_offset=1.0,
        placement="sandwich",
        activation=activation(_known(hf), "hidden_activation", "gelu_pytorch_tanh"),
        score_scale=read(hf, "query_pre_attn_scalar", float, 256, least=1e-6) ** -0.5,
        score_cap=optional(hf, "attn_logit_softcapping", float),
        language=replace(config.language, cap=cap),
    )


def _known(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are not null."""
    return {name: value for name, value in hf.items() if value is not None}


GEMMA2 = replace(
    llama.LLAMA,
    model_type="gemma2",
    stem="Gemma2",
    without=("answers",),
    to_config=to_config,
    weights=(
        *(row for row in llama.LLAMA.weights if "layers/mlp_norm" not in row.ours),
        *norm(
            "layers/attention_norm_after",
            f"{llama.LAYER}.post_attention_layernorm",
            bias=False,
        ),
        *norm(
            "layers/mlp_norm", f"{llama.LAYER}.pre_feedforward_layernorm", bias=False
        ),
        *norm(
            "layers/mlp_norm_after",
            f"{llama.LAYER}.post_feedforward_layernorm",
            bias=False,
        ),
    ),
)
