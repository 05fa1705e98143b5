"""Gemma 3, its text models (arXiv:2503.19786): five local layers to a global one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.models.architecture import LayerKind, TransformerConfig
from jaxlm.models.families import gemma2, qwen3
from jaxlm.models.families.base import read
from jaxlm.models.families.rope import read_rope


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``Gemma3TextConfig`` of transformers to ours.

    Local layers rotate by a base of their own, without the scaling of global ones.
    """
    hf = {**gemma2.DEFAULTS, "max_position_embeddings": 131_072, **hf}
    every = read(hf, "sliding_window_pattern", int, 6, least=1)
    config = gemma2.gemma(_without_ropes(hf), every)
    local = {
        "rope_parameters": hf.get("rope_parameters"),
        "rope_theta": read(hf, "rope_local_base_freq", float, 10_000.0),
    }
    ropes = {
        None: read_rope(
            hf, config.head_size, theta=1_000_000.0, layer_type="full_attention"
        ),
        "local": read_rope(local, config.head_size, layer_type="sliding_attention"),
    }
    pattern = tuple(
        LayerKind(kind.reach, ropes[None if kind.reach is None else "local"])
        for kind in config.pattern
    )
    return replace(config, pattern=pattern, query_key_norm=True)


def _without_ropes(hf: Mapping[str, Any]) -> dict[str, Any]:
    """All options but those of rotations, which differ by the kind of layer."""
    return {name: value for name, value in hf.items() if not name.startswith("rope_")}


GEMMA3 = replace(
    gemma2.GEMMA2,
    model_type="gemma3_text",
    stem="Gemma3Text",
    without=("tokens", "answers"),
    to_config=to_config,
    weights=(*gemma2.GEMMA2.weights, *qwen3.QUERY_KEY_NORMS),
)
