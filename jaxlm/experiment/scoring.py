"""Scoring by a run's config: what is written down, and what the best are kept by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.core.schema import ConfigError, nearest
from jaxlm.core.types import Batch, Task
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


def check_metric(config: ExperimentConfig, task: Task) -> None:
    """Refuse an ``evaluate.metric`` that no evaluation gives, before training.

    Raises:
      ConfigError: it is none of the loss and the names of the task's metrics.
    """
    name, _ = wanted_metric(config, task.headline)
    names = ["loss", *task.metric_names()]
    if name not in names:
        near = nearest(name, names)
        shown = [each for each in names if "/" not in each]
        parts = {each.rpartition("/")[2]: None for each in names if "/" in each}
        allowed = f"one of auto, {', '.join(shown)}, or LABEL/ and {' or '.join(parts)}"
        raise ConfigError(
            "evaluate.metric",
            f"{config.evaluate.metric!r} is not allowed; "
            + (f"nearest: {near}; auto is {task.headline}" if near else allowed),
        )


def score(
    evaluator: Evaluator,
    state: State,
    data: Dataset,
    split: str,
    records: RunRecords,
    ready: Callable[[Batch], bool] = lambda batch: True,
) -> Evaluation:
    """Evaluate and write down results and predictions."""
    params = join(state.trainable, state.frozen)
    evaluation = evaluator.evaluate(params, data, ready)
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
    run: Prepared,
    evaluator: Evaluator,
    records: RunRecords,
    say: Callable[[str], None],
    ready: Callable[[Batch], bool],
) -> Callable[[State], Mapping[str, Any] | None]:
    """What the loop calls when an evaluation is due; ``ready`` may interrupt it."""
    wanted, _ = wanted_metric(run.parts.config, run.parts.task.headline)

    def run_validation(state: State) -> Mapping[str, Any] | None:
        if "validation" not in run.data:
            return None
        data = run.data["validation"]
        found = score(evaluator, state, data, "validation", records, ready)
        if wanted not in found.metrics:  # of a label that does not occur
            say(
                f"validation at step {int(state.step)} has no {wanted}"
                " (config.evaluate.metric): this checkpoint cannot be the best"
            )
        return found.metrics

    return run_validation
