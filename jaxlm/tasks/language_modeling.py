"""What masked and causal language modelling share: texts in, losses of tokens out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.core.errors import UserError
from jaxlm.core.types import (
    Apply,
    Batch,
    Features,
    Losses,
    Metrics,
    Outputs,
    Params,
    Prediction,
    Record,
)
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.windows import Windowing
from jaxlm.models.heads import LanguageModel
from jaxlm.models.places import put_back, taken
from jaxlm.tasks.losses import correct, cross_entropies, cross_entropy

FAR = 700.0
"""Nats whose exponential a float can still hold."""


class LanguageModeling(ABC):
    """Texts, of which some tokens are predicted: those whose ``labels`` are not -1.

    A text that is longer than a row is cut into rows; ``data.stride`` tokens of each
    are those of the one before. There is no label set, and the text is its own target.
    """

    name: str
    loss: str
    content, target, least_labels = "text", "text", 0
    headline = "-perplexity"
    fills: dict[str, int]
    pooler = False
    asked_share = 1.0
    """Of the tokens: how many are predicted."""
    labels: list[str] = []

    def __init__(self, tokenizer: Tokenizer, windowing: Windowing):
        self.tokenizer, self.windowing = tokenizer, windowing

    @staticmethod
    def label_set(records: Iterable[Record]) -> list[str]:
        """None: what is predicted are tokens."""
        return []

    def encode(self, example: Record, index: int) -> Iterator[Features]:
        """See ``Task``."""
        if "text" not in example:
            raise UserError(
                f"{example['source']}: no text; {self.name} needs running text (name"
                " yours by config.data.columns, as text=body)"
            )
        ids = self.tokenizer.text(example["text"])
        ids = np.append(ids, np.array(self.ending, np.int32))
        windows = self.windowing.cut(len(ids), example["source"])
        for place, window in enumerate(windows):
            before, after = self.frame(place == 0, window.stop == len(ids))
            cut = ids[window.start : window.stop]
            seen = windows[place - 1].stop - window.start if place else 0
            tokens = np.array([*before, *cut, *after], np.int32)
            span = range(len(before), len(tokens) - len(after))
            fields = self.fields(tokens, span, seen, (index, window.start))
            yield Features(
                tokens={"tokens": tokens, **fields},
                host={
                    "index": index,
                    "window": place,
                    "truncated": windows[-1].stop < len(ids),
                },
            )

    @property
    def ending(self) -> tuple[int, ...]:
        """What is written after a text, besides the frame."""
        return ()

    def frame(self, first: bool, last: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens around a row, by whether it is a text's first and last."""
        return self.tokenizer.frame.before, self.tokenizer.frame.after

    @abstractmethod
    def fields(
        self, tokens: np.ndarray, span: range, seen: int, place: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """The task's fields [n] of a row of ``tokens i32[n]``.

        ``span`` is that of the text; its first ``seen`` tokens are in the row before,
        too. ``place`` is the text's number and the row's first token in it.
        """

    def build(self, backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """The family's own head over the vocabulary.

        Raises:
          UserError: the family has none, or its tokens see what they should not.
        """
        self.check(backbone.config)  # pyright: ignore
        return LanguageModel(backbone, rngs)

    def check(self, config: Any) -> None:
        """Refuse an architecture that the task does not fit."""
        if config.language is None:
            raise UserError(
                f"config.model.pretrained: the family has no head over its vocabulary,"
                f" which {self.name} needs"
            )

    def losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Mean cross-entropy over the predicted tokens, as a sum, in nats."""
        labels = asked(outputs, batch)
        return {self.loss: cross_entropy(outputs["logits"], labels, counted(labels))}

    def measures(self, outputs: Outputs, batch: Batch) -> Losses:
        """The share of predicted tokens that are the most probable."""
        labels = asked(outputs, batch)
        return {"accuracy": correct(outputs["logits"], labels, counted(labels))}

    def infer(
        self,
        apply: Apply,
        params: Params,
        batch: Batch,
        key: jax.Array | None = None,
    ) -> Outputs:
        """Each token's cross-entropy in nats, and whether it was counted and right."""
        outputs = apply(params, batch, key)
        labels, logits = asked(outputs, batch), outputs["logits"]
        weights = counted(labels)
        hits = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        found = {
            "tokens/nats": cross_entropies(logits, labels) * weights,
            "tokens/counted": weights,
            "tokens/hits": hits * weights,
        }
        if "places" in outputs:
            places, length = outputs["places"], batch["labels"].shape[1]
            found = {
                name: put_back(value, places, length) for name, value in found.items()
            }
        return {**outputs, **found}

    def decode(
        self, outputs: Mapping[str, np.ndarray], features: Features
    ) -> np.ndarray:
        """Nats, predicted tokens and hits of a window, f64[3]."""
        names = ("nats", "counted", "hits")
        return np.array([outputs[name].sum(dtype=np.float64) for name in names])

    def combine(self, example: Record, pieces: Sequence[np.ndarray]) -> Prediction:
        """The sums over a text's windows, and its perplexity."""
        nats, tokens, hits = np.sum(pieces, axis=0).tolist()
        return {
            "id": example["id"],
            "source": example["source"],
            "tokens": int(tokens),
            "nats": round(nats, 6),
            "hits": int(hits),
            "perplexity": round(perplexity(nats, tokens), 6) if tokens else None,
        }

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> Metrics:
        """Perplexity, bits a token and accuracy over all predicted tokens."""
        sums = {
            name: sum(each[name] for each in predictions)
            for name in ("nats", "tokens", "hits")
        }
        most = max(sums["tokens"], 1)
        return {
            "perplexity": perplexity(sums["nats"], sums["tokens"]),
            "bits_per_token": sums["nats"] / most / math.log(2),
            "accuracy": sums["hits"] / most,
        }

    def metric_names(self) -> list[str]:
        """The names in ``score``, which are the same for all data."""
        return list(self.score([], []))

    def confusion(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> None:
        """None: a table of the vocabulary by itself says nothing."""
        return None

    def report(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> str:
        """The scores, a line each."""
        tokens = sum(each["tokens"] for each in predictions)
        rows = [
            f"{name:>16} {value:.4f}"
            for name, value in self.score(predictions, examples).items()
        ]
        return "\n".join([*rows, f"{'tokens':>16} {tokens:,}"])


def asked(outputs: Outputs, batch: Batch) -> jax.Array:
    """The labels of the logits, i32: of all tokens, or of those at ``places``."""
    labels = batch["labels"]
    if "places" not in outputs:
        return labels
    places, length = outputs["places"], labels.shape[1]
    return jnp.where(places < length, taken(labels, places, length), -1)


def counted(labels: jax.Array) -> jax.Array:
    """f32, 1 where a label counts."""
    return (labels >= 0).astype(jnp.float32)


def perplexity(nats: float, tokens: float) -> float:
    """The exponential of the mean cross-entropy."""
    return math.exp(min(nats / max(tokens, 1), FAR))
