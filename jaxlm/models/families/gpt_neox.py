"""GPT-NeoX and Pythia (arXiv:2204.06745, 2304.01373): rotary in part, parallel."""

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
    linear,
    norm,
    rate,
    read,
    require,
)
from jaxlm.models.families.rope import read_rope


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``GPTNeoXConfig`` of transformers to ours."""
    require(hf, "is_causal", {True: None})
    size = partial(read, hf, kind=int, least=1)
    hidden = rate(hf, "hidden_dropout", 0.0)
    head_size = divide(hf, "hidden_size", "num_attention_heads")
    older = read(hf, "rotary_pct", float, 0.25)
    given = hf.get("rope_parameters") or {}
    given = given if isinstance(given, Mapping) else {}
    part = "partial_rotary_factor"
    share = read({part: older, **given}, part, float)
    base = read(hf, "rotary_emb_base", float, 10_000.0)
    rope = read_rope(hf, int(head_size * share), head_size=head_size, theta=base)
    bias = flag(hf, "attention_bias", True)
    return TransformerConfig(
        vocab_size=size("vocab_size"),
        width=size("hidden_size"),
        layers=size("num_hidden_layers", below=MOST_LAYERS + 1),
        heads=size("num_attention_heads"),
        head_size=head_size,
        mlp_width=size("intermediate_size"),
        max_positions=size("max_position_embeddings"),
        learned_positions=False,
        embedding_norm=False,
        causal=True,
        pattern=(LayerKind(rope=rope),),
        norm_epsilon=read(hf, "layer_norm_eps", float, 1e-5),
        placement="parallel" if flag(hf, "use_parallel_residual", True) else "pre",
        final_norm=True,
        activation=activation(hf, "hidden_act"),
        attention_bias=bias,
        output_bias=bias,
        pooling=Pooler(reads="last", dense=False, classifier_bias=False),
        language=LanguageHead(tied=flag(hf, "tie_word_embeddings", False)),
        dropout=Dropout(
            embeddings=hidden,
            weights=rate(hf, "attention_dropout", 0.0),
            attention=hidden,
            mlp=hidden,
            tokens=rate(hf, "classifier_dropout", 0.1),
            text=0.0,
            answers=0.0,
        ),
        initializer_range=read(hf, "initializer_range", float, 0.02),
    )


LAYER = "layers.{layer}"
FUSED = f"{LAYER}.attention.query_key_value"


def fused(ours: str, part: tuple[int, int]) -> tuple[Weight, Weight]:
    """Query, key and value lie side by side within each head."""
    return (
        Weight(f"{ours}/kernel", f"{FUSED}.weight", True, part, by_head=True),
        Weight(f"{ours}/bias", f"{FUSED}.bias", False, part, by_head=True),
    )


GPT_NEOX = Family(
    model_type="gpt_neox",
    stem="GPTNeoX",
    to_config=to_config,
    prefix="gpt_neox.",
    weights=(
        Weight("embeddings/tokens/embedding", "embed_in.weight"),
        *norm("layers/attention_norm", f"{LAYER}.input_layernorm"),
        *fused("layers/attention/query", (0, 3)),
        *fused("layers/attention/key", (1, 3)),
        *fused("layers/attention/value", (2, 3)),
        *linear("layers/attention/output", f"{LAYER}.attention.dense"),
        *norm("layers/mlp_norm", f"{LAYER}.post_attention_layernorm"),
        *linear("layers/mlp/up", f"{LAYER}.mlp.dense_h_to_4h"),
        *linear("layers/mlp/down", f"{LAYER}.mlp.dense_4h_to_h"),
        *norm("final_norm", "final_layer_norm"),
    ),
    heads={
        "language": (),
        "tokens": linear("classifier", "classifier"),
        "text": linear("classifier", "score", bias=False),
        "answers": linear("classifier", "qa_outputs"),
    },
    untied=(Weight("language/kernel", "embed_out.weight"),),
    ignored=(
        r"layers\.\d+\.attention\.(masked_)?bias",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
    # What transformers 5 calls it, though not yet in what it writes.
    renamed=((r"^lm_head\.weight$", "embed_out.weight"),),
)
