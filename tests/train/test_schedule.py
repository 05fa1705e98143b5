"""How the learning rate moves: warmup, shape, end."""

import math

import numpy as np
import pytest

from jaxlm.train.config import ScheduleConfig
from jaxlm.train.schedule import make_schedule


def rates(name, steps=20, warmup=0.25, peak=0.5):
    schedule = make_schedule(ScheduleConfig(name, warmup), peak, steps)
    return np.array([float(schedule(step)) for step in range(steps)])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_warmup_rises_in_equal_steps_to_the_peak(name):
    np.testing.assert_allclose(rates(name)[:6], [0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


@pytest.mark.parametrize(
    ("steps", "ratio", "warmup"), [(25, 0.1, 3), (4, 0.1, 1), (30, 0.1, 3), (9, 0, 0)]
)
def test_steps_of_warmup_are_rounded_up(steps, ratio, warmup):
    rising = rates("constant", steps, ratio)
    assert (rising < 0.5).sum() == max(warmup - 1, 0)
    assert rising[0] == pytest.approx(0.5 / max(warmup, 1))


def test_constant_stays_at_the_peak():
    assert (rates("constant")[5:] == 0.5).all()


def test_linear_falls_by_a_line_to_zero_behind_the_last_step():
    expected = [0.5 * (1 - step / 15) for step in range(15)]
    np.testing.assert_allclose(rates("linear")[5:], expected, rtol=1e-6)
    schedule = make_schedule(ScheduleConfig("linear", 0.25), 0.5, 20)
    assert float(schedule(20)) == 0.0


def test_cosine_falls_by_half_a_cosine():
    expected = [0.25 * (1 + math.cos(math.pi * step / 15)) for step in range(15)]
    np.testing.assert_allclose(rates("cosine")[5:], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_warmup_the_first_step_has_the_peak(name):
    assert rates(name, warmup=0.0)[0] == 0.5


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5, 1.0])
def test_every_step_of_a_short_run_has_a_rate_above_zero(name, steps, warmup):
    found = rates(name, steps, warmup)
    assert (found > 0).all()
    assert (found <= 0.5).all()


def test_warmup_alone_ends_at_the_peak():
    np.testing.assert_allclose(rates("linear", 4, 1.0), [0.125, 0.25, 0.375, 0.5])
