"""Token classification (NER): a label for every word, by its first sub-token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from jaxlm.data.tags import spans
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.windows import Windowing
from jaxlm.models.heads import Head
from jaxlm.tasks.class_metrics import class_report, class_scores, confusion
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.entity_metrics import entity_report, entity_scores
from jaxlm.tasks.losses import correct, cross_entropy

IGNORED = -1
"""The label of tokens that do not count: special, padding, not first of their word."""
OUTSIDE = "O"


class TokenClassification:
    """Words to labels; entity types become ``B-`` and ``I-`` labels beside ``O``.

    Per-token field: ``labels i32[B, S]``, -1 where ignored (Devlin et al., 2019,
    section 5.3: the first sub-token of a word speaks for it).
    """

    name = "token_classification"
    content, target, least_labels = "tokens", "labels", 1
    headline = "f1"
    pooler = False
    fills = {"labels": IGNORED}

    def __init__(
        self, types: Sequence[str], tokenizer: Tokenizer, windowing: Windowing
    ):
        pairs = [f"{prefix}-{kind}" for kind in types for prefix in "BI"]
        self.types = list(types)
        self.labels = [OUTSIDE, *pairs]
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.tokenizer, self.windowing = tokenizer, windowing

    @classmethod
    def make(
        cls,
        config: TaskConfig,
        labels: Sequence[str],
        tokenizer: Tokenizer,
        windowing: Windowing,
    ) -> TokenClassification:
        """Build from the config and the resolved label set."""
        del config
        return cls(labels, tokenizer, windowing)

    @staticmethod
    def label_set(records: Iterable[Record]) -> list[str]:
        """The entity types of labelled records, sorted."""
        labels = {label for record in records for label in record.get("labels", ())}
        return sorted({label[2:] for label in labels if label != OUTSIDE})

    def encode(self, example: Record, index: int) -> Iterable[Features]:
        """See ``Task``; ``host["words"]`` lists (place in window, word) pairs."""
        if "tokens" not in example:
            raise UserError(
                f"{example['source']}: no words; token classification needs the fields"
                " tokens and labels (name yours by config.data.columns)"
            )
        pieces = self.tokenizer.words(example["tokens"])
        frame = self.tokenizer.frame
        labels = self._numbers(example)
        first = np.ones(len(pieces.ids), bool)
        first[1:] = pieces.words[1:] != pieces.words[:-1]
        wanted = np.where(first, labels[pieces.words], IGNORED) if len(first) else first
        windows = self.windowing.cut(len(pieces.ids), example["source"])
        for number, window in enumerate(windows):
            cut = slice(window.start, window.stop)
            place = np.arange(window.start, window.stop)
            owned = (place >= window.first) & (place < window.last)
            spoken = np.flatnonzero(owned & first[cut])
            inner = np.where(owned, wanted[cut], IGNORED)
            before = [IGNORED] * len(frame.before)
            after = [IGNORED] * len(frame.after)
            yield Features(
                tokens={
                    "tokens": np.array(
                        [*frame.before, *pieces.ids[cut], *frame.after], np.int32
                    ),
                    "labels": np.array([*before, *inner, *after], np.int32),
                },
                host={
                    "index": index,
                    "window": number,
                    "places": spoken + len(frame.before),
                    "words": pieces.words[cut][spoken],
                    "truncated": windows[-1].stop < len(pieces.ids),
                },
            )

    def _numbers(self, example: Record) -> np.ndarray:
        """Labels as numbers, i32[words]; -1 for a record without labels."""
        if example.get("labels") is None:
            return np.full(len(example["tokens"]), IGNORED, np.int32)
        for label in example["labels"]:
            if label not in self.numbers:
                raise UserError(
                    f"{example['source']}: unknown label {label!r}; the model knows"
                    f" {', '.join(self.labels)}"
                )
        return np.array([self.numbers[label] for label in example["labels"]], np.int32)

    def build(self, backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """A linear map over every token."""
        return Head(backbone, "hidden", len(self.labels), rngs)

    @staticmethod
    def stride(max_length: int) -> int:
        """Tokens that two windows of an example share by default."""
        return max_length // 4

    def present(self, batch: Batch, key: jax.Array | None) -> Batch:
        """The batch as it is."""
        return batch

    def losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Mean cross-entropy over the words that have a token, as a sum."""
        weights = (batch["labels"] >= 0).astype(jnp.float32)
        return {"labels": cross_entropy(outputs["logits"], batch["labels"], weights)}

    def measures(self, outputs: Outputs, batch: Batch) -> Losses:
        """The share of words with the right label."""
        weights = (batch["labels"] >= 0).astype(jnp.float32)
        return {"accuracy": correct(outputs["logits"], batch["labels"], weights)}

    def infer(
        self,
        apply: Apply,
        params: Params,
        batch: Batch,
        key: jax.Array | None = None,
    ) -> Outputs:
        """The best label of every token, and its probability."""
        outputs = apply(params, batch, key)
        probabilities = jax.nn.softmax(outputs["logits"], axis=-1)
        return {
            **outputs,
            "tokens/label": jnp.argmax(probabilities, -1).astype(jnp.int32),
            "tokens/score": jnp.max(probabilities, -1),
        }

    def decode(
        self, outputs: Mapping[str, np.ndarray], features: Features
    ) -> list[tuple[int, int, float]]:
        """(word, label, probability) for each word that the window owns."""
        places = features.host["places"]
        return list(
            zip(
                features.host["words"].tolist(),
                outputs["label"][places].tolist(),
                outputs["score"][places].tolist(),
                strict=True,
            )
        )

    def combine(
        self, example: Record, pieces: Sequence[list[tuple[int, int, float]]]
    ) -> Prediction:
        """A label for every word of the example, and its entities.

        A word that no token stands for (cut off, or of characters that the tokenizer
        drops) is O with score 0. ``entities`` have word offsets ``start``, ``stop``
        and, where the example has text, character offsets ``start_char``,
        ``stop_char``.
        """
        labels = [OUTSIDE] * len(example["tokens"])
        scores = [0.0] * len(labels)
        for piece in pieces:
            for word, number, score in piece:
                labels[word], scores[word] = self.labels[number], round(score, 6)
        entities = []
        for kind, start, stop in spans(labels):
            entity: dict[str, Any] = {
                "label": kind,
                "start": start,
                "stop": stop,
                "score": round(min(scores[start:stop]), 4),
                "text": " ".join(example["tokens"][start:stop]),
            }
            if "offsets" in example:
                begin, end = (
                    example["offsets"][start][0],
                    example["offsets"][stop - 1][1],
                )
                entity.update(start_char=begin, stop_char=end)
                entity["text"] = example["text"][begin:end]
            entities.append(entity)
        prediction: Prediction = {"id": example["id"]}
        if "text" in example:
            prediction["text"] = example["text"]
        prediction["tokens"] = list(example["tokens"])
        if example.get("labels") is not None:
            prediction["labels"] = list(example["labels"])
        return prediction | {
            "predicted": labels,
            "scores": scores,
            "entities": entities,
        }

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> Metrics:
        """Entity scores as seqeval's; means over all B-, I- and O as ``word_...``."""
        true = [example["labels"] for example in examples]
        predicted = [prediction["predicted"] for prediction in predictions]
        labels, matrix = self.confusion(predictions, examples)
        words = class_scores(matrix, labels)
        means = {
            f"word_{name}": value
            for name, value in words.items()
            if name.startswith(("macro_", "weighted_"))
        }
        return {**entity_scores(true, predicted), **means}

    def metric_names(self) -> list[str]:
        """The names in ``score`` where every type occurs."""
        labels = [label for label in self.labels if label.startswith("B-")]
        return list(self.score([{"predicted": labels}], [{"labels": labels}]))

    def confusion(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> tuple[list[str], np.ndarray]:
        """Word-level confusion: labels and i64[L, L], rows true."""
        true = [label for example in examples for label in example["labels"]]
        predicted = [label for each in predictions for label in each["predicted"]]
        return self.labels, confusion(true, predicted, self.labels)

    def report(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> str:
        """Entity P/R/F1 by type, and the word-level report in sklearn's layout."""
        labels, matrix = self.confusion(predictions, examples)
        entities = entity_report(self.score(predictions, examples))
        words = class_report(matrix, labels, micro=True)
        return f"Entities\n{entities}\nWords\n{words}"
