"""Batches in the order of the plan, whoever makes them."""

import threading
import time

import numpy as np
import pytest

from jaxlm.core.types import Features
from jaxlm.data.dataset import Dataset
from jaxlm.data.loader import Loader
from jaxlm.data.plan import plan_epoch, plan_run

LENGTHS = np.random.default_rng(0).integers(2, 16, 90)
WINDOWS = [
    Features(tokens={"tokens": np.full(length, index, np.int32)}, example={})
    for index, length in enumerate(LENGTHS)
]
STEPS = plan_epoch(LENGTHS, batch_size=4, max_length=16, packing=True, seed=0, epoch=0)


def loader(place=lambda batch: batch, plan=STEPS, **options):
    options = {"own": range(4), "segments": 8, "fills": {}, **options}
    return Loader(WINDOWS, plan, place=place, **options)


def workers():
    return [each for each in threading.enumerate() if each.name.startswith("loader")]


def same(left, right):
    return left.keys() == right.keys() and all(
        np.array_equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_batches_come_in_the_order_of_the_plan(count):
    def slow(batch):
        time.sleep(0.002 * (int(batch["tokens"].sum()) % 4))
        return batch

    found = list(loader(slow, workers=count).iterate())
    assert [step for step, _ in found] == STEPS
    for step, batch in found:
        for number, row in enumerate(step.rows):
            tokens = batch["tokens"][number]
            expected = [index for index in row for _ in range(LENGTHS[index])]
            assert tokens[batch["mask"][number]].tolist() == expected


def test_a_later_start_gives_the_rest():
    everything = list(loader().iterate())
    rest = list(loader().iterate(start=5))
    assert len(rest) == len(STEPS) - 5
    assert all(
        a[0] == b[0] and same(a[1], b[1])
        for a, b in zip(everything[5:], rest, strict=True)
    )


def test_a_start_at_the_end_gives_nothing():
    assert list(loader().iterate(start=len(STEPS))) == []


def test_a_loader_is_as_long_as_its_steps_and_can_be_iterated_again():
    mine = loader()
    assert len(mine) == len(STEPS) == len(list(mine.iterate()))
    assert len(list(mine.iterate())) == len(STEPS)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_all_processes_are_those_of_one(processes):
    own = np.arange(4).reshape(processes, -1).tolist()
    parts = [loader(own=own[process]).iterate() for process in range(processes)]
    for (_, whole), *each in zip(loader().iterate(), *parts, strict=True):
        joined = {
            name: np.concatenate([batch[name] for _, batch in each]) for name in whole
        }
        assert same(joined, whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_encodes_only_the_rows_that_are_its_own(
    tmp_path, monkeypatch, processes
):
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    asked = []

    def encode_one(record, index):
        asked.append(index)
        return [WINDOWS[index]]

    records = [{"number": index} for index in range(len(WINDOWS))]
    Dataset(records, encode_one, cached=True)  # as an earlier run did
    local = 4 // processes
    for process in range(processes):
        asked.clear()
        data = Dataset(records, encode_one, cached=True)
        run = plan_run(
            data.table, epochs=2, steps=None, batch_size=4, max_length=16,
            packing=True, seed=0,
        )  # fmt: skip
        assert asked == []
        mine = Loader(
            data.windows, run, own=range(4)[process * local :][:local], segments=8,
            fills={}, place=lambda batch: batch,
        )  # fmt: skip
        list(mine.iterate())
        rows = [step.rows[process * local :][:local] for step in run]
        own = {index for each in rows for row in each for index in row}
        fields = set() if all(rows) else {0}  # of a step that has no row for it
        assert set(asked) == own | fields
        assert (len(own) < 90) == (processes > 1)


def test_the_plan_is_asked_in_the_worker_threads():
    names = set()

    class Noting(list):
        def __getitem__(self, number):
            names.add(threading.current_thread().name[:6])
            return super().__getitem__(number)

    assert len(list(loader(plan=Noting(STEPS)).iterate())) == len(STEPS)
    assert names == {"loader"}


def test_rows_need_not_lie_together_nor_divide_evenly():
    for (step, whole), (_, mine) in zip(
        loader().iterate(), loader(own=[0, 2, 3]).iterate(), strict=True
    ):
        assert same({name: whole[name][[0, 2, 3]] for name in whole}, mine), step


def test_an_error_in_a_worker_reaches_the_reader_at_its_step():
    def broken(batch):
        if (batch["tokens"] == STEPS[3].rows[0][0]).any():
            raise RuntimeError("the disk is gone")
        return batch

    seen = 0
    with pytest.raises(RuntimeError, match="the disk is gone"):
        for _ in loader(broken).iterate():
            seen += 1
    assert seen == 3
    assert workers() == []


def test_an_iteration_that_is_abandoned_leaves_no_threads():
    batches = loader(workers=3).iterate()
    next(batches)
    assert workers()
    batches.close()
    assert workers() == []


def test_only_a_few_batches_are_made_ahead():
    made = []
    batches = loader(lambda batch: made.append(1) or batch, workers=1).iterate()
    next(batches)
    time.sleep(0.05)
    assert len(made) <= 4
    batches.close()


def test_the_wait_for_batches_is_counted():
    def slow(batch):
        time.sleep(0.01)
        return batch

    mine = loader(slow, workers=1)
    list(mine.iterate())
    assert mine.wait_seconds > 0.01
