"""Qwen2 and 2.5 (arXiv:2407.10671): Llama with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import llama
from jaxlm.models.families.base import flag, layer_types, read


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``Qwen2Config`` of transformers to ours."""
    fixed = {"attention_bias": True, "mlp_bias": False}
    config = llama.to_config({"max_position_embeddings": 32_768, **hf, **fixed})
    return replace(windowed(config, hf), output_bias=False)


def windowed(config: TransformerConfig, hf: Mapping[str, Any]) -> TransformerConfig:
    """With ``use_sliding_window``, the layers from ``max_window_layers`` on slide."""
    layers, first = config.layers, read(hf, "max_window_layers", int, 28)
    if not flag(hf, "use_sliding_window", False):
        return config
    window = read(hf, "sliding_window", int, 4096, least=1)
    default = ["full_attention"] * min(first, layers)
    default += ["sliding_attention"] * (layers - len(default))
    types = layer_types(hf, layers, default)
    return replace(config, pattern=llama.sliding(config, types, window))


QWEN2 = replace(llama.LLAMA, model_type="qwen2", stem="Qwen2", to_config=to_config)
