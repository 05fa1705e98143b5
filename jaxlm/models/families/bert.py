"""BERT (Devlin et al., 2019, arXiv:1810.04805): post-norm, learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxlm.models.architecture import Dropout, LanguageHead, TransformerConfig
from jaxlm.models.families.base import (
    MOST_LAYERS,
    Family,
    Weight,
    activation,
    divide,
    first_rate,
    flag,
    linear,
    norm,
    rate,
    read,
    require,
)


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``BertConfig`` of transformers to ours."""
    require(hf, "position_embedding_type", {"absolute": None})
    require(hf, "is_decoder", {False: None})
    require(hf, "add_cross_attention", {False: None})
    size = partial(read, hf, kind=int, least=1)
    hidden = rate(hf, "hidden_dropout_prob", 0.1)
    head = first_rate(hf, ["classifier_dropout"], hidden)
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        width=size("hidden_size"),
        layers=size("num_hidden_layers", below=MOST_LAYERS + 1),
        heads=size("num_attention_heads"),
        head_size=divide(hf, "hidden_size", "num_attention_heads"),
        mlp_width=size("intermediate_size"),
        max_positions=size("max_position_embeddings"),
        type_vocab_size=size("type_vocab_size", default=2),
        activation=activation(hf, "hidden_act"),
        norm_epsilon=read(hf, "layer_norm_eps", float, 1e-12),
        language=LanguageHead(
            activation=activation(hf, "hidden_act"),
            bias=True,
            tied=flag(hf, "tie_word_embeddings", True),
        ),
        dropout=Dropout(
            embeddings=hidden,
            weights=rate(hf, "attention_probs_dropout_prob", 0.1),
            attention=hidden,
            mlp=hidden,
            tokens=head,
            text=head,
            answers=0.0,
        ),
        initializer_range=read(hf, "initializer_range", float, 0.02),
    )


LAYER = "encoder.layer.{layer}"
LAYERS = (
    *linear("layers/attention/query", f"{LAYER}.attention.self.query"),
    *linear("layers/attention/key", f"{LAYER}.attention.self.key"),
    *linear("layers/attention/value", f"{LAYER}.attention.self.value"),
    *linear("layers/attention/output", f"{LAYER}.attention.output.dense"),
    *norm("layers/attention_norm", f"{LAYER}.attention.output.LayerNorm"),
    *linear("layers/mlp/up", f"{LAYER}.intermediate.dense"),
    *linear("layers/mlp/down", f"{LAYER}.output.dense"),
    *norm("layers/mlp_norm", f"{LAYER}.output.LayerNorm"),
)
EMBEDDINGS = (
    Weight("embeddings/tokens/embedding", "embeddings.word_embeddings.weight"),
    Weight("embeddings/positions/embedding", "embeddings.position_embeddings.weight"),
    Weight("embeddings/types/embedding", "embeddings.token_type_embeddings.weight"),
    *norm("embeddings/norm", "embeddings.LayerNorm"),
)
CLASSIFIER = linear("classifier", "classifier")
ANSWERS = linear("classifier", "qa_outputs")
PREDICTIONS = "cls.predictions"

BERT = Family(
    model_type="bert",
    stem="Bert",
    to_config=to_config,
    prefix="bert.",
    weights=(*EMBEDDINGS, *LAYERS, *linear("pooler", "pooler.dense")),
    heads={
        "language": (
            *linear("language/transform", f"{PREDICTIONS}.transform.dense"),
            *norm("language/norm", f"{PREDICTIONS}.transform.LayerNorm"),
            Weight("language/bias", f"{PREDICTIONS}.bias"),
        ),
        "tokens": CLASSIFIER,
        "text": CLASSIFIER,
        "answers": ANSWERS,
    },
    untied=(
        Weight("language/kernel", f"{PREDICTIONS}.decoder.weight"),
        Weight("language/bias", f"{PREDICTIONS}.decoder.bias"),
    ),
    ignored=(
        r"embeddings\.position_ids",
        r"pooler\.dense\.(weight|bias)",
        r"cls\..*",
    ),
    renamed=(
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
)
