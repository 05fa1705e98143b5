"""The training loop: what is due when, what the figures say, how it ends."""

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.types import LossSum
from jaxlm.data.lengths import Table
from jaxlm.data.plan import plan_run
from jaxlm.train.config import CheckpointConfig, EvaluateConfig
from jaxlm.train.evaluator import Interrupted
from jaxlm.train.loop import Clock, Diverged, Due, Meter, fit
from jaxlm.train.records import RunRecords
from jaxlm.train.state import State

STEPS = 10
PLAN = plan_run(
    Table(np.array([5, 3] * 4), np.arange(8), truncated=0),
    epochs=3,
    steps=STEPS,
    batch_size=2,
    max_length=8,
    packing=False,
    seed=0,
)
"""Epochs of four steps of two windows each; the last one is cut short."""


def due(evaluate=None, checkpoint=None, log=3, plan=PLAN):
    evaluate, checkpoint = evaluate or {}, checkpoint or {}
    return Due(plan, EvaluateConfig(**evaluate), CheckpointConfig(**checkpoint), log)


def steps(question):
    return [step for step in range(1, STEPS + 1) if question(step)]


def test_evaluation_is_due_at_the_end_of_every_epoch():
    assert steps(due().evaluation) == [4, 8, 10]


def test_evaluation_is_due_every_so_many_epochs_and_at_the_end():
    assert steps(due({"every_epochs": 2}).evaluation) == [8, 10]


def test_evaluation_by_steps_overrides_epochs_and_comes_at_the_end():
    assert steps(due({"every_steps": 4, "every_epochs": 1}).evaluation) == [4, 8, 10]
    assert steps(due({"every_steps": 3}).evaluation) == [3, 6, 9, 10]


def test_saving_is_due_at_evaluations_and_every_so_many_steps():
    assert steps(due().save) == [4, 8, 10]
    assert steps(due(checkpoint={"every_steps": 5}).save) == [4, 5, 8, 10]


def test_a_line_is_due_every_so_many_steps_and_where_an_epoch_ends_or_is_saved():
    both = due({"every_steps": 7}, {"every_steps": 5}, log=3)
    assert steps(both.log) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert steps(due(log=100).log) == [4, 8, 10]


def figures(total, weight, right=0.0, gradient=1.0):
    return {
        "loss": jnp.float32(total / weight),
        "losses": {"words": LossSum(jnp.float32(total), jnp.float32(weight))},
        "measures": {"accuracy": LossSum(jnp.float32(right), jnp.float32(weight))},
        "gradient_norm": jnp.float32(gradient),
    }


def test_means_are_sums_divided_by_weights():
    meter = Meter()
    meter.add(1, figures(10.0, 2.0, right=2.0))
    meter.add(2, figures(2.0, 8.0, right=3.0))
    meter.fetch()
    assert meter.means("line") == {"loss": 1.2, "accuracy": 0.5}
    assert meter.last == {"loss": 0.25, "gradient_norm": 1.0}


def test_each_window_begins_anew_when_it_was_asked_for():
    meter = Meter()
    for step, total in enumerate((4.0, 2.0, 6.0), start=1):
        meter.add(step, figures(total, 2.0))
        meter.fetch()
        if step == 2:
            assert meter.means("line")["loss"] == 1.5
    assert meter.means("line")["loss"] == 3.0
    assert meter.means("epoch")["loss"] == 2.0
    assert meter.means("epoch") == {}


def test_several_losses_are_each_divided_by_their_own_weight():
    both = figures(6.0, 3.0)
    both["losses"]["pairs"] = LossSum(jnp.float32(1.0), jnp.float32(4.0))
    meter = Meter()
    meter.add(1, both)
    meter.fetch()
    assert meter.means("line")["loss"] == 2.25


def test_a_meter_without_steps_has_no_means():
    meter = Meter()
    meter.fetch()
    assert meter.means("line") == {}


class FakeLoader:
    wait_seconds = 0.0

    def iterate(self, start=0):
        for number in range(start, STEPS):
            yield PLAN[number], {}


class FakeCheckpoints:
    def __init__(self):
        self.saved, self.waited = {}, False

    def unscored(self, step):
        return step in self.saved and self.saved[step] is None

    def save(self, state, metrics=None):
        step = int(state.step)
        self.saved[step] = self.saved.get(step) or metrics

    def wait(self):
        self.waited = True


class FakeProgress:
    def __init__(self):
        self.steps, self.lines = [], []

    def update(self, step, **figures):
        self.steps.append(step)

    def epoch_line(self, step, **figures):
        self.lines.append((step, figures))


def loss_of(number):
    """Step n has loss n over a weight of n: later steps weigh more."""
    return figures(float(number * number), float(number))


class Running:
    """``fit`` over fakes, and what came of it."""

    def __init__(
        self, folder, step=loss_of, start=0, stop_at=None, plan=None, **options
    ):
        self.options = options
        self.checkpoints, self.progress = FakeCheckpoints(), FakeProgress()
        self.records, self.step, self.start = RunRecords(folder), step, start
        self.stop_at, self.due = stop_at, plan or due()
        self.reached = start
        self.evaluate = lambda state: {"f1": int(state.step) / STEPS, "loss": 1.0}

    def fit(self):
        zero = jnp.int32(0)
        state = State({}, {}, {}, jnp.int32(self.start), zero, zero)
        with self.records:
            return fit(
                state,
                self._take,
                FakeLoader(),
                self.due,
                schedule=lambda step: 1.0 - step / STEPS,
                evaluate=self.evaluate,
                checkpoints=self.checkpoints,
                records=self.records,
                progress=self.progress,
                headline="f1",
                stopped=lambda step: self.reached == self.stop_at,
                **self.options,
            )

    def _take(self, state, batch):
        self.reached += 1
        return state._replace(step=state.step + 1), self.step(self.reached)

    def lines(self):
        return {line["step"]: line for line in self.records.read()}

    def status(self):
        return json.loads((self.records.workdir / "status.json").read_text())


def nothing(number):
    """A step none of whose places counts."""
    empty = LossSum(jnp.float32(0.0), jnp.float32(0.0))
    return {**figures(0.0, 1.0), "losses": {"words": empty}, "measures": {}}


def test_a_first_epoch_of_which_nothing_counts_is_refused_unsaved(tmp_path):
    run = Running(tmp_path, step=nothing)
    with pytest.raises(UserError, match="first epoch counts in the loss"):
        run.fit()
    assert run.checkpoints.saved == {}


def test_steps_of_which_nothing_counts_are_no_fault_beside_others(tmp_path):
    few = Running(tmp_path / "few", step=lambda n: nothing(n) if n < 4 else loss_of(n))
    assert int(few.fit().step) == STEPS
    late = Running(tmp_path / "late", step=nothing, start=3)
    assert int(late.fit().step) == STEPS


def test_it_saves_evaluates_and_logs_when_due(tmp_path):
    run = Running(tmp_path)
    state = run.fit()
    assert int(state.step) == STEPS
    assert list(run.checkpoints.saved) == [4, 8, 10]
    assert run.checkpoints.saved[8] == {"f1": 0.8, "loss": 1.0}
    assert run.checkpoints.waited
    assert list(run.lines()) == [3, 4, 6, 8, 9, 10]
    assert run.progress.steps == list(range(1, STEPS + 1))
    assert [step for step, _ in run.progress.lines] == [4, 8, 10]
    assert run.progress.lines[1][1]["validation"] == {"f1": 0.8}


def test_a_line_is_about_the_steps_since_the_line_before(tmp_path):
    run = Running(tmp_path)
    run.fit()
    lines = run.lines()
    assert lines[3]["loss"] == pytest.approx((1 + 4 + 9) / (1 + 2 + 3))
    assert lines[4]["loss"] == pytest.approx(4.0)
    assert lines[8]["loss"] == pytest.approx((49 + 64) / (7 + 8))


def test_what_a_phase_takes_to_compile_is_no_time_of_training(tmp_path):
    def ready(number, batch):
        time.sleep(0.5 * (number == 5))
        return True

    run = Running(tmp_path, plan=due(log=1), turns={5: lambda s: s}, ready=ready)
    run.fit()
    assert run.lines()[STEPS]["seconds"] < 0.5


def test_a_step_that_is_not_to_be_taken_leaves_the_line_and_the_save_of_the_one_before(
    tmp_path,
):
    turned = []

    def turn(state):
        turned.append(int(state.step))
        return state

    run = Running(tmp_path, turns={5: turn}, ready=lambda number, batch: number != 5)
    assert int(run.fit().step) == 5
    assert list(run.lines()) == [3, 4, 5] and list(run.checkpoints.saved) == [4, 5]
    assert run.lines()[5]["loss"] == pytest.approx(5.0) and not turned


def test_a_line_has_the_rate_that_its_step_was_taken_with(tmp_path):
    run = Running(tmp_path)
    run.fit()
    assert run.lines()[3]["learning_rate"] == pytest.approx(0.8)


def test_every_line_has_a_loss_where_every_step_has_a_line(tmp_path):
    run = Running(tmp_path, plan=due(log=1))
    run.fit()
    assert {step: line["loss"] for step, line in run.lines().items()} == {
        step: step for step in range(1, STEPS + 1)
    }


def test_an_epoch_line_is_about_the_whole_epoch(tmp_path):
    run = Running(tmp_path)
    run.fit()
    losses = [shown["loss"] for _, shown in run.progress.lines]
    assert losses[0] == pytest.approx((1 + 4 + 9 + 16) / (1 + 2 + 3 + 4))
    assert losses[2] == pytest.approx((81 + 100) / (9 + 10))


def test_a_line_inside_an_epoch_leaves_that_of_the_epoch_whole(tmp_path):
    run = Running(tmp_path, plan=due({"every_steps": 3}))
    run.fit()
    losses = {step: shown["loss"] for step, shown in run.progress.lines}
    assert losses[3] == pytest.approx((1 + 4 + 9) / (1 + 2 + 3))
    assert losses[4] == pytest.approx((1 + 4 + 9 + 16) / (1 + 2 + 3 + 4))
    assert losses[6] == pytest.approx((25 + 36) / (5 + 6))
    assert losses[8] == pytest.approx((25 + 36 + 49 + 64) / (5 + 6 + 7 + 8))


def test_it_goes_on_from_the_step_of_the_state(tmp_path):
    run = Running(tmp_path, start=4)
    state = run.fit()
    assert int(state.step) == STEPS
    assert list(run.checkpoints.saved) == [8, 10]
    whole = Running(tmp_path / "whole")
    whole.fit()
    for step, line in run.lines().items():
        assert line["loss"] == pytest.approx(whole.lines()[step]["loss"])


def test_nothing_is_left_to_do_at_the_end_of_the_plan(tmp_path):
    run = Running(tmp_path, start=STEPS)
    assert int(run.fit().step) == STEPS
    assert run.checkpoints.saved == {}


def test_a_wish_to_stop_is_met_at_the_next_step_saved_and_logged(tmp_path):
    run = Running(tmp_path, stop_at=5)
    state = run.fit()
    assert int(state.step) == 5
    assert list(run.checkpoints.saved) == [4, 5]
    assert run.checkpoints.saved[5] is None
    assert run.checkpoints.waited
    assert run.lines()[5]["loss"] == pytest.approx(5.0)


def test_a_wish_to_stop_where_a_save_was_due_keeps_its_score(tmp_path):
    run = Running(tmp_path, stop_at=4)
    run.fit()
    assert run.checkpoints.saved == {4: {"f1": 0.4, "loss": 1.0}}


def test_an_evaluation_that_was_interrupted_is_made_when_the_run_goes_on(tmp_path):
    run = Running(tmp_path)
    whole, run.evaluate = run.evaluate, interrupted
    assert int(run.fit().step) == 4
    assert run.checkpoints.saved == {4: None}
    again = Running(tmp_path, start=4)
    again.checkpoints, again.evaluate = run.checkpoints, interrupted
    assert int(again.fit().step) == 4  # interrupted once more
    again.evaluate = whole
    again.fit()
    assert again.checkpoints.saved[4] == {"f1": 0.4, "loss": 1.0}
    assert again.progress.steps[0] == 5


def interrupted(state):
    raise Interrupted()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path, value):
    run = Running(tmp_path, step=lambda n: figures(value if n > 5 else 1.0, 1.0))
    with pytest.raises(Diverged, match=f"the loss is {value} by step 6") as caught:
        run.fit()
    assert caught.value.step == 6
    assert list(run.checkpoints.saved) == [4]


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path):
    """The parameters are then no numbers, though the loss shows it a step later."""
    run = Running(
        tmp_path,
        step=lambda n: figures(1.0, 1.0, gradient=float("nan") if n == 8 else 1.0),
    )
    with pytest.raises(Diverged, match="the gradient norm is nan by step 8"):
        run.fit()
    assert list(run.checkpoints.saved) == [4]


def test_the_status_says_the_step_of_the_last_save(tmp_path):
    run = Running(tmp_path, stop_at=9)
    run.fit()
    assert run.status()["state"] == "running"
    assert (run.status()["step"], run.status()["total_steps"]) == (8, STEPS)


def test_a_lap_without_a_step_has_no_speed():
    clock = Clock(FakeLoader())
    assert clock.lap() is None
    clock.count(5)
    assert clock.lap() > 0


def test_seconds_go_on_from_those_of_before(tmp_path):
    run = Running(tmp_path, start=4, elapsed=100.0)
    run.fit()
    assert all(100.0 <= line["seconds"] < 110.0 for line in run.lines().values())


def test_a_line_says_how_long_saves_have_held_training_up(tmp_path, monkeypatch):
    run = Running(tmp_path)
    save = run.checkpoints.save

    def slowly(state, metrics=None):
        time.sleep(0.05)
        save(state, metrics)

    monkeypatch.setattr(run.checkpoints, "save", slowly)
    run.fit()
    seconds = {step: line["save_seconds"] for step, line in run.lines().items()}
    assert seconds[4] == 0.0  # the line is written before its step is saved
    assert 0.05 <= seconds[8] < 0.1 <= seconds[10]
    assert run.lines()[10]["seconds"] < 0.05  # they are no training
