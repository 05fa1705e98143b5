"""ELECTRA (Clark et al., 2020, arXiv:2003.10555): BERT's layers as a discriminator.

Its small models have embeddings narrower than the layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxlm.models.architecture import Pooler, TransformerConfig
from jaxlm.models.families import bert
from jaxlm.models.families.base import Family, Weight, linear, norm, read


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``ElectraConfig`` of transformers to ours."""
    config = bert.to_config(hf)
    assert config.language is not None
    return replace(
        config,
        embedding_width=read(hf, "embedding_size", int, 128, least=1),
        # Its heads have this activation, whatever the layers have.
        language=replace(config.language, activation="gelu"),
        # Of texts it drops before its dense layer and after.
        dropout=replace(config.dropout, pooler=config.dropout.text),
        pooling=Pooler(activation="gelu"),
    )


GENERATOR = "generator_predictions"
DISCRIMINATOR = "discriminator_predictions"

ELECTRA = Family(
    model_type="electra",
    stem="Electra",
    to_config=to_config,
    prefix="electra.",
    weights=(
        *bert.EMBEDDINGS,
        *linear("embeddings/projection", "embeddings_project"),
        *bert.LAYERS,
    ),
    heads={
        "language": (
            *linear("language/transform", f"{GENERATOR}.dense"),
            *norm("language/norm", f"{GENERATOR}.LayerNorm"),
            Weight("language/bias", "generator_lm_head.bias"),
        ),
        "detector": (
            *linear("transform", f"{DISCRIMINATOR}.dense"),
            *linear("classifier", f"{DISCRIMINATOR}.dense_prediction"),
        ),
        "tokens": bert.CLASSIFIER,
        "text": (
            *linear("backbone/pooler", "classifier.dense"),
            *linear("classifier", "classifier.out_proj"),
        ),
        "answers": bert.ANSWERS,
    },
    untied=(Weight("language/kernel", "generator_lm_head.weight"),),
    pretraining="detector",
    ignored=(r"embeddings\.position_ids",),
    renamed=bert.BERT.renamed,
)
