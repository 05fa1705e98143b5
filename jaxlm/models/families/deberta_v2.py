"""DeBERTa, versions 2 and 3 (arXiv:2006.03654, 2111.09543): disentangled attention.

Tokens attend by content and by relative position, each with a projection of its own or
that of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import (
    Convolution,
    Disentangled,
    Pooler,
    TransformerConfig,
)
from jaxlm.models.families import bert
from jaxlm.models.families.base import (
    Family,
    Weight,
    activation,
    first_rate,
    flag,
    linear,
    norm,
    rate,
    read,
    require,
)


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``DebertaV2Config`` of transformers to ours."""
    require(hf, "relative_attention", {True: None})
    types = hf.get("type_vocab_size") or 0
    config = bert.to_config(
        {"layer_norm_eps": 1e-7, **hf, "type_vocab_size": types or 1}
    )
    require(hf, "attention_head_size", {config.head_size: None})
    require(hf, "pooler_hidden_size", {config.width: None})
    taps = read(hf, "conv_kernel_size", int, 0)
    if taps:
        require(hf, "conv_groups", {1: None})
        require({"conv_kernel_size": taps % 2}, "conv_kernel_size", {1: None})
    legacy = flag(hf, "legacy", True)
    width = read(hf, "embedding_size", int, config.width, least=1)
    assert config.language is not None
    return replace(
        config,
        type_vocab_size=types,
        embedding_width=width,
        projected=width != config.width,
        projection="before_norm",
        projection_bias=False,
        learned_positions=flag(hf, "position_biased_input", True),
        disentangled=_relative(hf, config.max_positions),
        convolution=Convolution(taps, activation(hf, "conv_act", "tanh"))
        if taps
        else None,
        pooling=Pooler(activation=activation(hf, "pooler_hidden_act")),
        language=config.language if legacy else replace(config.language, tied=True),
        dropout=replace(
            config.dropout,
            pooler=rate(hf, "pooler_dropout", 0.0),
            tokens=config.dropout.mlp,
            text=first_rate(hf, ["cls_dropout"], config.dropout.mlp),
        ),
        score_scale=(config.head_size * (1 + len(_kinds(hf)))) ** -0.5,
    )


def _kinds(hf: Mapping[str, Any]) -> set[str]:
    """What attends by position: c2p (content to position), p2c (the reverse)."""
    types = hf.get("pos_att_type") or []
    if isinstance(types, str):
        types = [each.strip() for each in types.lower().split("|")]
    if not isinstance(types, list) or not {"c2p", "p2c"}.issuperset(map(str, types)):
        raise UserError(
            f"config.json: pos_att_type={types!r} is not supported; allowed: c2p, p2c"
        )
    return set(types)


def _relative(hf: Mapping[str, Any], positions: int) -> Disentangled:
    distance = read(hf, "max_relative_positions", int, -1, least=-1)
    distance = positions if distance < 1 else distance
    buckets = max(read(hf, "position_buckets", int, -1, least=-1), 0)
    if buckets and (buckets < 4 or distance - 1 <= buckets // 2):
        raise UserError(
            f"config.json: position_buckets={buckets} is not allowed; 4 or more, and"
            f" half of them less than max_relative_positions - 1 ({distance - 1})"
        )
    norms = require(hf, "norm_rel_ebd", {"none": False, "layer_norm": True})
    return Disentangled(
        span=buckets or distance,
        buckets=buckets,
        distance=distance,
        shared_projections=flag(hf, "share_att_key", False),
        content_to_position="c2p" in _kinds(hf),
        position_to_content="p2c" in _kinds(hf),
        norm=norms,
    )


ATTENTION = f"{bert.LAYER}.attention.self"
PREDICTIONS = "cls.predictions"
NEWER = "lm_predictions.lm_head"


def spell(hf: Mapping[str, Any], name: str) -> str:
    """The head of ``legacy=false`` has names of its own."""
    if flag(hf, "legacy", True):
        return name
    name = name.replace(f"{PREDICTIONS}.transform.", f"{NEWER}.")
    return name.replace(f"{PREDICTIONS}.bias", f"{NEWER}.bias")


DEBERTA_V2 = Family(
    model_type="deberta-v2",
    stem="DebertaV2",
    to_config=to_config,
    prefix="deberta.",
    weights=(
        *bert.EMBEDDINGS,
        *linear("embeddings/projection", "embeddings.embed_proj", bias=False),
        *bert.LAYERS[6:],
        *linear("layers/attention/query", f"{ATTENTION}.query_proj"),
        *linear("layers/attention/key", f"{ATTENTION}.key_proj"),
        *linear("layers/attention/value", f"{ATTENTION}.value_proj"),
        *linear("layers/attention/position_key", f"{ATTENTION}.pos_key_proj"),
        *linear("layers/attention/position_query", f"{ATTENTION}.pos_query_proj"),
        *linear("layers/convolution", "encoder.conv.conv"),
        *norm("layers/convolution/norm", "encoder.conv.LayerNorm"),
        Weight("relative/embedding", "encoder.rel_embeddings.weight"),
        *norm("relative_norm", "encoder.LayerNorm"),
    ),
    heads={
        "language": (
            *linear("language/transform", f"{PREDICTIONS}.transform.dense"),
            *norm("language/norm", f"{PREDICTIONS}.transform.LayerNorm"),
            Weight("language/bias", f"{PREDICTIONS}.bias"),
        ),
        "tokens": bert.CLASSIFIER,
        "text": (*linear("backbone/pooler", "pooler.dense"), *bert.CLASSIFIER),
        "answers": bert.ANSWERS,
    },
    untied=bert.BERT.untied,
    ignored=(
        r"embeddings\.position_(ids|embeddings\.weight)",
        r"(mask|lm)_predictions\..*",
    ),
    renamed=(
        *bert.BERT.renamed,
        # The head that reads transformers' ``legacy=false``.
        (rf"^{NEWER}\.(dense|LayerNorm)\.", rf"{PREDICTIONS}.transform.\1."),
        (rf"^{NEWER}\.bias$", f"{PREDICTIONS}.bias"),
    ),
    spell=spell,
)
