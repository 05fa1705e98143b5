"""Batches ahead of the step: this process's rows of the plan, collated in threads."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxlm.core.types import Batch, Features
from jaxlm.data.packing import collate
from jaxlm.data.plan import PlannedStep

AHEAD = 2
"""Batches that are ready, on the device, before they are asked for."""


class Loader:
    """Iterates over the batches of planned steps, from any step on.

    ``place`` puts host arrays on the mesh; it runs in the worker threads, so that
    transfers overlap with compute. ``process`` of ``processes`` reads only its own
    rows.
    """

    def __init__(
        self,
        windows: Sequence[Features],
        steps: Sequence[PlannedStep],
        *,
        batch_size: int,
        segments: int,
        fills: Mapping[str, int],
        place: Callable[[dict[str, np.ndarray]], Batch],
        workers: int = 2,
        process: int = 0,
        processes: int = 1,
    ):
        if batch_size % processes:
            raise ValueError(
                f"{batch_size} rows do not divide over {processes} processes"
            )
        self.windows, self.steps = windows, steps
        self.local = batch_size // processes
        self.segments, self.fills, self.place = segments, fills, place
        self.workers, self.process = workers, process
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return len(self.steps)

    def iterate(self, start: int = 0) -> Iterator[tuple[PlannedStep, Batch]]:
        """Steps and their batches from step ``start`` on; counts the wait for each."""
        remaining = iter(self.steps[start:])
        queue: collections.deque[tuple[PlannedStep, Future[Any]]] = collections.deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
            try:
                while True:
                    while len(queue) < AHEAD + self.workers:
                        step = next(remaining, None)
                        if step is None:
                            break
                        queue.append((step, pool.submit(self._make, step)))
                    if not queue:
                        return
                    step, future = queue.popleft()
                    began = time.perf_counter()
                    batch = future.result()
                    self.wait_seconds += time.perf_counter() - began
                    yield step, batch
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, step: PlannedStep) -> Batch:
        first = self.process * self.local
        mine = step.rows[first : first + self.local]
        rows = [[self.windows[index] for index in row] for row in mine]
        return self.place(
            collate(
                rows,
                like=self.windows[0],
                length=step.length,
                segments=self.segments,
                batch_size=self.local,
                fills=self.fills,
            )
        )
