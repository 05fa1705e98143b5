"""RoBERTa and XLM-RoBERTa (arXiv:1907.11692, arXiv:1911.02116): BERT, trained longer.

The first rows of the table of positions belong to padding, and a text classifier has a
dense layer of its own where BERT has its pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import TransformerConfig
from jaxlm.models.families import bert
from jaxlm.models.families.base import Family, Weight, linear, norm, read


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``RobertaConfig`` of transformers to ours."""
    config = bert.to_config({"layer_norm_eps": 1e-12, "type_vocab_size": 2, **hf})
    offset = read(hf, "pad_token_id", int, 1) + 1
    if config.max_positions <= offset:
        raise UserError(
            f"config.json: max_position_embeddings={config.max_positions} leaves no"
            f" position after the {offset} of padding"
        )
    assert config.language is not None
    return replace(
        config,
        max_positions=config.max_positions - offset,
        position_offset=offset,
        # Its head has this activation, whatever the layers have, and their epsilon.
        language=replace(config.language, activation="gelu"),
        # Of texts it drops before its dense layer and after.
        dropout=replace(config.dropout, pooler=config.dropout.text),
    )


ROBERTA = Family(
    model_type="roberta",
    stem="Roberta",
    to_config=to_config,
    prefix="roberta.",
    weights=(*bert.EMBEDDINGS, *bert.LAYERS),
    heads={
        "language": (
            *linear("language/transform", "lm_head.dense"),
            *norm("language/norm", "lm_head.layer_norm"),
            Weight("language/bias", "lm_head.bias"),
        ),
        "tokens": bert.CLASSIFIER,
        "text": (
            *linear("backbone/pooler", "classifier.dense"),
            *linear("classifier", "classifier.out_proj"),
        ),
        "answers": bert.ANSWERS,
    },
    untied=(
        Weight("language/kernel", "lm_head.decoder.weight"),
        Weight("language/bias", "lm_head.decoder.bias"),
    ),
    ignored=(r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)"),
    renamed=bert.BERT.renamed,
)
XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta", stem="XLMRoberta")
