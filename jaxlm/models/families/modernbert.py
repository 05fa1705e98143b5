"""ModernBERT (Warner et al., 2024, arXiv:2412.13663): rotary, local and global, GeGLU.

Its first layer has no norm before attention, and all its classifiers read through a
dense layer with a norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxlm.models.architecture import (
    Dropout,
    LanguageHead,
    LayerKind,
    Pooler,
    TransformerConfig,
)
from jaxlm.models.families.base import (
    MOST_LAYERS,
    Family,
    Weight,
    activation,
    divide,
    flag,
    layer_types,
    linear,
    norm,
    rate,
    read,
    require,
)
from jaxlm.models.families.rope import read_rope

THETAS = {
    "full_attention": ("global_rope_theta", 160_000.0),
    "sliding_attention": ("local_rope_theta", 10_000.0),
}


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``ModernBertConfig`` of transformers to ours."""
    size = partial(read, hf, kind=int, least=1)
    attention = rate(hf, "attention_dropout", 0.0)
    classifier = rate(hf, "classifier_dropout", 0.0)
    head_size = divide(hf, "hidden_size", "num_attention_heads")
    layers = size("num_hidden_layers", below=MOST_LAYERS + 1)
    every = size("global_attn_every_n_layers", default=3)
    pattern = [
        "sliding_attention" if n % every else "full_attention" for n in range(layers)
    ]
    reach = size("local_attention", default=128) // 2
    kinds = {}
    for kind, (key, theta) in THETAS.items():
        rope = read_rope(
            {**hf, "rope_theta": read(hf, key, float, theta)},
            head_size,
            layer_type=kind,
        )
        kinds[kind] = LayerKind(reach if kind == "sliding_attention" else None, rope)
    head = activation(hf, "classifier_activation")
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        width=size("hidden_size"),
        layers=layers,
        heads=size("num_attention_heads"),
        head_size=head_size,
        mlp_width=size("intermediate_size"),
        max_positions=size("max_position_embeddings"),
        learned_positions=False,
        pattern=tuple(kinds[each] for each in layer_types(hf, layers, pattern)),
        norm_epsilon=read(hf, "norm_eps", float, 1e-5),
        norm_bias=flag(hf, "norm_bias", False),
        placement="pre",
        first_norm=False,
        final_norm=True,
        activation=activation(hf, "hidden_activation"),
        gated=True,
        attention_bias=flag(hf, "attention_bias", False),
        output_bias=flag(hf, "attention_bias", False),
        mlp_bias=flag(hf, "mlp_bias", False),
        pooling=Pooler(
            reads=require(hf, "classifier_pooling", {"cls": "first", "mean": "mean"}),
            activation=head,
            bias=flag(hf, "classifier_bias", False),
            norm=True,
            every_token=True,
        ),
        language=LanguageHead(
            activation=head,
            transform_bias=flag(hf, "classifier_bias", False),
            bias=flag(hf, "decoder_bias", True),
            tied=flag(hf, "tie_word_embeddings", True),
        ),
        dropout=Dropout(
            embeddings=rate(hf, "embedding_dropout", 0.0),
            weights=attention,
            attention=attention,
            mlp=0.0,
            inner=rate(hf, "mlp_dropout", 0.0),
            tokens=classifier,
            text=classifier,
            answers=classifier,
        ),
        initializer_range=read(hf, "initializer_range", float, 0.02),
    )


def fused(ours: str, theirs: str, part: tuple[int, int]) -> tuple[Weight, Weight]:
    """The rows of one linear layer of several that are one of theirs."""
    return (
        Weight(f"{ours}/kernel", f"{theirs}.weight", transpose=True, part=part),
        Weight(f"{ours}/bias", f"{theirs}.bias", part=part),
    )


LAYER = "layers.{layer}"
HEAD = (
    *linear("backbone/pooler", "head.dense"),
    *norm("backbone/pooler/norm", "head.norm"),
)

MODERNBERT = Family(
    model_type="modernbert",
    stem="ModernBert",
    to_config=to_config,
    prefix="model.",
    weights=(
        Weight("embeddings/tokens/embedding", "embeddings.tok_embeddings.weight"),
        *norm("embeddings/norm", "embeddings.norm"),
        *norm("layers/attention_norm", f"{LAYER}.attn_norm"),
        *fused("layers/attention/query", f"{LAYER}.attn.Wqkv", (0, 3)),
        *fused("layers/attention/key", f"{LAYER}.attn.Wqkv", (1, 3)),
        *fused("layers/attention/value", f"{LAYER}.attn.Wqkv", (2, 3)),
        *linear("layers/attention/output", f"{LAYER}.attn.Wo"),
        *norm("layers/mlp_norm", f"{LAYER}.mlp_norm"),
        *fused("layers/mlp/gate", f"{LAYER}.mlp.Wi", (0, 2)),
        *fused("layers/mlp/up", f"{LAYER}.mlp.Wi", (1, 2)),
        *linear("layers/mlp/down", f"{LAYER}.mlp.Wo"),
        *norm("final_norm", "final_norm"),
    ),
    heads={
        "language": (
            *linear("language/transform", "head.dense"),
            *norm("language/norm", "head.norm"),
            Weight("language/bias", "decoder.bias"),
        ),
        "tokens": (*HEAD, *linear("classifier", "classifier")),
        "text": (*HEAD, *linear("classifier", "classifier")),
        "answers": (*HEAD, *linear("classifier", "classifier")),
    },
    untied=(Weight("language/kernel", "decoder.weight"),),
)
