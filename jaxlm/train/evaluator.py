"""Scoring a model: encode, infer, decode, combine, score; predicting is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core.errors import UserError
from jaxlm.core.hosts import here
from jaxlm.core.mesh import replicated
from jaxlm.core.rows import Rows
from jaxlm.core.types import Apply, Batch, Params, Prediction, Task
from jaxlm.data.dataset import Dataset
from jaxlm.data.loader import Loader
from jaxlm.data.packing import cut
from jaxlm.data.plan import PlannedStep, most_segments, plan_once


class Interrupted(Exception):
    """An evaluation that was not ended, because its process is to end."""


@dataclass(frozen=True)
class Evaluation:
    """What came of one data set: flat metrics, predictions in order, and a report."""

    metrics: dict[str, Any]
    predictions: list[Prediction]
    report: str
    confusion: tuple[list[str], np.ndarray] | None


class Evaluator:
    """Runs a task's model over data sets, on any mesh.

    ``rows`` are those of a batch, of which a process encodes its own. Outputs come back
    whole, and process 0 decodes and scores them: the others have its metrics, but no
    predictions and no report.
    """

    def __init__(
        self,
        task: Task,
        apply: Apply,
        mesh: jax.sharding.Mesh,
        *,
        rows: Rows,
        max_length: int,
        packing: bool,
    ):
        self.task, self.mesh, self.rows = task, mesh, rows
        self.max_length, self.packing = max_length, packing

        def run(params: Params, batch: Batch) -> tuple[Any, Any]:
            batch = task.present(batch, None)
            outputs = task.infer(apply, params, batch)
            return _to_host(outputs), task.losses(outputs, batch)

        self._run = jax.jit(run, out_shardings=replicated(mesh))

    def evaluate(
        self,
        params: Params,
        data: Dataset,
        ready: Callable[[Batch], bool] = lambda batch: True,
    ) -> Evaluation:
        """Loss, the task's metrics and the predictions of a labelled data set.

        ``ready`` is asked before each batch whether to go on; it may take the time to
        compile what ``lower`` gives.

        Raises:
          UserError: the data set has nothing to score.
          Interrupted: it was not ``ready`` for a batch.
        """
        began = time.perf_counter()
        totals: dict[str, np.ndarray] = {}
        predictions = self._predict(params, data, totals, ready)
        seconds = time.perf_counter() - began
        if not any(pair[1] for pair in totals.values()):
            raise UserError(
                f"nothing in {len(data.records):,} examples, from"
                f" {data.records[0]['source']} on, counts in the loss; does the"
                " tokenizer know their characters?"
            )
        losses = {name: pair[0] / max(pair[1], 1e-8) for name, pair in totals.items()}

        def metrics() -> dict[str, Any]:
            return {
                "loss": float(sum(losses.values())),
                **self.task.score(predictions, data.records),
                "examples": len(data.records),
                "truncated": data.truncated,
                "tokens": data.tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(data.tokens / seconds, 1),
            }

        found = here().decide(metrics)
        if not here().first:
            return Evaluation(found, [], "", None)
        return Evaluation(
            found,
            predictions,
            self.task.report(predictions, data.records),
            self.task.confusion(predictions, data.records),
        )

    def predict(self, params: Params, data: Dataset) -> list[Prediction]:
        """Predictions in the order of the records, which need no labels.

        On process 0: none on another.
        """
        return self._predict(params, data, {}, lambda batch: True)

    def first_batch(self, data: Dataset) -> Batch:
        """The first batch of a data set, on the mesh."""
        return self._loader(data).make(0)[1]

    def lower(self, params: Params, batch: Batch) -> jax.stages.Lowered:
        """What is run for a batch; ``params`` may be shapes."""
        return self._run.lower(params, batch)

    def _loader(self, data: Dataset) -> Loader:
        plan = plan_once(
            data.lengths,
            batch_size=self.rows.count,
            max_length=self.max_length,
            packing=self.packing,
        )
        return Loader(
            data.windows,
            plan,
            own=self.rows.own,
            segments=-(-most_segments(plan) // 8) * 8 if self.packing else 1,
            fills=self.task.fills,
            place=self.rows.place,
        )

    def _predict(
        self,
        params: Params,
        data: Dataset,
        totals: dict[str, np.ndarray],
        ready: Callable[[Batch], bool],
    ) -> list[Prediction]:
        pieces: list[Any] = [None] * len(data.windows)
        for index, part in self._windows(params, data, totals, ready):
            pieces[index] = self.task.decode(part, data.windows[index])
        if not here().first:
            return []
        starts = data.table.starts.tolist()
        return [
            self.task.combine(record, pieces[start:stop])
            for record, start, stop in zip(
                data.records, starts[:-1], starts[1:], strict=True
            )
        ]

    def _windows(
        self,
        params: Params,
        data: Dataset,
        totals: dict[str, np.ndarray],
        ready: Callable[[Batch], bool],
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Every window with its outputs, on process 0; one batch runs meanwhile."""
        waiting: tuple[PlannedStep, Any] | None = None
        for step, batch in self._loader(data).iterate():
            if not ready(batch):
                raise Interrupted()
            results = self._run(params, batch)
            if waiting:
                yield from self._cut(*waiting, data, totals)
            waiting = (step, results)
        if waiting:
            yield from self._cut(*waiting, data, totals)

    def _cut(
        self,
        step: PlannedStep,
        results: Any,
        data: Dataset,
        totals: dict[str, np.ndarray],
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        outputs, losses = jax.device_get(results)
        for name, each in losses.items():
            pair = np.array([each.total, each.weight], np.float64)
            totals[name] = totals.get(name, np.zeros(2)) + pair
        if not here().first:
            return
        for row, indices in enumerate(step.rows):
            start = 0
            for place, index in enumerate(indices):
                length = int(data.lengths[index])
                yield index, cut(outputs, row, place, start, length)
                start += length


def _to_host(outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """What decoding reads: the outputs named ``tokens/...`` and ``example/...``."""
    return {
        name: value if jnp.issubdtype(value.dtype, jnp.integer) else value.astype("f4")
        for name, value in outputs.items()
        if name.startswith(("tokens/", "example/"))
    }
