"""What a Transformer is built from: the mathematics of every family, as plain numbers.

A family file maps a ``config.json`` to these. Sizes: ``width`` D, ``heads`` H,
``head_size`` K, ``mlp_width`` F, ``vocab_size`` V.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rope:
    """Rotary positions (Su et al., 2021, arXiv:2104.09864).

    ``frequencies``: radians a position for each pair of dimensions, the first of a head
    with those half of the rotated size further on; what is beyond them is not rotated.
    ``magnitude`` multiplies both cosine and sine (YaRN, arXiv:2309.00071).
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0


@dataclass(frozen=True)
class LayerKind:
    """In what the layers of one model differ: how far they see, how they rotate.

    ``reach`` is the greatest distance of a token that is seen; None: any.
    """

    reach: int | None = None
    rope: Rope | None = None


@dataclass(frozen=True)
class Buckets:
    """Relative positions as a bias of each head by the bucket of a distance (T5)."""

    count: int
    distance: int


@dataclass(frozen=True)
class Disentangled:
    """Attention by content and by relative position apart (DeBERTa, arXiv:2006.03654).

    ``span`` rows of the table of distances lie on either side of zero. Beyond half of
    ``buckets`` (0: none) distances up to ``distance`` share rows, logarithmically.
    """

    span: int
    buckets: int
    distance: int
    shared_projections: bool
    content_to_position: bool
    position_to_content: bool
    norm: bool


@dataclass(frozen=True)
class Convolution:
    """A convolution beside the first layer (DeBERTa-v2's largest models)."""

    size: int
    activation: str


@dataclass(frozen=True)
class Pooler:
    """A vector for every example, and what it goes through before a classifier.

    ``reads``: its ``first`` token, its ``last``, or the ``mean`` of all. ``dense`` is a
    linear map with an activation and perhaps a norm. ``every_token``: the classifier of
    tokens reads through it too (ModernBERT). ``classifier_bias``: whether the
    classifier that reads it has a bias.
    """

    reads: str = "first"
    dense: bool = True
    activation: str = "tanh"
    bias: bool = True
    norm: bool = False
    every_token: bool = False
    classifier_bias: bool = True


@dataclass(frozen=True)
class LanguageHead:
    """From hidden states to logits of the vocabulary.

    ``transform``: a linear map to the width of the embedding, an activation, a norm
    (none where ``activation`` is empty). ``tied``: the table of tokens is the last
    kernel. Logits are ``cap * tanh(logits / cap)`` where there is a cap.
    """

    activation: str = ""
    transform_bias: bool = True
    bias: bool = False
    tied: bool = True
    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True)
class Dropout:
    """Rates of dropout, named for what is dropped.

    ``embeddings``: what the layers are given. ``weights``: those of attention.
    ``attention`` and ``mlp``: what each of them adds. ``inner``: what an mlp has
    between its maps. ``pooler``: what a pooler reads. ``tokens``, ``text`` and
    ``answers``: what the classifier of these reads.
    """

    embeddings: float = 0.1
    weights: float = 0.1
    attention: float = 0.1
    mlp: float = 0.1
    inner: float = 0.0
    pooler: float = 0.0
    tokens: float = 0.1
    text: float = 0.1
    answers: float = 0.1

    @classmethod
    def of(cls, rate: float) -> Dropout:
        """One rate for embeddings, layers and head."""
        return cls(*[rate] * 4, tokens=rate, text=rate, answers=rate)


@dataclass(frozen=True)
class TransformerConfig:
    """The mathematics of one Transformer; families map their ``config.json`` to it."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    kv_heads: int = 0
    """Heads of keys and values, shared by queries, arXiv:2305.13245 (0 means heads)."""
    head_size: int = 0
    """By default what the heads leave of the width."""

    # What tokens become.
    vocab_rows: int = 0
    """Rows of the tables of tokens, padding included (0 means vocab_size)."""
    embedding_width: int = 0
    """Of the table of tokens (0 means width)."""
    embedding_scale: float = 1.0
    embedding_norm: bool = True
    projected: bool = False
    """Whether it is projected to the width of the layers; wherever that is another."""
    projection: str = "after_norm"
    """Where: after_norm, or before_norm."""
    projection_bias: bool = True
    type_vocab_size: int = 0
    learned_positions: bool = True
    position_offset: int = 0
    """Rows of the table of positions before the first (RoBERTa)."""
    position_rows: int = 0
    """Rows of that table (0 means those of the positions and the offset)."""

    # What a layer computes.
    causal: bool = False
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    """The kinds of the layers, in order, repeated."""
    norm: str = "layer"
    norm_epsilon: float = 1e-12
    norm_bias: bool = True
    norm_offset: float = 0.0
    """Added to the scale of every norm (Gemma)."""
    placement: str = "post"
    """Where the norms are: post, pre, sandwich (before and after), or parallel."""
    first_norm: bool = True
    """Whether the first layer's attention has a norm before it (ModernBERT: not)."""
    final_norm: bool = False
    activation: str = "gelu"
    gated: bool = False
    attention_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    query_key_norm: bool = False
    score_scale: float = 0.0
    """What scores are multiplied by (0 means ``1 / sqrt(head_size)``)."""
    score_cap: float | None = None
    buckets: Buckets | None = None
    disentangled: Disentangled | None = None
    convolution: Convolution | None = None
    repeats: int = 1
    """How often every layer is run, one run after another (ALBERT)."""
    cross_attention: bool = False

    # What is around the layers.
    pooler: bool = False
    """Whether the model has the pooler that ``pooling`` describes."""
    pooling: Pooler = Pooler()
    language: LanguageHead | None = None
    decoder: TransformerConfig | None = None
    """The second half of an encoder-decoder; its tokens are those of the first."""

    dropout: Dropout = Dropout()
    initializer_range: float = 0.02
    splits: tuple[int, ...] = ()
    """The layers to cut depth at; see ``stacks``."""

    def __post_init__(self) -> None:
        head_size = self.head_size or self.width // self.heads
        defaults = {
            "vocab_rows": self.vocab_size,
            "kv_heads": self.heads,
            "head_size": head_size,
            "embedding_width": self.width,
            "position_rows": self.max_positions + self.position_offset,
            "score_scale": head_size**-0.5,
        }
        if self.embedding_width not in (0, self.width):
            defaults["projected"] = True
        for name, value in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def stacks(self) -> tuple[int, ...]:
        """Numbers of layers in each stack: cut at ``splits``, and where blocks differ.

        A first layer without a norm, or beside a convolution, is a stack of its own.
        """
        odd = not self.first_norm or self.convolution is not None
        inner = {*self.splits, *([1] if odd and self.layers > 1 else [])}
        edges = (0, *sorted(inner), self.layers)
        return tuple(b - a for a, b in zip(edges[:-1], edges[1:], strict=True))

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The different kinds of layers."""
        return tuple(dict.fromkeys(self.pattern))

    def kind(self, layer: int) -> int:
        """Which of ``kinds`` a layer is, counted from 0."""
        return self.kinds.index(self.pattern[layer % len(self.pattern)])
