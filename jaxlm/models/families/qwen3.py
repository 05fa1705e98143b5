"""Qwen3 (arXiv:2505.09388): Llama with norms on every head's queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import llama
from jaxlm.models.families.base import norm
from jaxlm.models.families.qwen2 import windowed


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``Qwen3Config`` of transformers to ours."""
    defaults = {"head_dim": 128, "max_position_embeddings": 32_768}
    config = llama.to_config({**defaults, **hf, "mlp_bias": False})
    return replace(windowed(config, hf), query_key_norm=True)


QUERY_KEY_NORMS = (
    *norm("layers/attention/query_norm", f"{llama.ATTENTION}.q_norm", bias=False),
    *norm("layers/attention/key_norm", f"{llama.ATTENTION}.k_norm", bias=False),
)
QWEN3 = replace(
    llama.LLAMA,
    model_type="qwen3",
    stem="Qwen3",
    to_config=to_config,
    weights=(*llama.LLAMA.weights, *QUERY_KEY_NORMS),
)
