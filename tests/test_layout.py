"""``config.mesh.layout=auto``: the planner's sizes, kept by the run."""

import importlib.util
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import jax
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
    with pytest.raises(UserError, match=r"layout: auto cannot plan .*here \(cpu\)"):
        settled(auto, None, quietly)


def test_the_sizes_that_are_found_are_the_runs(auto, monkeypatch):
    found = {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
    monkeypatch.setattr(layout, "planned", lambda config, say: found)
    said = []
    chosen = settled(auto, None, said.append)
    assert chosen.mesh.sizes == found and chosen.mesh.layout == "manual"
    assert replace(chosen, mesh=auto.mesh) == auto
    assert said == ["layout data=2 x fsdp=4, by the planner"]


def test_a_run_that_goes_on_on_other_devices_is_planned_anew(
    auto, tmp_path, monkeypatch
):
    sizes = {"data": 1, "fsdp": 4, "tensor": 1, "context": 1}
    configs.write(tmp_path / configs.FILE, configured(auto, sizes), {})
    found = sizes | {"fsdp": 8}
    monkeypatch.setattr(layout, "planned", lambda config, say: found)
    assert settled(auto, tmp_path, quietly).mesh.sizes == found


def test_a_run_that_goes_on_keeps_its_sizes(auto, tmp_path):
    sizes = {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    configs.write(tmp_path / configs.FILE, configured(auto, sizes), {})
    assert settled(auto, tmp_path, quietly).mesh.sizes == sizes


def chip(x, y):
    """A chip as jax shows it on a slice of v5e."""
    return SimpleNamespace(device_kind="TPU v5 lite", coords=(x, y, 0), process_index=0)


CARD = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", process_index=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "devices", "text", "candidates"),
    [
        ("libtpu", [chip(x, y) for x in (0, 1) for y in (0, 1)], "v5e:2x2", 4),
        ("jax_cuda12_plugin", [CARD] * 4, "h100:1x4", 4),
    ],
    ids=["tpu", "gpu"],
)
def test_the_compiler_s_plans_choose_the_sizes(
    auto, tmp_path, monkeypatch, compiler, devices, text, candidates
):
    """Only the devices are stand-ins: what they are, not what is compiled for them."""
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    monkeypatch.setenv("JAXLM_CACHE", str(tmp_path))
    monkeypatch.setattr(jax, "devices", lambda: devices)
    said = []
    chosen = settled(auto, None, said.append)
    sizes = chosen.mesh.sizes
    assert chosen.mesh.layout == "manual" and prod(sizes.values()) == len(devices)
    assert said[0] == f"layout: planning a mesh of {text}"
    done = [line for line in said if line.endswith("done")]
    assert len(done) == candidates  # each of its meshes was compiled
    assert any(all(f"mesh.{a}=" in line for a in sizes) for line in done)
    assert said[-1].endswith(", by the planner")
    # Different programs, and all are kept.
    assert len(list((tmp_path / "plans").iterdir())) == candidates
