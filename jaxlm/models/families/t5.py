"""T5, Flan-T5 and mT5 (arXiv:1910.10683, 2210.11416, 2010.11934): relative buckets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.models.architecture import Buckets, Dropout, LanguageHead, TransformerConfig
from jaxlm.models.families.base import (
    ACTIVATIONS,
    MOST_LAYERS,
    Family,
    Weight,
    flag,
    linear,
    norm,
    optional,
    rate,
    read,
    require,
)

POSITIONS = 2**20
"""Distances beyond the last bucket are one: nothing but memory bounds the length."""


def to_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``T5Config`` of transformers to ours, its decoder within.

    Where the table of tokens is the last kernel, hidden states are scaled before it.
    transformers 5 writes ``scale_decoder_outputs`` for that, and always that they are
    tied: the weights tell (``jaxlm.models.ties``).
    """
    require(hf, "is_encoder_decoder", {True: None})
    size = partial(read, hf, kind=int, least=1)
    gated, activation = _activation(hf.get("feed_forward_proj", "relu"))
    depth = partial(size, below=MOST_LAYERS + 1)
    layers = depth("num_layers")
    tied = flag(hf, "tie_word_embeddings", True)
    scaled = flag(hf, "scale_decoder_outputs", tied)
    width = size("d_model")
    dropped = rate(hf, "dropout_rate", 0.1)
    encoder = TransformerConfig(
        vocab_size=size("vocab_size"),
        width=width,
        layers=layers,
        heads=size("num_heads"),
        head_size=size("d_kv"),
        mlp_width=size("d_ff"),
        max_positions=POSITIONS,
        learned_positions=False,
        embedding_norm=False,
        norm="rms",
        norm_epsilon=read(hf, "layer_norm_epsilon", float, 1e-6),
        placement="pre",
        final_norm=True,
        activation=activation,
        gated=gated,
        attention_bias=False,
        output_bias=False,
        mlp_bias=False,
        score_scale=1.0,
        buckets=Buckets(
            buckets := size("relative_attention_num_buckets", default=32, least=4),
            size(
                "relative_attention_max_distance", default=128, least=buckets // 2 + 1
            ),
        ),
        language=LanguageHead(tied=tied, scale=width**-0.5 if scaled else 1.0),
        dropout=replace(Dropout.of(dropped), inner=dropped),
    )
    decoder = replace(
        encoder,
        layers=optional(hf, "num_decoder_layers", int, least=1, below=MOST_LAYERS + 1)
        or layers,
        causal=True,
        cross_attention=True,
    )
    return replace(encoder, decoder=decoder)


def _activation(name: Any) -> tuple[bool, str]:
    """``gated-gelu`` to whether it is gated and our name; its gelu is GPT-2's."""
    gated = isinstance(name, str) and name.startswith("gated-")
    inner = "gelu_new" if name == "gated-gelu" else str(name).removeprefix("gated-")
    if inner not in ACTIVATIONS:
        raise UserError(
            f"config.json: feed_forward_proj={name!r} is not supported; one of"
            f" {', '.join(ACTIVATIONS)}, or one of them after gated-"
        )
    return gated, ACTIVATIONS[inner]


def attention(ours: str, theirs: str) -> tuple[Weight, ...]:
    """The rows of one attention."""
    names = {"query": "q", "key": "k", "value": "v", "output": "o"}
    return tuple(
        row
        for mine, their in names.items()
        for row in linear(f"{ours}/{mine}", f"{theirs}.{their}", bias=False)
    )


def half(ours: str, mlp: int) -> tuple[Weight, ...]:
    """The rows of the encoder or the decoder, whose mlp is part ``mlp`` of a block."""
    block, layers = f"{ours}.block.{{layer}}.layer", f"{ours}/layers"
    first = f"{ours}.block.0.layer.0.SelfAttention"
    dense = f"{block}.{mlp}.DenseReluDense"
    return (
        *attention(f"{layers}/attention", f"{block}.0.SelfAttention"),
        *norm(f"{layers}/attention_norm", f"{block}.0.layer_norm", bias=False),
        *linear(f"{layers}/mlp/gate", f"{dense}.wi_0", bias=False),
        *linear(f"{layers}/mlp/up", f"{dense}.wi_1", bias=False),
        *linear(f"{layers}/mlp/down", f"{dense}.wo", bias=False),
        *norm(f"{layers}/mlp_norm", f"{block}.{mlp}.layer_norm", bias=False),
        Weight(f"{ours}/relative/embedding", f"{first}.relative_attention_bias.weight"),
        *norm(f"{ours}/final_norm", f"{ours}.final_layer_norm", bias=False),
    )


def spell(hf: Mapping[str, Any], name: str) -> str:
    """Without a gate the first map of an mlp is ``wi``."""
    gated, _ = _activation(hf.get("feed_forward_proj", "relu"))
    return name if gated else name.replace("DenseReluDense.wi_1.", "DenseReluDense.wi.")


CROSS = "decoder.block.{layer}.layer.1"

T5 = Family(
    model_type="t5",
    stem="T5",
    to_config=to_config,
    prefix="",
    weights=(
        Weight("embeddings/tokens/embedding", "shared.weight"),
        *half("encoder", 1),
        *half("decoder", 2),
        *attention("decoder/layers/cross_attention", f"{CROSS}.EncDecAttention"),
        *norm("decoder/layers/cross_attention_norm", f"{CROSS}.layer_norm", bias=False),
    ),
    heads={"language": ()},
    untied=(Weight("language/kernel", "lm_head.weight"),),
    copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
    ignored=(
        # Of the first releases, never used.
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    ),
    # Without a gate the first map has a name of its own.
    renamed=((r"DenseReluDense\.wi\.weight$", "DenseReluDense.wi_1.weight"),),
    spell=spell,
)


def to_mt5_config(hf: Mapping[str, Any]) -> TransformerConfig:
    """``MT5Config`` of transformers to ours: gated, and hidden states never scaled."""
    hf = {"feed_forward_proj": "gated-gelu", "num_heads": 6, "num_layers": 8, **hf}
    config = to_config(hf)
    assert config.language is not None
    return replace(config, language=replace(config.language, scale=1.0))


MT5 = replace(T5, model_type="mt5", stem="MT5", to_config=to_mt5_config)
