"""The order of data as a plan: which windows lie where, for every step.

The plan is a pure function of the lengths, the seed and the epoch. Every process
computes the same one and reads only its own rows of it, so global batches do not depend
on how many processes, workers or devices there are, and a run can go on from any step.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OPEN_ROWS = 256
"""Rows that packing fills at a time: more fill better, fewer keep the order random."""
SORTED_BATCHES = 50
"""Batches that length-aware batching sorts together (as transformers' samplers do)."""


@dataclass(frozen=True)
class PlannedStep:
    """One global batch: ``rows`` of indices of windows, padded to ``length`` tokens."""

    length: int
    rows: tuple[tuple[int, ...], ...]


def plan_epoch(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    max_length: int,
    packing: bool,
    seed: int,
    epoch: int,
) -> list[PlannedStep]:
    """The steps of one epoch of training, each window in exactly one of them.

    Packed, a row takes as many windows as fit and a step takes ``batch_size`` rows.
    Otherwise a row is one window and windows of like length share a step. The last step
    may have fewer rows.
    """
    lengths = np.asarray(lengths)
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    if packing:
        rows = pack(lengths, order, max_length)
    else:
        chunk = batch_size * SORTED_BATCHES
        parts = [order[start : start + chunk] for start in range(0, len(order), chunk)]
        parts = [part[np.argsort(-lengths[part], kind="stable")] for part in parts]
        rows = [(int(index),) for part in parts for index in part]
    batches = [
        tuple(rows[start : start + batch_size])
        for start in range(0, len(rows), batch_size)
    ]
    full = [batch for batch in batches if len(batch) == batch_size]
    random.shuffle(full)
    full += [batch for batch in batches if len(batch) < batch_size]
    return [_planned(batch, lengths, max_length, packing) for batch in full]


def plan_once(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    max_length: int,
    packing: bool,
) -> list[PlannedStep]:
    """Every window once, for evaluation: longest first, in an order of no chance."""
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    if packing:
        rows = pack(lengths, order, max_length)
    else:
        rows = [(int(index),) for index in order]
    return [
        _planned(tuple(rows[start : start + batch_size]), lengths, max_length, packing)
        for start in range(0, len(rows), batch_size)
    ]


def pack(
    lengths: np.ndarray, order: np.ndarray, max_length: int
) -> list[tuple[int, ...]]:
    """Windows into rows of ``max_length``: best fit over a bounded number of open rows.

    Each window goes to the open row that it fills most; where none has room, a new row
    is opened, and beyond ``OPEN_ROWS`` the fullest is closed.
    """
    space: list[tuple[int, int]] = []  # (free tokens, number of the row), sorted
    rows: list[list[int]] = []
    for index in order:
        need = int(lengths[index])
        place = bisect.bisect_left(space, (need, -1))
        if place < len(space):
            free, number = space.pop(place)
        else:
            free, number = max_length, len(rows)
            rows.append([])
        rows[number].append(int(index))
        if free > need:
            bisect.insort(space, (free - need, number))
        if len(space) > OPEN_ROWS:
            space.pop(0)
    return [tuple(row) for row in rows]


def _planned(
    rows: tuple[tuple[int, ...], ...],
    lengths: np.ndarray,
    max_length: int,
    packing: bool,
) -> PlannedStep:
    """Fix the padded length: one for packed rows, else one of eight, to compile few."""
    if packing:
        return PlannedStep(max_length, rows)
    longest = max(int(lengths[index]) for row in rows for index in row)
    multiple = max(8, -(-max_length // 8))
    return PlannedStep(min(-(-longest // multiple) * multiple, max_length), rows)


def most_segments(steps: Sequence[PlannedStep]) -> int:
    """The most windows that share a row: the size P of per-example fields."""
    return max((len(row) for step in steps for row in step.rows), default=1)


@dataclass(frozen=True)
class RunPlan:
    """All steps of a run; epoch e ends when ``epoch_ends[e]`` steps are done."""

    steps: tuple[PlannedStep, ...]
    epoch_ends: tuple[int, ...]

    def epoch(self, step: int) -> float:
        """How many epochs are done after ``step`` steps, with a fraction."""
        place = bisect.bisect_right(self.epoch_ends, step)
        if place == len(self.epoch_ends):
            return float(place)
        begin = self.epoch_ends[place - 1] if place else 0
        return place + (step - begin) / (self.epoch_ends[place] - begin)


def plan_run(
    lengths: Sequence[int] | np.ndarray,
    *,
    epochs: int,
    steps: int | None,
    batch_size: int,
    max_length: int,
    packing: bool,
    seed: int,
) -> RunPlan:
    """``epochs`` epochs, or ``steps`` steps where set, over as many epochs as it takes.

    An epoch that ``steps`` cuts short still ends with the run.

    Raises:
      ValueError: there are no windows, of which no number of steps can be made.
    """
    if not len(lengths):
        raise ValueError("a run cannot be planned without windows")
    planned: list[PlannedStep] = []
    ends: list[int] = []
    epoch = 0
    while epoch < epochs if steps is None else len(planned) < steps:
        planned += plan_epoch(
            lengths,
            batch_size=batch_size,
            max_length=max_length,
            packing=packing,
            seed=seed,
            epoch=epoch,
        )
        epoch += 1
        ends.append(len(planned) if steps is None else min(len(planned), steps))
    return RunPlan(tuple(planned[:steps]), tuple(ends))
