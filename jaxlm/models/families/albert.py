"""ALBERT (Lan et al., 2020, arXiv:1909.11942): layers shared, embeddings factorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import bert
from jaxlm.models.families.base import Family, Weight, linear, norm, rate, read, require


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``AlbertConfig`` of transformers to ours: a layer for every group.

    Each is run as often as its group has layers.
    """
    require(hf, "inner_group_num", {1: None})
    defaults = {
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    head = rate(hf, "classifier_dropout_prob", 0.1)
    config = bert.to_config({**defaults, **hf, "classifier_dropout": head})
    groups = read(hf, "num_hidden_groups", int, 1, least=1)
    if config.layers % groups:
        raise UserError(
            f"config.json: num_hidden_layers={config.layers} does not divide by"
            f" num_hidden_groups={groups}"
        )
    return replace(
        config,
        layers=groups,
        repeats=config.layers // groups,
        embedding_width=read(hf, "embedding_size", int, 128, least=1),
        projected=True,
        dropout=replace(config.dropout, mlp=0.0),
    )


LAYER = "encoder.albert_layer_groups.{layer}.albert_layers.0"

ALBERT = Family(
    model_type="albert",
    stem="Albert",
    to_config=to_config,
    prefix="albert.",
    weights=(
        *bert.EMBEDDINGS,
        *linear("embeddings/projection", "encoder.embedding_hidden_mapping_in"),
        *linear("layers/attention/query", f"{LAYER}.attention.query"),
        *linear("layers/attention/key", f"{LAYER}.attention.key"),
        *linear("layers/attention/value", f"{LAYER}.attention.value"),
        *linear("layers/attention/output", f"{LAYER}.attention.dense"),
        *norm("layers/attention_norm", f"{LAYER}.attention.LayerNorm"),
        *linear("layers/mlp/up", f"{LAYER}.ffn"),
        *linear("layers/mlp/down", f"{LAYER}.ffn_output"),
        *norm("layers/mlp_norm", f"{LAYER}.full_layer_layer_norm"),
        *linear("pooler", "pooler"),
    ),
    heads={
        "language": (
            *linear("language/transform", "predictions.dense"),
            *norm("language/norm", "predictions.LayerNorm"),
            Weight("language/bias", "predictions.bias"),
        ),
        "tokens": bert.CLASSIFIER,
        "text": bert.CLASSIFIER,
        "answers": bert.ANSWERS,
    },
    untied=(
        Weight("language/kernel", "predictions.decoder.weight"),
        Weight("language/bias", "predictions.decoder.bias"),
    ),
    ignored=(
        r"embeddings\.position_ids",
        r"pooler\.(weight|bias)",
        r"sop_classifier\.classifier\.(weight|bias)",
    ),
)
