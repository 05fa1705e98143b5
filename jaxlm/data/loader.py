"""Batches ahead of the step: this process's rows of the plan, made in threads."""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jaxlm.core.types import Batch, Features
from jaxlm.data.packing import collate
from jaxlm.data.plan import PlannedStep

AHEAD = 2
"""Batches that are ready, on the device, before they are asked for."""


class Loader:
    """Iterates over the batches of a plan, from any step on.

    The worker threads do all of the work, so that it overlaps with compute: they ask
    the plan for the step and the windows for their content, and ``place`` puts host
    arrays on the mesh. ``own`` are the rows of a step, ascending, that this process
    reads; a step that has none of them is padding, for which it reads the fields of the
    first window.
    """

    def __init__(
        self,
        windows: Sequence[Features],
        plan: Sequence[PlannedStep],
        *,
        own: Sequence[int],
        segments: int,
        fills: Mapping[str, int],
        place: Callable[[dict[str, np.ndarray]], Batch],
        workers: int = 2,
    ):
        self.windows, self.plan, self.own = windows, plan, own
        self.segments, self.fills, self.place = segments, fills, place
        self.workers = workers
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        return len(self.plan)

    def iterate(self, start: int = 0) -> Iterator[tuple[PlannedStep, Batch]]:
        """Steps and their batches from step ``start`` on; counts the wait for each."""
        numbers = iter(range(start, len(self.plan)))
        queue: collections.deque[Future[tuple[PlannedStep, Batch]]]
        queue = collections.deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="loader") as pool:
            try:
                while True:
                    room = AHEAD + self.workers - len(queue)
                    for number in itertools.islice(numbers, room):
                        queue.append(pool.submit(self.make, number))
                    if not queue:
                        return
                    future = queue.popleft()
                    began = time.perf_counter()
                    made = future.result()
                    self.wait_seconds += time.perf_counter() - began
                    yield made
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def make(self, number: int) -> tuple[PlannedStep, Batch]:
        """One step of the plan and its batch, on the mesh."""
        step = self.plan[number]
        mine = [step.rows[number] for number in self.own if number < len(step.rows)]
        rows = [[self.windows[index] for index in row] for row in mine]
        arrays = collate(
            rows,
            like=rows[0][0] if rows else self.windows[0],
            length=step.length,
            segments=self.segments,
            batch_size=len(self.own),
            fills=self.fills,
        )
        return step, self.place(arrays)
