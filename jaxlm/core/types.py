"""The nouns that every room shares: batches, features, losses, predictions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import jax
    from flax import nnx

    Array = jax.Array

Record = dict[str, Any]
"""One example as read: ``{"id", "tokens", "labels"}`` or ``{"id", "text", "label"}``.

``source`` says where it came from (``path:line``), for messages. Labels may be absent.
"""

Batch = dict[str, "Array"]
"""Device fields, leading axis B.

Per token: ``tokens i32[B, S]``, ``mask bool[B, S]`` (True = real), ``segments i32[B,
S]`` (0 = padding, 1.. = which example of the row), ``positions i32[B, S]`` (restart in
every segment), and what the task adds. Per example: ``example_mask bool[B, P]``,
``starts i32[B, P]`` (offset of the segment in its row), and what the task adds.
"""

Params = dict[str, Any]
"""Nested dicts of arrays; a leaf is named by its path: ``layers/mlp/up/kernel``."""

Outputs = dict[str, "Array"]


class LossSum(NamedTuple):
    """A loss as a sum and the weight that it is divided by, both f32[].

    The weight depends on the batch alone, never on parameters: the step sums weights
    over the whole global batch first and divides once.
    """

    total: jax.Array
    weight: jax.Array


Losses = dict[str, LossSum]


@dataclass(frozen=True)
class Features:
    """One window of one example, ready to be packed into a row.

    ``tokens`` holds per-token fields, each ``[n]`` with the same n, always with the
    field ``tokens i32[n]``. ``example`` holds per-example fields, each ``[]`` (scalar).
    ``host`` never reaches a device: ``index`` (the example's place in its data set),
    ``window`` (0, 1, ... of the example) and whatever the task needs to decode.
    """

    tokens: dict[str, np.ndarray]
    example: dict[str, np.ndarray | np.generic] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """How many tokens the window occupies in a row."""
        return len(self.tokens["tokens"])


Piece = Any
"""What a task decodes from one window; only the same task's ``combine`` reads it."""

Prediction = dict[str, Any]
"""What a task says of one example; JSON-serialisable."""

Metrics = dict[str, Any]


class Apply(Protocol):
    """A pure forward pass; ``key=None`` is deterministic (no dropout).

    ``collect`` names intermediate values that are returned beside the outputs, leading
    axis B, and are neither computed nor kept otherwise. ``cache`` is what a decoder
    remembers of earlier tokens; an encoder refuses one.
    """

    def __call__(
        self,
        params: Params,
        batch: Batch,
        key: jax.Array | None = None,
        *,
        cache: Any = None,
        collect: Collection[str] = (),
    ) -> Outputs: ...


class Task(Protocol):
    """What a task is: the only place where its labels, loss and metrics are known."""

    name: str
    content: str
    """The field that a record must have: ``tokens`` or ``text``."""
    target: str
    """The field of what is learned: ``labels``, ``label``, or the text itself."""
    headline: str
    """The metric that counts, such as ``f1``; ``-perplexity``: less is better."""
    pooler: bool
    """Whether the backbone needs its pooler."""
    labels: list[str]
    """What the head's outputs mean, in order."""
    fills: dict[str, int]
    """The padding value of the task's fields that are not padded with 0."""

    least_labels: int
    """How many labels there must be for anything to be learned."""

    @staticmethod
    def stride(max_length: int) -> int:
        """Tokens that two windows of an example share by default."""
        ...

    @classmethod
    def make(
        cls, config: Any, labels: Sequence[str], tokenizer: Any, windowing: Any
    ) -> Task:
        """Build from ``TaskConfig``, the resolved label set and the tokenizer."""
        ...

    @staticmethod
    def label_set(records: Iterable[Record]) -> list[str]:
        """The labels of labelled records, in the order of the head's outputs."""
        ...

    def encode(self, example: Record, index: int) -> Iterable[Features]:
        """Host: a record becomes one or more windows."""
        ...

    def build(self, backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """Add the head to a backbone."""
        ...

    def present(self, batch: Batch, key: jax.Array | None) -> Batch:
        """Device, pure: the whole batch as the model is shown it, masked, say.

        Outputs and losses are of what this returns. ``key=None``: as in evaluation.
        """
        ...

    def losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Device, pure: named sums and weights."""
        ...

    def measures(self, outputs: Outputs, batch: Batch) -> Losses:
        """Device, pure: sums to watch while training, such as accuracy."""
        ...

    def infer(
        self, apply: Apply, params: Params, batch: Batch, key: jax.Array | None = None
    ) -> Outputs:
        """Device: the model's outputs, and what decoding needs beside them.

        Names say how these are cut out of their row: ``tokens/... [B, S, ...]`` or
        ``example/... [B, P, ...]``.
        """
        ...

    def decode(self, outputs: Mapping[str, np.ndarray], features: Features) -> Piece:
        """Host: one piece for one window, whose outputs are cut out of their row."""
        ...

    def combine(self, example: Record, pieces: Sequence[Piece]) -> Prediction:
        """Host: the windows of one example become one prediction."""
        ...

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> Metrics:
        """Host: the field's own metrics, with the headline under its plain name."""
        ...

    def metric_names(self) -> list[str]:
        """Host: every name that ``score`` may give, whatever is in the data."""
        ...

    def confusion(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> tuple[list[str], np.ndarray] | None:
        """Host: labels and i64[L, L], rows true; None where there is no such thing."""
        ...

    def report(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> str:
        """Host: the scores as the field's usual table."""
        ...
