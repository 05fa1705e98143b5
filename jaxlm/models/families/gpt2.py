"""GPT-2 (Radford et al., 2019): pre-norm, causal, learned positions."""

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
    first_rate,
    flag,
    linear,
    norm,
    optional,
    rate,
    read,
    require,
)


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``GPT2Config`` of transformers to ours."""
    require(hf, "scale_attn_by_inverse_layer_idx", {False: None})
    require(hf, "add_cross_attention", {False: None})
    require(hf, "is_causal", {True: None})
    size = partial(read, hf, kind=int, least=1)
    residual = rate(hf, "resid_pdrop", 0.1)
    width = size("n_embd")
    head_size = divide(hf, "n_embd", "n_head")
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        width=width,
        layers=size("n_layer", below=MOST_LAYERS + 1),
        heads=size("n_head"),
        head_size=head_size,
        mlp_width=optional(hf, "n_inner", int, least=1) or 4 * width,
        max_positions=size("n_positions"),
        embedding_norm=False,
        causal=True,
        norm_epsilon=read(hf, "layer_norm_epsilon", float, 1e-5),
        placement="pre",
        final_norm=True,
        activation=activation(hf, "activation_function", "gelu_new"),
        score_scale=head_size**-0.5 if flag(hf, "scale_attn_weights", True) else 1.0,
        pooling=Pooler(reads="last", dense=False, classifier_bias=False),
        language=LanguageHead(tied=flag(hf, "tie_word_embeddings", True)),
        dropout=Dropout(
            embeddings=rate(hf, "embd_pdrop", 0.1),
            weights=rate(hf, "attn_pdrop", 0.1),
            attention=residual,
            mlp=residual,
            tokens=first_rate(hf, ["classifier_dropout", "hidden_dropout"], 0.1),
            text=0.0,
            answers=0.0,
        ),
        initializer_range=read(hf, "initializer_range", float, 0.02),
    )


def conv1d(
    ours: str, theirs: str, part: tuple[int, int] = (0, 1)
) -> tuple[Weight, Weight]:
    """The rows of a linear layer whose kernel GPT-2 keeps as [in, out], as we do."""
    return (
        Weight(f"{ours}/kernel", f"{theirs}.weight", part=part),
        Weight(f"{ours}/bias", f"{theirs}.bias", part=part),
    )


LAYER = "h.{layer}"

GPT2 = Family(
    model_type="gpt2",
    stem="GPT2",
    to_config=to_config,
    prefix="transformer.",
    weights=(
        Weight("embeddings/tokens/embedding", "wte.weight"),
        Weight("embeddings/positions/embedding", "wpe.weight"),
        *norm("layers/attention_norm", f"{LAYER}.ln_1"),
        *conv1d("layers/attention/query", f"{LAYER}.attn.c_attn", (0, 3)),
        *conv1d("layers/attention/key", f"{LAYER}.attn.c_attn", (1, 3)),
        *conv1d("layers/attention/value", f"{LAYER}.attn.c_attn", (2, 3)),
        *conv1d("layers/attention/output", f"{LAYER}.attn.c_proj"),
        *norm("layers/mlp_norm", f"{LAYER}.ln_2"),
        *conv1d("layers/mlp/up", f"{LAYER}.mlp.c_fc"),
        *conv1d("layers/mlp/down", f"{LAYER}.mlp.c_proj"),
        *norm("final_norm", "ln_f"),
    ),
    heads={
        "language": (),
        "tokens": linear("classifier", "classifier"),
        "text": linear("classifier", "score", bias=False),
        "answers": linear("classifier", "qa_outputs"),
    },
    untied=(Weight("language/kernel", "lm_head.weight"),),
    ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
)
