"""``config.mesh.layout=auto``: the planner's sizes, kept by the run."""

from dataclasses import replace

import pytest

from jaxlm.core import config as configs
from jaxlm.core.errors import UserError
from jaxlm.experiment import layout
from jaxlm.experiment.layout import configured, settled
from tests.small_runs import config, quietly


@pytest.fixture
def auto():
    return config(mesh__data=-1, mesh__layout="auto")


def test_a_layout_of_ones_own_is_left_alone():
    manual = config(mesh__data=2, mesh__fsdp=4)
    assert settled(manual, None, quietly) is manual


def test_the_planner_is_asked_for_the_devices_that_are_here(auto):
    with pytest.raises(UserError, match="layout: auto cannot plan for cpu; allowed"):
        settled(auto, None, quietly)


def test_the_sizes_that_are_found_are_the_runs(auto, monkeypatch):
    found = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    monkeypatch.setattr(layout, "planned", lambda config, say: found)
    said = []
    chosen = settled(auto, None, said.append)
    assert chosen.mesh.sizes == found and chosen.mesh.layout == "manual"
    assert replace(chosen, mesh=auto.mesh) == auto
    assert said == ["layout data=2 x fsdp=4, by the planner"]


def test_a_run_that_goes_on_keeps_its_sizes(auto, tmp_path):
    sizes = {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    configs.write(tmp_path / configs.FILE, configured(auto, sizes), {})
    assert settled(auto, tmp_path, quietly).mesh.sizes == sizes
