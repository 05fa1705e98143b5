"""The order of data as a plan: which windows lie where, for every step.

The plan is a pure function of the lengths, the seed and the epoch. Every process
computes the same one and reads only its own rows of it, so global batches do not depend
on how many processes, workers or devices there are, and a run can go on from any step.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.lengths import Table

OPEN_ROWS = 256
"""Rows that packing fills at a time: more fill better, fewer keep the order random."""
SORTED_BATCHES = 50
"""Batches that length-aware batching sorts together (as transformers' samplers do)."""
KEPT_EPOCHS = 2
"""Epochs whose steps are in memory: where two meet, steps of both are asked for."""


Notice = Callable[[int, int], None]


@dataclass(frozen=True)
class PlannedStep:
    """One global batch: ``rows`` of indices of windows, padded to ``length`` tokens.

    ``tokens`` of it are real.
    """

    length: int
    rows: tuple[tuple[int, ...], ...]
    tokens: int


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
    own = lengths[list(itertools.chain.from_iterable(rows))]
    tokens = int(own.sum(dtype=np.int64))
    longest = max_length if packing else int(own.max())
    length = next(each for each in row_lengths(max_length, packing) if each >= longest)
    return PlannedStep(length, rows, tokens)


def row_lengths(max_length: int, packing: bool) -> list[int]:
    """The padded lengths that rows may have, ascending: few, as each is compiled."""
    multiple = max_length if packing else max(8, -(-max_length // 8))
    return [*range(multiple, max_length, multiple), max_length]


def most_segments(steps: Iterable[PlannedStep]) -> int:
    """The most windows that share a row: the size P of per-example fields."""
    return max((len(row) for step in steps for row in step.rows), default=1)


class RunPlan(Sequence[PlannedStep]):
    """All steps of a run; those of an epoch are planned when one is asked for.

    Counts over all of them are known from the start. Epoch e ends when
    ``epoch_ends[e]`` steps are done; ``segments`` is the most windows in a row and
    ``rows`` the most rows in a step; ``places`` is the room of all rows, of which
    ``tokens`` are real; ``examples_per_step`` is a mean, in which an example of several
    windows counts once a step. ``notice`` is told the epochs and steps counted so far.
    Any thread may ask for steps.
    """

    def __init__(
        self,
        plan: Callable[[int], list[PlannedStep]],
        examples: np.ndarray,
        *,
        epochs: int,
        steps: int | None,
        notice: Notice = lambda epochs, steps: None,
    ):
        self._plan, self._lock = plan, threading.Lock()
        self._kept: OrderedDict[int, list[PlannedStep]] = OrderedDict()
        self.segments, self.rows, self.tokens, self.places = 1, 1, 0, 0
        done, seen, ends = 0, 0, []
        while len(ends) < epochs if steps is None else done < steps:
            whole = plan(len(ends))
            if len(ends) < KEPT_EPOCHS:  # where most runs begin
                self._kept[len(ends)] = whole
            used = whole if steps is None else whole[: steps - done]
            self.segments = max(self.segments, most_segments(used))
            for step in used:
                windows = list(itertools.chain.from_iterable(step.rows))
                seen += len(np.unique(examples[windows]))
                self.tokens += step.tokens
                self.places += step.length * len(step.rows)
                self.rows = max(self.rows, len(step.rows))
            done += len(used)
            ends.append(done)
            notice(len(ends), done)
        self.epoch_ends = tuple(ends)
        self.examples_per_step = seen / done

    def __len__(self) -> int:
        return self.epoch_ends[-1]

    def __iter__(self) -> Iterator[PlannedStep]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> PlannedStep:
        number = range(len(self))[number]
        epoch = bisect.bisect_right(self.epoch_ends, number)
        with self._lock:  # who waits for an epoch need not plan it too
            if epoch not in self._kept:
                self._kept[epoch] = self._plan(epoch)
                if len(self._kept) > KEPT_EPOCHS:
                    self._kept.popitem(last=False)
            return self._kept[epoch][number - self._begin(epoch)]

    def ended(self, step: int) -> int | None:
        """Which epoch, counted from 1, ends with a step; None where none does."""
        place = bisect.bisect_left(self.epoch_ends, step)
        ends = place < len(self.epoch_ends) and self.epoch_ends[place] == step
        return place + 1 if ends else None

    def epoch(self, step: int) -> float:
        """How many epochs are done after ``step`` steps, with a fraction."""
        place = bisect.bisect_right(self.epoch_ends, step)
        if place == len(self.epoch_ends):
            return float(place)
        begin = self._begin(place)
        return place + (step - begin) / (self.epoch_ends[place] - begin)

    def _begin(self, epoch: int) -> int:
        return self.epoch_ends[epoch - 1] if epoch else 0


def plan_run(
    table: Table,
    *,
    epochs: int,
    steps: int | None,
    batch_size: int,
    max_length: int,
    packing: bool,
    seed: int,
    notice: Notice = lambda epochs, steps: None,
) -> RunPlan:
    """``epochs`` epochs, or ``steps`` steps where set, over as many epochs as it takes.

    An epoch that ``steps`` cuts short still ends with the run. For ``notice`` see
    ``RunPlan``.

    Raises:
      ValueError: there are no windows, of which no number of steps can be made.
    """
    if not len(table.lengths):
        raise ValueError("a run cannot be planned without windows")

    def plan(epoch: int) -> list[PlannedStep]:
        return plan_epoch(
            table.lengths,
            batch_size=batch_size,
            max_length=max_length,
            packing=packing,
            seed=seed,
            epoch=epoch,
        )

    return RunPlan(plan, table.examples, epochs=epochs, steps=steps, notice=notice)
