"""What a user may say about the task."""

from __future__ import annotations

from dataclasses import dataclass

from jaxlm.core.schema import ConfigError, field


@dataclass(frozen=True)
class TaskConfig:
    """What is learned."""

    name: str = field(
        "token_classification",
        "the kind of task",
        choices=(
            "token_classification",
            "text_classification",
            "masked_lm",
            "causal_lm",
        ),
    )
    labels: tuple[str, ...] = field(
        (),
        "the label set, in order; empty: those of the training data, sorted;"
        " entity types (PER, LOC) for token classification",
    )
    pooling: str = field(
        "cls",
        "what text classification reads: cls (first token, through the pooler) or mean",
        choices=("cls", "mean"),
    )
    mask_rate: float = field(
        0.15, "share of the tokens that masked_lm predicts", above=0.0, maximum=1.0
    )

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels) or "" in self.labels:
            raise ConfigError(
                "task.labels",
                f"{self.labels!r} is not allowed; every label once, none of them empty",
            )
