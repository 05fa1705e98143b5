"""BERT (Devlin et al., 2019, arXiv:1810.04805): post-norm, learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxlm.models.config import TransformerConfig
from jaxlm.models.families.base import Family, Weight, read, require

MOST_LAYERS = 1000
"""The names of every layer's weights are listed: a wrong number must not be endless."""


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``BertConfig`` of transformers to ours."""
    require(hf, "position_embedding_type", {"absolute": "learned"})
    require(hf, "is_decoder", {False: None})
    require(hf, "add_cross_attention", {False: None})
    activations = {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
    }
    size = partial(read, hf, kind=int, least=1)
    rate = partial(read, hf, kind=float, below=1)
    dropout = rate("hidden_dropout_prob", default=0.1)
    if hf.get("classifier_dropout") is None:
        head_dropout = dropout
    else:
        head_dropout = rate("classifier_dropout")
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        width=size("hidden_size"),
        layers=size("num_hidden_layers", below=MOST_LAYERS + 1),
        heads=size("num_attention_heads"),
        mlp_width=size("intermediate_size"),
        max_positions=size("max_position_embeddings"),
        type_vocab_size=size("type_vocab_size", default=2),
        activation=require(hf, "hidden_act", activations),
        norm_epsilon=read(hf, "layer_norm_eps", float, 1e-12),
        dropout=dropout,
        attention_dropout=rate("attention_probs_dropout_prob", default=0.1),
        head_dropout=head_dropout,
        initializer_range=read(hf, "initializer_range", float, 0.02),
    )


def linear(ours: str, theirs: str) -> tuple[Weight, Weight]:
    """The two rows of a linear layer."""
    return (
        Weight(f"{ours}/kernel", f"{theirs}.weight", transpose=True),
        Weight(f"{ours}/bias", f"{theirs}.bias"),
    )


def norm(ours: str, theirs: str) -> tuple[Weight, Weight]:
    """The two rows of a layer normalisation."""
    return (
        Weight(f"{ours}/scale", f"{theirs}.weight"),
        Weight(f"{ours}/bias", f"{theirs}.bias"),
    )


LAYER = "encoder.layer.{layer}"

BERT = Family(
    model_type="bert",
    to_config=to_config,
    prefix="bert.",
    weights=(
        Weight("embeddings/tokens/embedding", "embeddings.word_embeddings.weight"),
        Weight(
            "embeddings/positions/embedding", "embeddings.position_embeddings.weight"
        ),
        Weight("embeddings/types/embedding", "embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "embeddings.LayerNorm"),
        *linear("layers/attention/query", f"{LAYER}.attention.self.query"),
        *linear("layers/attention/key", f"{LAYER}.attention.self.key"),
        *linear("layers/attention/value", f"{LAYER}.attention.self.value"),
        *linear("layers/attention/output", f"{LAYER}.attention.output.dense"),
        *norm("layers/attention_norm", f"{LAYER}.attention.output.LayerNorm"),
        *linear("layers/mlp/up", f"{LAYER}.intermediate.dense"),
        *linear("layers/mlp/down", f"{LAYER}.output.dense"),
        *norm("layers/mlp_norm", f"{LAYER}.output.LayerNorm"),
        *linear("pooler", "pooler.dense"),
    ),
    ignored=(
        r"embeddings\.position_ids",
        r"pooler\.dense\.(weight|bias)",
        r"cls\..*",
        r"(classifier|qa_outputs)\.(weight|bias)",
    ),
    renamed=(
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
)
