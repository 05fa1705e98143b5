"""What a search chooses of what the compilers said, which stand-ins say here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxlm.core.config import resolve
from jaxlm.core.errors import UserError
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.planning import planner
from jaxlm.planning.compiling import Compilation
from jaxlm.planning.outcome import Trial
from jaxlm.planning.topology import parse_topology
from tests.planning.test_candidates import FACTS

BLOCK = "--config.model.attention_block="
SIZES = {"512": 512, "1024": 1024, "2048": 2048}


def configure(overrides):
    return resolve(ExperimentConfig, None, list(overrides)).config


def searched(monkeypatch, sizes, speed):
    """The outcome of a search, and all that it compiled, by ``speed(overrides)``."""
    compiled = []

    def run(wanted, chosen, say, **alone):
        compiled.extend(chosen)
        return [trial(each) for each in chosen]

    def trial(overrides):
        if (found := speed(overrides)) is None:
            return Trial(overrides, None, "a kernel is too large")
        facts = FACTS | {"attention_blocks": sizes}
        plan = SimpleNamespace(
            fits=True, tokens_per_second=found, facts=facts, capacity=1e15, needed=1
        )
        return Trial(overrides, plan)

    monkeypatch.setattr(planner, "run", run)
    topology = parse_topology("v5p:4x4x4")
    wanted = planner.Wanted(lambda config, mesh: None, configure, topology)
    return planner.search(wanted, lambda line: None), compiled


def block(overrides):
    return configure(overrides).model.attention_block


def test_blocks_are_tried_for_the_best_alone(monkeypatch):
    fast = "--config.train.accumulation=1"

    def speed(overrides):
        return (fast in overrides) * 100.0 + 1000.0 - block(overrides) / 1000

    found, compiled = searched(monkeypatch, SIZES, speed)
    tried = [each for each in compiled if any(BLOCK in one for one in each)]
    assert len(tried) == 2 and all(fast in each for each in tried)
    assert len(found.trials) == len(compiled)
    assert found.overrides == found.trials[0].overrides


def test_a_search_begins_elsewhere_where_the_config_s_mesh_does_not_fit(monkeypatch):
    own = ()
    outcome, compiled = searched(
        monkeypatch, {}, lambda overrides: None if overrides == own else 1.0
    )
    assert compiled[0] == own and "--config.mesh.fsdp=-1" in compiled[1]
    assert outcome.overrides


@pytest.mark.parametrize(("own", "useful"), [(90, [10, 80]), (0, [10, 80, 95])])
def test_what_needs_more_is_no_help(monkeypatch, own, useful):
    """0 is what the compiler did not say."""
    wanted = planner.Wanted(None, configure, parse_topology("v5p:4x4x4"))
    needs, first = [95, 80, 0, 10], SimpleNamespace(fits=False, needed=own)

    def run(wanted, chosen, say, **alone):
        if list(chosen) == [()]:
            return [Trial((), first)]
        plans = [SimpleNamespace(fits=n == 10, needed=n) for n in needs]
        return [Trial((), plan) for plan in plans]

    monkeypatch.setattr(planner, "run", run)
    found = planner.plan(wanted, lambda line: None)
    assert [each.plan.needed for each in found.trials] == useful


@pytest.mark.parametrize("alone", [True, False])
def test_a_compiler_that_crashes_costs_its_own_trial_and_no_other(alone):
    crashed = SimpleNamespace(result=lambda: crash())

    def crash():
        raise RuntimeError("the compiler ended by itself\nSIGSEGV")

    if alone:
        with pytest.raises(RuntimeError, match="SIGSEGV"):
            planner._trial(SimpleNamespace(topology=None), (), crashed, True)
    else:
        assert (
            planner._trial(SimpleNamespace(topology=None), (), crashed, False).refused
            == "SIGSEGV"
        )


def test_of_blocks_as_fast_the_largest_is_taken(monkeypatch):
    found, _ = searched(
        monkeypatch, SIZES, lambda each: None if block(each) == 2048 else 1000.0
    )
    assert block(found.overrides) == 1024
    assert found.trials[-1].plan is None


def test_a_larger_block_that_is_slower_is_not_taken(monkeypatch):
    found, _ = searched(monkeypatch, SIZES, lambda each: 1e6 / block(each))
    assert block(found.overrides) == 512


def test_nothing_is_compiled_for_blocks_that_no_kernel_has(monkeypatch):
    _, compiled = searched(monkeypatch, {}, lambda each: 1000.0)
    assert len(compiled) == 1 + planner.COMPILED
    assert not any(BLOCK in one for each in compiled for one in each)


class Endless:
    """A job that is never done."""

    @property
    def topology(self):
        time.sleep(600)


def begin():
    """Start a compilation, tell its process, and stay."""
    job: Any = Endless()
    print(Compilation(configure, job).process.pid, flush=True)
    time.sleep(600)


def test_a_killed_plan_leaves_no_compiler_behind():
    code = "from tests.planning import test_planner\ntest_planner.begin()"
    plan = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        compiler = int(plan.stdout.readline())  # pyright: ignore
    finally:
        plan.kill()
        plan.communicate()
    deadline = time.monotonic() + 60
    while alive(compiler):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid):
    """Whether a process is there that is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_kernel_too_large_for_its_core_says_what_helps(tmp_path):
    words = (
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in"
        " memory space vmem while allocating on stack for %splash_mha_fwd.1 ="
        " (f32[2048,128]{1,0:T(8,128)}) custom-call(%copy-done.16). Scoped allocation"
        " with size 22.81M and limit 16.00M exceeded scoped vmem limit by 6.81M."
    )
    (tmp_path / "facts.json").write_text(json.dumps({"exhausted": words}))
    done = Compilation.__new__(Compilation)
    done._end = {"folder": str(tmp_path)}
    done.process = SimpleNamespace(join=lambda: None)
    with pytest.raises(UserError, match=r"splash_mha_fwd.1 needs 22.81M .* 16.00M"):
        done.result()
