"""DistilBERT (Sanh et al., 2019, arXiv:1910.01108): BERT's layers, no types."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxlm.models.architecture import Dropout, LanguageHead, Pooler, TransformerConfig
from jaxlm.models.families.base import (
    MOST_LAYERS,
    Family,
    Weight,
    activation,
    divide,
    flag,
    linear,
    norm,
    rate,
    read,
)


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``DistilBertConfig`` of transformers to ours.

    ``sinusoidal_pos_embds`` says how the table of positions was made; it is stored.
    """
    size = partial(read, hf, kind=int, least=1)
    hidden = rate(hf, "dropout", 0.1)
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        width=size("dim"),
        layers=size("n_layers", below=MOST_LAYERS + 1),
        heads=size("n_heads"),
        head_size=divide(hf, "dim", "n_heads"),
        mlp_width=size("hidden_dim"),
        max_positions=size("max_position_embeddings"),
        activation=activation(hf, "activation"),
        norm_epsilon=1e-12,
        pooling=Pooler(activation="relu"),
        language=LanguageHead(
            activation=activation(hf, "activation"),
            bias=True,
            tied=flag(hf, "tie_word_embeddings", True),
        ),
        dropout=Dropout(
            embeddings=hidden,
            weights=rate(hf, "attention_dropout", 0.1),
            attention=0.0,
            mlp=hidden,
            tokens=hidden,
            text=rate(hf, "seq_classif_dropout", 0.2),
            answers=rate(hf, "qa_dropout", 0.1),
        ),
        initializer_range=read(hf, "initializer_range", float, 0.02),
    )


LAYER = "transformer.layer.{layer}"

DISTILBERT = Family(
    model_type="distilbert",
    stem="DistilBert",
    to_config=to_config,
    prefix="distilbert.",
    weights=(
        Weight("embeddings/tokens/embedding", "embeddings.word_embeddings.weight"),
        Weight(
            "embeddings/positions/embedding", "embeddings.position_embeddings.weight"
        ),
        *norm("embeddings/norm", "embeddings.LayerNorm"),
        *linear("layers/attention/query", f"{LAYER}.attention.q_lin"),
        *linear("layers/attention/key", f"{LAYER}.attention.k_lin"),
        *linear("layers/attention/value", f"{LAYER}.attention.v_lin"),
        *linear("layers/attention/output", f"{LAYER}.attention.out_lin"),
        *norm("layers/attention_norm", f"{LAYER}.sa_layer_norm"),
        *linear("layers/mlp/up", f"{LAYER}.ffn.lin1"),
        *linear("layers/mlp/down", f"{LAYER}.ffn.lin2"),
        *norm("layers/mlp_norm", f"{LAYER}.output_layer_norm"),
    ),
    heads={
        "language": (
            *linear("language/transform", "vocab_transform"),
            *norm("language/norm", "vocab_layer_norm"),
            Weight("language/bias", "vocab_projector.bias"),
        ),
        "tokens": linear("classifier", "classifier"),
        "text": (
            *linear("backbone/pooler", "pre_classifier"),
            *linear("classifier", "classifier"),
        ),
        "answers": linear("classifier", "qa_outputs"),
    },
    untied=(Weight("language/kernel", "vocab_projector.weight"),),
    ignored=(r"embeddings\.position_ids",),
    renamed=(
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
)
