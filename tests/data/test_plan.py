"""The plan: every window once an epoch, the same for everybody, and well filled."""

import threading
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data import plan
from jaxlm.data.lengths import Table
from jaxlm.data.plan import most_segments, pack, plan_epoch, plan_once, plan_run

MAX_LENGTH = 32
LENGTHS = st.lists(st.integers(2, MAX_LENGTH), min_size=1, max_size=200)
CASES = {
    "lengths": LENGTHS,
    "batch_size": st.integers(1, 9),
    "packing": st.booleans(),
    "seed": st.integers(0, 5),
}
PLAN_ONCE = {"batch_size": 4, "max_length": MAX_LENGTH, "packing": True}
PLAN = PLAN_ONCE | {"seed": 0}


def indices(steps):
    return [index for step in steps for row in step.rows for index in row]


def table(lengths, windows_each=1):
    """Of examples that have ``windows_each`` windows."""
    lengths = np.asarray(lengths, np.int32)
    return Table(lengths, np.arange(len(lengths)) // windows_each, truncated=0)


def realistic_lengths(count=3000, seed=0):
    """As tokens of news sentences: a median of 25, few beyond 60, at most 128."""
    random = np.random.default_rng(seed)
    return np.clip(random.lognormal(3.2, 0.6, count).astype(int), 3, 128)


@given(**CASES)
def test_an_epoch_holds_every_window_exactly_once(lengths, **options):
    steps = plan_epoch(lengths, max_length=MAX_LENGTH, epoch=0, **options)
    assert sorted(indices(steps)) == list(range(len(lengths)))


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), packing=st.booleans())
def test_an_evaluation_holds_every_window_exactly_once(lengths, **options):
    steps = plan_once(lengths, max_length=MAX_LENGTH, **options)
    assert sorted(indices(steps)) == list(range(len(lengths)))


@given(**CASES)
def test_no_row_is_longer_than_its_step_and_no_step_than_allowed(lengths, **options):
    for step in plan_epoch(lengths, max_length=MAX_LENGTH, epoch=0, **options):
        assert step.length <= MAX_LENGTH
        for row in step.rows:
            assert 0 < sum(lengths[index] for index in row) <= step.length


@given(**CASES)
def test_only_the_last_step_of_an_epoch_may_lack_rows(lengths, batch_size, **options):
    steps = plan_epoch(
        lengths, batch_size=batch_size, max_length=MAX_LENGTH, epoch=0, **options
    )
    *full, last = [len(step.rows) for step in steps]
    assert all(count == batch_size for count in full)
    assert 1 <= last <= batch_size


@given(**CASES)
def test_without_packing_a_row_is_one_window(lengths, packing, **options):
    steps = plan_epoch(
        lengths, max_length=MAX_LENGTH, epoch=0, packing=False, **options
    )
    assert most_segments(steps) == 1


@given(epoch=st.integers(0, 3), **CASES)
def test_a_plan_is_a_function_of_its_arguments(epoch, **options):
    first, second = (
        plan_epoch(max_length=MAX_LENGTH, epoch=epoch, **options) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("packing", [True, False])
def test_epochs_and_seeds_order_windows_differently(packing):
    lengths = realistic_lengths(200)

    def order(seed, epoch):
        options = PLAN | {"max_length": 128, "packing": packing, "seed": seed}
        return tuple(indices(plan_epoch(lengths, epoch=epoch, **options)))

    assert len({order(0, 0), order(0, 1), order(1, 0), order(1, 1)}) == 4


@pytest.mark.parametrize("packing", [True, False])
def test_windows_meet_others_in_each_epoch(packing):
    lengths = realistic_lengths(2000)
    options = PLAN | {"max_length": 128, "packing": packing}
    first, second = (
        {
            pair
            for step in plan_epoch(lengths, epoch=epoch, **options)
            for pair in pairwise(sorted(indices([step])))
        }
        for epoch in range(2)
    )
    assert len(first & second) < 0.05 * len(first)


@pytest.mark.parametrize("packing", [True, False])
def test_long_and_short_windows_are_spread_over_the_epoch(packing):
    lengths = realistic_lengths(2000)
    options = PLAN | {"max_length": 128, "packing": packing, "batch_size": 8}
    steps = plan_epoch(lengths, epoch=0, **options)
    order = lengths[indices(steps)]
    halves = [half.mean() for half in np.array_split(order, 2)]
    assert abs(halves[0] / halves[1] - 1) < 0.25


def test_packing_fills_nine_tenths_of_realistic_rows():
    lengths = realistic_lengths()
    options = PLAN | {"max_length": 128, "batch_size": 16}
    steps = plan_epoch(lengths, epoch=0, **options)
    rows = sum(len(step.rows) for step in steps)
    assert lengths.sum() / (rows * 128) >= 0.9


def test_batches_of_like_lengths_waste_little_without_packing():
    lengths = realistic_lengths()
    options = PLAN | {"max_length": 128, "batch_size": 16, "packing": False}
    steps = plan_epoch(lengths, epoch=0, **options)
    # Where every row were 128 long, a quarter would be real.
    assert lengths.sum() / sum(len(step.rows) * step.length for step in steps) > 0.7


def packed_by_definition(lengths, most):
    """Best fit in as many words as it takes."""
    rows, free, is_open = [], [], []
    for index, length in enumerate(lengths):
        fits = [row for row in range(len(rows)) if is_open[row] and free[row] >= length]
        row = min(fits, key=free.__getitem__, default=len(rows))
        if row == len(rows):
            rows.append(())
            free.append(MAX_LENGTH)
            is_open.append(True)
        rows[row] += (index,)
        free[row] -= length
        is_open[row] = free[row] > 0
        if sum(is_open) > most:
            still = [row for row in range(len(rows)) if is_open[row]]
            is_open[min(still, key=free.__getitem__)] = False
    return rows


@given(LENGTHS, st.integers(1, 5))
def test_a_window_goes_where_least_room_is_left_among_the_open_rows(lengths, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "OPEN_ROWS", most)
        found = pack(np.array(lengths), np.arange(len(lengths)), MAX_LENGTH)
    assert found == packed_by_definition(lengths, most)


@settings(max_examples=30)
@given(max_length=st.integers(8, 600), seed=st.integers(0, 9))
def test_few_distinct_lengths_are_compiled(max_length, seed):
    lengths = np.random.default_rng(seed).integers(2, max_length + 1, 500)
    options = {"batch_size": 2, "max_length": max_length, "packing": False}
    assert len({step.length for step in plan_once(lengths, **options)}) <= 8
    packed = options | {"packing": True}
    assert {step.length for step in plan_once(lengths, **packed)} == {max_length}


def test_evaluation_begins_with_the_longest():
    steps = plan_once([3, 9, 5], batch_size=1, max_length=16, packing=False)
    assert indices(steps) == [1, 2, 0]


@given(
    epochs=st.integers(1, 4),
    steps=st.none() | st.integers(1, 60),
    windows_each=st.integers(1, 3),
    **CASES,
)
def test_a_run_is_its_epochs_one_after_another(
    lengths, epochs, steps, windows_each, **options
):
    options |= {"max_length": MAX_LENGTH}
    run = plan_run(table(lengths, windows_each), epochs=epochs, steps=steps, **options)
    each, ends = [], []
    while len(ends) < epochs if steps is None else len(each) < steps:
        each += plan_epoch(lengths, epoch=len(ends), **options)
        ends.append(len(each) if steps is None else min(len(each), steps))
    each = each[:steps]
    assert list(run) == each
    assert list(run.epoch_ends) == ends
    assert run.segments == most_segments(each)
    assert run.tokens == sum(lengths[index] for index in indices(each))
    assert run.places == sum(step.length * len(step.rows) for step in each)
    seen = [{index // windows_each for index in indices([step])} for step in each]
    assert run.examples_per_step == sum(map(len, seen)) / len(each)


@given(steps=st.integers(1, 60), random=st.randoms(), **CASES)
def test_steps_asked_for_in_any_order_are_the_same(lengths, steps, random, **options):
    options |= {"max_length": MAX_LENGTH, "epochs": 1, "steps": steps}
    expected = list(plan_run(table(lengths), **options))
    run, order = plan_run(table(lengths), **options), list(range(steps))
    random.shuffle(order)
    assert {number: run[number] for number in order} == dict(enumerate(expected))


@given(**CASES)
def test_a_step_knows_how_many_of_its_tokens_are_real(lengths, **options):
    epoch = plan_epoch(lengths, max_length=MAX_LENGTH, epoch=0, **options)
    for step in epoch + plan_once(lengths, **PLAN_ONCE):
        assert step.tokens == sum(lengths[index] for index in indices([step]))


@given(lengths=LENGTHS, steps=st.integers(1, 60))
def test_a_number_of_steps_overrides_epochs(lengths, steps):
    run = plan_run(table(lengths), epochs=1, steps=steps, **PLAN)
    assert len(run) == steps
    assert run.epoch_ends[-1] == steps
    assert all(a < b for a, b in pairwise((0, *run.epoch_ends)))


@given(lengths=LENGTHS, steps=st.integers(1, 30))
def test_a_shorter_run_is_the_beginning_of_a_longer_one(lengths, steps):
    short = plan_run(table(lengths), epochs=1, steps=steps, **PLAN)
    long = plan_run(table(lengths), epochs=1, steps=2 * steps, **PLAN)
    assert list(long)[:steps] == list(short)


def test_what_remains_after_a_resume_completes_the_epoch():
    lengths = realistic_lengths(200) % MAX_LENGTH + 1
    run = plan_run(table(lengths), epochs=2, steps=None, **PLAN)
    rest = [run[number] for number in range(7, len(run))]
    done = [run[number] for number in range(7)]
    assert Counter(indices(done)) + Counter(indices(rest)) == Counter(
        {index: 2 for index in range(200)}
    )


@pytest.fixture
def planned(monkeypatch):
    """The epochs that are planned, in order; four steps each."""
    epochs = []

    def noted(*arguments, epoch, **options):
        epochs.append(epoch)
        return plan_epoch(*arguments, epoch=epoch, **options)

    monkeypatch.setattr(plan, "plan_epoch", noted)
    return epochs


def run_of(epochs, steps=None):
    options = PLAN | {"packing": False}
    return plan_run(table([9] * 16), epochs=epochs, steps=steps, **options)


def test_an_epoch_is_planned_again_when_a_step_of_it_is_asked_for(planned):
    run = run_of(5)
    assert planned == [0, 1, 2, 3, 4]
    planned.clear()
    assert len(list(run)) == 20
    assert planned == [2, 3, 4]  # the first two were kept, where most runs begin


def test_the_two_epochs_planned_last_are_kept(planned):
    run = run_of(5)
    planned.clear()
    for number in (11, 12, 10, 13, 9):
        run[number]
    assert planned == [2, 3]
    run[19], run[13], run[8]
    assert planned == [2, 3, 4, 2]


def test_a_plan_of_many_epochs_holds_the_steps_of_two():
    run = run_of(9)
    assert len(list(run)) == 36
    assert {epoch: len(steps) for epoch, steps in run._kept.items()} == {7: 4, 8: 4}


def test_threads_that_ask_for_an_epoch_have_it_planned_once(planned):
    run = run_of(9)
    expected, found = list(run), [None] * 4
    planned.clear()
    barrier = threading.Barrier(4)

    def ask(place):
        barrier.wait()
        found[place] = run[8 + place]

    threads = [threading.Thread(target=ask, args=[place]) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected[8:12]
    assert planned == [2]


def test_a_plan_is_a_sequence():
    run = run_of(3)
    assert run[-1] == run[11] == list(run)[-1]
    with pytest.raises(IndexError):
        run[12]


def test_epochs_are_counted_with_a_fraction():
    run = run_of(3, steps=10)
    assert run.epoch_ends == (4, 8, 10)
    assert [run.epoch(step) for step in (0, 1, 4, 9, 10)] == [0, 0.25, 1, 2.5, 3]


def test_a_plan_of_no_windows_is_refused():
    with pytest.raises(ValueError, match="without windows"):
        plan_run(table([]), epochs=1, steps=5, **PLAN)


def test_an_evaluation_of_no_windows_has_no_steps():
    assert plan_once([], **PLAN_ONCE) == []
    assert most_segments([]) == 1


def test_who_waits_for_a_long_plan_is_told_how_far_it_is():
    told = []
    table = Table(np.full(6, 8, np.int32), np.arange(6), 0)
    plan = plan_run(
        table, epochs=9, steps=7, batch_size=2, max_length=8, packing=True, seed=0,
        notice=lambda epochs, steps: told.append((epochs, steps)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 6), (3, 7)]
    assert (len(plan), plan.rows) == (7, 2)
