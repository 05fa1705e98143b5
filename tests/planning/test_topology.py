"""Slices and clusters as they are written."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import pytest

from jaxlm.core.errors import UserError
from jaxlm.planning.devices import DEVICES
from jaxlm.planning.topology import parse_topology, sizes_on, topology_here


@pytest.mark.parametrize(
    ("text", "devices", "chips", "wraps"),
    [
        ("v5p:4x4x4", 64, 64, (True, True, True)),
        ("v5p:2x4x4", 32, 32, (False, False, False)),
        ("v5p:4x4x4*2", 128, 128, (True, True, True)),
        ("v5e:16x16", 256, 256, (True, True)),
        ("v5e:8x16", 128, 128, (False, True)),
        ("v6e:4x4", 16, 16, (False, False)),
        ("tpu7x:4x4x4", 128, 64, (True, True, True)),
        ("h100:8", 8, 8, ()),
        ("H200:4x8", 32, 32, ()),
    ],
)
def test_a_topology_knows_its_devices_and_rings(text, devices, chips, wraps):
    topology = parse_topology(text)
    found = topology.devices, topology.chips, topology.wraps
    assert found == (devices, chips, wraps)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5q:4x4x4", "nearest: v5p"),
        ("v5p", "needs its size after a colon"),
        ("v5p:", "needs its size after a colon"),
        ("v5p:4xx4", "needs its size"),
        ("v5p:4x4", "multiples of 4, as 4x4x8"),
        ("v5p:4x4x6", "multiples of 4, as 4x4x8"),
        ("v5p:0x4x4", "multiples of 4"),
        ("h100:-8", "after a colon, as h100:8 (GPUs) or 4x8 (hosts x GPUs)"),
        ("v5litepod-16", "nearest: v5e"),
        ("v5p:32x32x32", "more than the largest slice of v5p, 6144"),
        ("v5e:16x32", "a v5e pod is cut into 1x1"),
        ("v5p:4x4x4*0", "0 slices"),
        ("v5e:16x16*9999", "from 1 to 256"),
        ("h100:8*2", "hosts are written h100:2x8"),
        ("h100:4x8*2", "hosts are written h100:8x8"),
        ("h100:3", "1, 2, 4 or 8 GPUs"),
        ("h100:2x2x8", "hosts x GPUs"),
        ("h100:0x8", "hosts x GPUs"),
        ("", "is no device"),
    ],
)
def test_a_wrong_topology_is_refused_by_what_is_allowed(text, words):
    with pytest.raises(UserError, match="--topology") as problem:
        parse_topology(text)
    assert words in str(problem.value)


def test_the_rest_of_a_mesh_is_filled_in():
    topology = parse_topology("v5p:4x4x4")
    sizes = {"data": 1, "fsdp": -1, "tensor": 2, "context": 1}
    assert sizes_on(topology, sizes) == {**sizes, "fsdp": 32}


@pytest.mark.parametrize(
    "sizes", [{"data": -1, "fsdp": 3}, {"data": 1, "fsdp": 32}, {"data": 2, "fsdp": 64}]
)
def test_a_mesh_of_another_number_of_devices_is_refused(sizes):
    with pytest.raises(UserError, match=r"config.mesh: .* has 64") as problem:
        sizes_on(parse_topology("v5p:4x4x4"), sizes)
    assert ("set one to -1" in str(problem.value)) == (-1 not in sizes.values())


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_a_device_has_its_sheet_and_plausible_figures(device):
    assert device.source.startswith("https://")
    assert 1e14 < device.flops < 5e15
    assert 100 < device.flops / device.bandwidth < 1000  # FLOPs a byte
    assert device.network < device.link < device.bandwidth


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("TPU v5", "v5p:4x4x4"),
        ("TPU v5 lite", "v5e:4x8"),
        ("NVIDIA H100 80GB HBM3", "h100:2x8"),
        ("NVIDIA A100-SXM4-80GB", "a100:1x4"),
    ],
)
def test_a_machine_s_own_topology_is_known(kind, text):
    wanted = parse_topology(text)
    devices = [
        SimpleNamespace(device_kind=kind, coords=place, process_index=place[0])
        for place in product(*(range(side) for side in wanted.shape))
    ]
    found = topology_here(devices)
    assert (found.device, found.shape) == (wanted.device, wanted.shape)


def test_a_machine_of_a_size_that_cannot_be_planned_for_says_so():
    three = [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", process_index=0)] * 3
    with pytest.raises(UserError, match="layout: auto cannot plan for these 3 devices"):
        topology_here(three)


def test_a_machine_that_cannot_be_planned_for_says_so():
    with pytest.raises(
        UserError, match=r"auto cannot plan for the devices that are here \(cpu\)"
    ):
        topology_here([SimpleNamespace(device_kind="cpu")])


def test_a_card_of_less_memory_than_the_one_of_its_name_is_not_planned_for():
    def here(kind):
        return topology_here([SimpleNamespace(device_kind=kind, process_index=0)] * 8)

    assert here("NVIDIA A100-SXM4-80GB").device.name == "a100"
    assert here("NVIDIA H200").device.name == "h200"
    with pytest.raises(UserError, match=r"auto cannot plan .*A100-SXM4-40GB"):
        here("NVIDIA A100-SXM4-40GB")


def test_a_gpu_here_has_the_memory_that_jax_lets_a_program_have():
    def here(limit):
        stats = None if limit is None else {"bytes_limit": limit}
        kind = "NVIDIA H100 80GB HBM3"
        one = SimpleNamespace(
            device_kind=kind, process_index=0, memory_stats=lambda: stats
        )
        return topology_here([one] * 8)

    assert here(60 * 2**30).device.memory == 60 * 2**30
    assert here(None) == here(10**12) == parse_topology("h100:1x8")
