"""The FLOPs that a model needs, whatever a program spends: what MFU is measured by.

A product of a token with a matrix of N numbers is 2 N forward, 2 N for the gradient of
its input and 2 N for that of the matrix: 6 N a token, which is "6 x parameters" without
the tables that are looked up (Kaplan et al., 2020, arXiv:2001.08361; Chowdhery et al.,
2022, arXiv:2204.02311, appendix B). Attention of a token to T others is 4 T H K forward
and twice that backward. A causal token sees (S + 1) / 2 on average, one of an encoder
S. What is computed again to save memory is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.models.architecture import LayerKind, TransformerConfig


@dataclass(frozen=True)
class ModelFlops:
    """Of one token, forward: in products with matrices of layers, with those of the
    head, and in attention."""

    layers: float
    head: float
    attention: float

    @property
    def forward(self) -> float:
        return self.layers + self.head + self.attention

    def training(self, trainable: float = 1.0, reached: float = 1.0) -> float:
        """Forward and backward, the head being trained.

        ``trainable``: the share of the layers' matrices that have a gradient;
        ``reached``: the share of layers through which one goes back, as none does below
        all that is trained.
        """
        layers = (1 + reached + trainable) * self.layers
        return layers + (1 + 2 * reached) * self.attention + 3 * self.head


def model_flops(
    config: TransformerConfig,
    length: int,
    *,
    vocabulary: bool,
    labels: int = 0,
    asked: float = 1.0,
) -> ModelFlops:
    """Of one token in a row of ``length``, all of which is one text.

    ``vocabulary``: the head is that of a language model; else a classifier of
    ``labels``. ``asked`` is the share of tokens that the head is needed for.
    """
    depth = config.layers * config.repeats
    attention = sum(
        4 * seen(kind, length, config.causal) * config.heads * config.head_size
        for kind in kinds(config)
    )
    relative = config.disentangled
    if relative:  # products of each token with the rows of the table of distances
        ways = relative.content_to_position + relative.position_to_content
        attention += depth * ways * 4 * relative.span * config.heads * config.head_size
    head = 2.0 * config.width * labels
    if vocabulary and config.language is not None:
        inner = config.width
        head = 0.0
        if config.language.activation:
            inner = config.embedding_width
            head = 2.0 * config.width * inner
        head += 2.0 * inner * config.vocab_rows
    layers = 2.0 * depth * layer_matrices(config)
    if config.projected:
        layers += 2.0 * config.embedding_width * config.width
    return ModelFlops(layers, asked * head, float(attention))


def layer_matrices(config: TransformerConfig) -> int:
    """Numbers in the matrices of one layer."""
    inner = config.heads * config.head_size
    shared = config.kv_heads * config.head_size
    attention = config.width * (2 * inner + 2 * shared)
    mlp = (3 if config.gated else 2) * config.width * config.mlp_width
    return attention + mlp


def kinds(config: TransformerConfig) -> list[LayerKind]:
    """The kind of each layer that is run."""
    pattern = config.pattern
    each = [pattern[layer % len(pattern)] for layer in range(config.layers)]
    return each * config.repeats


def seen(kind: LayerKind, length: int, causal: bool) -> float:
    """How many tokens a token sees on average, itself among them."""
    reach = length if kind.reach is None else min(kind.reach, length - 1)
    if kind.reach is None:
        return (length + 1) / 2 if causal else float(length)
    missing = reach * (reach + 1) / 2 / length  # at the row's beginning
    behind = reach + 1 - missing
    return behind if causal else 2 * behind - 1
