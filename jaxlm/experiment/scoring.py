"""Scoring by a run's config: what is written down, and what the best are kept by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.core.errors import UserError
from jaxlm.core.schema import nearest
from jaxlm.data.dataset import Dataset
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.prepare import Prepared
from jaxlm.train.evaluator import Evaluation, Evaluator
from jaxlm.train.objective import join
from jaxlm.train.records import RunRecords
from jaxlm.train.state import State


def scorer(
    config: ExperimentConfig, headline: str
) -> Callable[[Mapping[str, Any]], float | None]:
    """What the best checkpoints are kept by, greater being better."""
    name, sign = wanted_metric(config, headline)

    def score(metrics: Mapping[str, Any]) -> float | None:
        value = metrics.get(name)
        return None if value is None else sign * value

    return score


def wanted_metric(config: ExperimentConfig, headline: str) -> tuple[str, float]:
    """The name that ``evaluate.metric`` means, and -1 where smaller is better."""
    name = config.evaluate.metric
    name = headline if name == "auto" else name
    return name.removeprefix("-"), -1.0 if name.startswith("-") else 1.0


def check_metric(
    config: ExperimentConfig, headline: str, metrics: Mapping[str, Any]
) -> None:
    """Refuse an ``evaluate.metric`` that the first validation does not give.

    A later one without it is an evaluation without a score.
    """
    name, _ = wanted_metric(config, headline)
    numbers = [each for each in metrics if isinstance(metrics[each], int | float)]
    if name not in numbers:
        near = nearest(name, numbers)
        raise UserError(
            f"config.evaluate.metric: {name!r} is not allowed; one of"
            f" {', '.join(numbers)}" + (f"; nearest: {near}" if near else "")
        )


def score(
    evaluator: Evaluator, state: State, data: Dataset, split: str, records: RunRecords
) -> Evaluation:
    """Evaluate and write down results and predictions."""
    evaluation = evaluator.evaluate(join(state.trainable, state.frozen), data)
    record(evaluation, split, int(state.step), records)
    return evaluation


def record(
    evaluation: Evaluation,
    split: str,
    step: int,
    records: RunRecords,
    *,
    line: bool = True,
) -> None:
    """Write results/, predictions/ and, where wanted, a line of metrics.jsonl."""
    metrics = dict(evaluation.metrics)
    if evaluation.confusion:
        labels, matrix = evaluation.confusion
        metrics["confusion"] = {"labels": labels, "matrix": matrix.tolist()}
    records.write_predictions(split, step, evaluation.predictions)
    records.write_results(split, step, metrics)
    if line:
        records.append(step, split, **evaluation.metrics)


def validate(
    run: Prepared, evaluator: Evaluator, records: RunRecords
) -> Callable[[State], Mapping[str, Any] | None]:
    """What the loop calls when an evaluation is due."""

    def run_validation(state: State) -> Mapping[str, Any] | None:
        if "validation" not in run.data:
            return None
        found = score(evaluator, state, run.data["validation"], "validation", records)
        return found.metrics

    return run_validation
