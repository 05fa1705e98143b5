"""Mistral (Jiang et al., 2023, arXiv:2310.06825): Llama with a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import llama
from jaxlm.models.families.base import optional


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``MistralConfig`` of transformers to ours; its ``sliding_window`` may be null."""
    defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131_072}
    hf = {**defaults, "sliding_window": 4096, **hf}
    config = llama.to_config({**hf, "attention_bias": False, "mlp_bias": False})
    window = optional(hf, "sliding_window", int, least=1)
    if window is None:
        return config
    return replace(config, pattern=llama.sliding(config, ["sliding_attention"], window))


MISTRAL = replace(
    llama.LLAMA, model_type="mistral", stem="Mistral", to_config=to_config
)
