"""Text classification: one label for a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
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
from jaxlm.models.heads import Head
from jaxlm.tasks.class_metrics import class_report, class_scores, confusion
from jaxlm.tasks.config import TaskConfig
from jaxlm.tasks.losses import correct, cross_entropy

READS = {"cls": "pooled", "mean": "mean"}


class TextClassification:
    """Texts to one of L labels.

    Per-example fields: ``label i32[B, P]`` (-1 absent) and ``weight f32[B, P]``, 1 over
    the number of windows that the example was cut into, so that long texts count once.
    """

    name = "text_classification"
    content, target, least_labels = "text", "label", 2
    headline = "accuracy"
    fills = {"label": -1}

    def __init__(
        self,
        labels: Sequence[str],
        tokenizer: Tokenizer,
        windowing: Windowing,
        pooling: str = "cls",
    ):
        self.labels = list(labels)
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.tokenizer, self.windowing = tokenizer, windowing
        self.reads = READS[pooling]
        self.pooler = self.reads == "pooled"

    @classmethod
    def make(
        cls,
        config: TaskConfig,
        labels: Sequence[str],
        tokenizer: Tokenizer,
        windowing: Windowing,
    ) -> TextClassification:
        """Build from the config and the resolved label set."""
        return cls(labels, tokenizer, windowing, config.pooling)

    @staticmethod
    def label_set(records: Iterable[Record]) -> list[str]:
        """The labels of labelled records, sorted."""
        return sorted({record["label"] for record in records if "label" in record})

    def encode(self, example: Record, index: int) -> Iterable[Features]:
        """See ``Task``."""
        if "text" not in example:
            raise UserError(
                f"{example['source']}: no text; text classification needs the fields"
                " text and label (name yours by config.data.columns)"
            )
        if example.get("text_pair") is not None:
            raise UserError(
                f"{example['source']}: text_pair is not supported yet; text"
                " classification reads one text"
            )
        label = example.get("label")
        if label is not None and label not in self.numbers:
            raise UserError(
                f"{example['source']}: unknown label {label!r}; the model knows"
                f" {', '.join(self.labels)}"
            )
        ids = self.tokenizer.text(example["text"])
        frame = self.tokenizer.frame
        windows = self.windowing.cut(len(ids), example["source"])
        number = -1 if label is None else self.numbers[label]
        weight = 0.0 if label is None else 1.0 / len(windows)
        for place, window in enumerate(windows):
            cut = ids[window.start : window.stop]
            yield Features(
                tokens={
                    "tokens": np.array([*frame.before, *cut, *frame.after], np.int32)
                },
                example={"label": np.int32(number), "weight": np.float32(weight)},
                host={
                    "index": index,
                    "window": place,
                    "truncated": windows[-1].stop < len(ids),
                },
            )

    def build(self, backbone: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """A linear map over every example's pooled state.

        With a bias where the model's own classifiers have one: so it can be exported.
        """
        own = self.pooler and not backbone.config.pooling.classifier_bias  # pyright: ignore
        return Head(backbone, self.reads, len(self.labels), rngs, bias=not own)

    @staticmethod
    def stride(max_length: int) -> int:
        """Tokens that two windows of an example share by default."""
        return max_length // 4

    def present(self, batch: Batch, key: jax.Array | None) -> Batch:
        """The batch as it is."""
        return batch

    def losses(self, outputs: Outputs, batch: Batch) -> Losses:
        """Mean cross-entropy over examples, as a sum."""
        return {
            "label": cross_entropy(outputs["logits"], batch["label"], batch["weight"])
        }

    def measures(self, outputs: Outputs, batch: Batch) -> Losses:
        """The share of examples with the right label."""
        return {"accuracy": correct(outputs["logits"], batch["label"], batch["weight"])}

    def infer(
        self,
        apply: Apply,
        params: Params,
        batch: Batch,
        key: jax.Array | None = None,
    ) -> Outputs:
        """The log-probability of every label, f32[B, P, L]."""
        outputs = apply(params, batch, key)
        return {**outputs, "example/scores": jax.nn.log_softmax(outputs["logits"])}

    def decode(
        self, outputs: Mapping[str, np.ndarray], features: Features
    ) -> np.ndarray:
        """The window's log-probabilities, f32[L]."""
        return outputs["scores"]

    def combine(self, example: Record, pieces: Sequence[np.ndarray]) -> Prediction:
        """The mean of the windows' log-probabilities, normalised."""
        scores = np.mean(np.stack(pieces).astype(np.float64), axis=0)
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")
        prediction: dict[str, Any] = {"id": example["id"], "text": example["text"]}
        if "label" in example:
            prediction["label"] = example["label"]
        prediction["predicted"] = self.labels[order[0]]
        prediction["probabilities"] = {
            self.labels[place]: round(float(probabilities[place]), 6) for place in order
        }
        return prediction

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> Metrics:
        """Accuracy, macro and weighted scores, and those of each label."""
        labels, matrix = self.confusion(predictions, examples)
        return class_scores(matrix, labels)

    def metric_names(self) -> list[str]:
        """The names in ``score``, which are the same for all data."""
        return list(self.score([], []))

    def confusion(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> tuple[list[str], np.ndarray]:
        """Labels and i64[L, L], rows true."""
        true = [example["label"] for example in examples]
        predicted = [prediction["predicted"] for prediction in predictions]
        return self.labels, confusion(true, predicted, self.labels)

    def report(
        self, predictions: Sequence[Prediction], examples: Sequence[Record]
    ) -> str:
        """sklearn's classification report."""
        labels, matrix = self.confusion(predictions, examples)
        return class_report(matrix, labels, micro=False)
