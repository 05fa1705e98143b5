"""Llama 1 to 3 (arXiv:2302.13971, arXiv:2407.21783): RMS norms, rotary, SwiGLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from jaxlm.core.errors import UserError
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
    first_rate,
    flag,
    linear,
    norm,
    optional,
    read,
    require,
)
from jaxlm.models.families.rope import read_rope


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``LlamaConfig`` of transformers to ours.

    ``pretraining_tp`` is how it was computed once, not what.
    """
    require(hf, "is_causal", {True: None})
    size = partial(read, hf, kind=int, least=1)
    heads = size("num_attention_heads")
    kv_heads = optional(hf, "num_key_value_heads", int, least=1) or heads
    if heads % kv_heads:
        raise UserError(
            f"config.json: num_attention_heads={heads} does not divide by"
            f" num_key_value_heads={kv_heads}"
        )
    head_size = optional(hf, "head_dim", int, least=2)
    head_size = head_size or divide(hf, "hidden_size", "num_attention_heads")
    bias = flag(hf, "attention_bias", False)
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        width=size("hidden_size"),
        layers=size("num_hidden_layers", below=MOST_LAYERS + 1),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_width=size("intermediate_size"),
        max_positions=size("max_position_embeddings", default=2048),
        learned_positions=False,
        embedding_norm=False,
        causal=True,
        pattern=(LayerKind(rope=read_rope(hf, head_size)),),
        norm="rms",
        norm_epsilon=read(hf, "rms_norm_eps", float, 1e-6),
        placement="pre",
        final_norm=True,
        activation=activation(hf, "hidden_act", "silu"),
        gated=True,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=flag(hf, "mlp_bias", False),
        pooling=Pooler(reads="last", dense=False, classifier_bias=False),
        language=LanguageHead(tied=flag(hf, "tie_word_embeddings", False)),
        dropout=replace(
            Dropout.of(0.0),
            weights=first_rate(hf, ["attention_dropout"], 0.0),
            tokens=first_rate(hf, ["classifier_dropout", "hidden_dropout"], 0.1),
        ),
        initializer_range=read(hf, "initializer_range", float, 0.02),
    )


LAYER = "layers.{layer}"
ATTENTION = f"{LAYER}.self_attn"

LLAMA = Family(
    model_type="llama",
    stem="Llama",
    answers_prefix="transformer.",
    to_config=to_config,
    prefix="model.",
    weights=(
        Weight("embeddings/tokens/embedding", "embed_tokens.weight"),
        *norm("layers/attention_norm", f"{LAYER}.input_layernorm", bias=False),
        *linear("layers/attention/query", f"{ATTENTION}.q_proj"),
        *linear("layers/attention/key", f"{ATTENTION}.k_proj"),
        *linear("layers/attention/value", f"{ATTENTION}.v_proj"),
        *linear("layers/attention/output", f"{ATTENTION}.o_proj"),
        *norm("layers/mlp_norm", f"{LAYER}.post_attention_layernorm", bias=False),
        *linear("layers/mlp/gate", f"{LAYER}.mlp.gate_proj"),
        *linear("layers/mlp/up", f"{LAYER}.mlp.up_proj"),
        *linear("layers/mlp/down", f"{LAYER}.mlp.down_proj"),
        *norm("final_norm", "norm", bias=False),
    ),
    heads={
        "language": (),
        "tokens": linear("classifier", "score"),
        "text": linear("classifier", "score", bias=False),
        "answers": linear("classifier", "qa_outputs"),
    },
    untied=(Weight("language/kernel", "lm_head.weight"),),
    ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq"),
    # The base of a question answerer has another name than that of the others.
    renamed=((r"^transformer\.", ""),),
)


def sliding(
    config: TransformerConfig, types: list[str], window: int
) -> tuple[LayerKind, ...]:
    """The kinds of layers some of which see the last ``window`` tokens alone."""
    rope = config.pattern[0].rope
    kinds = {
        "full_attention": LayerKind(None, rope),
        "sliding_attention": LayerKind(window - 1, rope),
    }
    return tuple(kinds[each] for each in types)
