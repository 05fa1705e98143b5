"""Collectives of a program: groups, axes, what they stand for, how long they take."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.planning.calibration import Efficiency
from jaxlm.planning.collectives import kind_of, payload, stands_in, waits
from jaxlm.planning.groups import axes_of, axes_of_pairs, groups_of, pairs_of
from jaxlm.planning.hlo import parse
from jaxlm.planning.network import Network
from jaxlm.planning.timeline import Walk
from jaxlm.planning.topology import parse_topology
from tests.planning.programs import entry

MESH = {"data": 4, "fsdp": 16, "tensor": 1, "context": 1}
IDEAL = Efficiency(1.0, 1.0, 1.0, 1.0, 1.0, 0.0)


def one(line: str, before: str = ""):
    """The module of a line, and its instruction ``y``."""
    module = parse(entry(f"  %x = bf16[1024,1024]{{1,0}} parameter(0)\n{line}", before))
    inside = module[module.entry]
    return module, inside, inside["y"]


@pytest.mark.parametrize(
    ("text", "first", "axis"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", [0, 1, 2, 3], "some"),
        ("replica_groups={}", list(range(64)), "data+fsdp"),
        ("replica_groups=[4,16]<=[64]", list(range(16)), "fsdp"),
        ("replica_groups=[16,4]<=[4,16]T(1,0)", [0, 16, 32, 48], "data"),
        ("replica_groups=mesh['a'=64,'b'=1] {'a'}", list(range(64)), "data+fsdp"),
        ("replica_groups=mesh['a'=4,'b'=16] {'b'}", list(range(16)), "fsdp"),
        ("replica_groups=mesh['a'=4,'b'=16] {'a'}", [0, 16, 32, 48], "data"),
        (
            "replica_groups=mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'a'}",
            list(range(16)),
            "fsdp",
        ),
        ("replica_groups=mesh['a'=64] {'a':(4)16}", list(range(16)), "fsdp"),
        ("replica_groups=mesh['a'=64] {'a':(1)4}", [0, 16, 32, 48], "data"),
    ],
)
def test_groups_are_read_in_every_way_that_xla_writes_them(text, first, axis):
    _, _, each = one(f"  %y = bf16[1024,1024]{{1,0}} all-reduce(%x), {text}")
    groups = groups_of(each, 64)
    assert groups[0].tolist() == first
    assert sorted(groups.ravel().tolist()) == list(range(groups.size))
    assert axes_of(groups, MESH) == axis


def test_pairs_of_a_permute_tell_their_axis():
    text = "source_target_pairs={{0,16},{16,32},{32,48}}"
    _, _, each = one(f"  %y = bf16[1024,1024]{{1,0}} collective-permute(%x), {text}")
    pairs = pairs_of(each)
    assert axes_of_pairs(pairs, MESH) == "data"


SLICE = """\
%slice (param_0: bf16[1024,1024], param_1: s32[]) -> bf16[64,1024] {
  %param_0 = bf16[1024,1024]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = bf16[64,1024]{1,0} dynamic-slice(%param_0, %param_1, %zero), \
dynamic_slice_sizes={64,1024}
}

"""


def test_a_reduction_of_which_each_takes_its_slice_stands_for_a_scatter():
    line = (
        "  %i = s32[] partition-id()\n"
        "  %y = bf16[1024,1024]{1,0} all-reduce(%x), replica_groups=[4,16]<=[64]\n"
        "  %z = bf16[64,1024]{1,0} fusion(%y, %i), kind=kLoop, calls=%slice"
    )
    module, inside, each = one(line, SLICE)
    assert stands_in(module, inside, each, "all-reduce", 16) == "reduce-scatter"
    line = line.replace("fusion(%y, %i), kind=kLoop, calls=%slice", "negate(%y)")
    assert stands_in(*one(line), "all-reduce", 16) == ""


def test_a_reduction_of_parts_among_zeros_stands_for_a_gather():
    line = (
        "  %i = s32[] partition-id()\n  %w = bf16[64,1024]{1,0} parameter(1)\n"
        "  %u = bf16[1024,1024]{1,0} dynamic-update-slice(%x, %w, %i, %i)\n"
        "  %y = bf16[1024,1024]{1,0} all-reduce(%u), replica_groups=[4,16]<=[64]"
    )
    assert stands_in(*one(line), "all-reduce", 16) == "all-gather"


def test_a_fusion_may_be_a_scatter():
    before = """\
%all-reduce-scatter.1 (input: bf16[1024,1024]) -> bf16[64,1024] {
  %input = bf16[1024,1024]{1,0} parameter(0)
  %i = s32[] partition-id()
  %all-reduce.1 = bf16[1024,1024]{1,0} all-reduce(%input), \
replica_groups=[4,16]<=[64], to_apply=%add
  ROOT %part = bf16[64,1024]{1,0} dynamic-slice(%all-reduce.1, %i, %i), \
dynamic_slice_sizes={64,1024}
}

"""
    module, inside, each = one(
        "  %y = bf16[64,1024]{1,0} fusion(%x), kind=kCustom,"
        " calls=%all-reduce-scatter.1",
        before,
    )
    kind = kind_of(module, each)
    assert kind == "reduce-scatter"
    assert payload(module, inside, each, kind) == 2 * 1024 * 1024
    assert waits(module, each)


def test_a_gpu_s_start_says_whether_it_waits():
    line = (
        "  %y = (bf16[1024,1024]{1,0}, bf16[16384,1024]{1,0}) all-gather-start(%x),"
        " replica_groups=[4,16]<=[64], dimensions={0}, backend_config="
        '{"collective_backend_config":{"is_sync":true}}'
    )
    module, inside, each = one(line)
    assert waits(module, each)
    assert payload(module, inside, each, "all-gather") == 2 * 16384 * 1024
    module, inside, each = one(line.replace("true", "false"))
    assert not waits(module, each)


def network(text: str, order: list[list[int]] | None = None) -> Network:
    """A network of ideal links, whose devices lie in the order of their places."""
    topology = parse_topology(text)
    shape = topology.shape
    if topology.device.dimensions:
        shape = (topology.slices, *shape)
    places = list(np.ndindex(*shape)) if order is None else order
    return Network(topology, np.array(places))


def test_a_ring_gathers_both_ways_and_a_line_one_way():
    ring = network("v5p:4x4x4").seconds("all-gather", 1e9, range(4))
    assert ring == pytest.approx(1e9 * 3 / 4 / 200e9)
    line = network("v5p:2x4x4").seconds("all-gather", 1e9, range(4))
    assert line == pytest.approx(1e9 * 3 / 4 / 100e9)


def test_a_reduction_is_a_scatter_and_a_gather():
    torus = network("v5p:4x4x4")
    whole = torus.seconds("all-gather", 1e9, range(64))
    assert whole == pytest.approx(1e9 * 63 / 64 / 600e9)  # three rings
    assert torus.seconds("all-reduce", 1e9, range(64)) == pytest.approx(2 * whole)
    assert torus.seconds("all-gather", 1e9, [5]) == 0


def test_two_devices_of_a_chip_share_its_links_and_have_a_way_of_their_own():
    """As of tpu7x."""
    order = [[0, *place] for place in np.ndindex(4, 4, 4) for _ in range(2)]
    chips = network("tpu7x:4x4x4", order)
    together = chips.seconds("all-gather", 1e9, range(128))
    assert together == pytest.approx(1e9 * 127 / 128 / (6 * 100e9))
    apart = chips.seconds("all-gather", 1e9, range(0, 128, 2))
    assert apart == pytest.approx(1e9 * 63 / 64 / (3 * 100e9))
    inside = chips.seconds("all-gather", 1e9, [0, 1])
    assert inside == pytest.approx(1e9 / 2 / (6 * 100e9))
    assert chips.seconds("all-to-all", 1e9, [0, 1]) == pytest.approx(1e9 / 600e9)
    assert chips.seconds("collective-permute", 1e9, [0, 1]) == pytest.approx(1 / 600)
    assert chips.seconds("collective-permute", 1e9, [0, 2]) == pytest.approx(1 / 50)


def test_hosts_apart_are_as_fast_as_their_slower_network():
    near = network("h100:8").seconds("all-gather", 1e9, range(8))
    assert near == pytest.approx(1e9 * 7 / 8 / 450e9)
    far = network("h100:4x8").seconds("all-gather", 1e9, range(32))
    assert far == pytest.approx(max(1e9 * 7 / 8 / 450e9, 1e9 * 3 / 4 / (8 * 50e9)))
    farther = network("h100:32x8").seconds("all-gather", 1e9, range(256))
    assert farther == pytest.approx(1e9 * 31 / 32 / (8 * 50e9))
    alone = network("h100:4x8").seconds("all-reduce", 1e9, [0, 8, 16, 24])
    assert alone == pytest.approx(2 * 1e9 * 3 / 4 / 50e9)


OVERLAP = """\
  %w = bf16[4096,4096]{1,0} parameter(1)
  %y = (bf16[1024,1024]{1,0}, bf16[8192,1024]{1,0}) all-gather-start(%x), \
replica_groups=[1,8]<=[8], dimensions={0}, backend_config={"is_sync":false}
  %c = f32[4096,4096]{1,0} dot(%w, %w), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  %z = bf16[8192,1024]{1,0} all-gather-done(%y)
"""


def test_what_stands_between_start_and_end_hides_a_collective():
    text = entry("  %x = bf16[1024,1024]{1,0} parameter(0)\n" + OVERLAP)
    mesh = {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    line = Walk(parse(text), mesh, network("h100:8"), IDEAL).run()
    dot = 2 * 4096**3 / 989e12
    gather = 8192 * 1024 * 2 * 7 / 8 / 450e9
    assert gather < dot
    assert line.exposed == 0
    assert line.seconds == pytest.approx(dot)
    assert [each.axis for each in line.collectives] == ["fsdp"]
    alone = text.replace('"is_sync":false', '"is_sync":true')
    line = Walk(parse(alone), mesh, network("h100:8"), IDEAL).run()
    assert line.exposed == pytest.approx(gather)
    assert line.seconds == pytest.approx(dot + gather)


CHAIN = """\
%start (p: bf16[512,1024]) -> (bf16[512,1024], bf16[8192,1024], u32[]) {
  %p = bf16[512,1024]{1,0} parameter(0)
  %all-gather.1 = bf16[8192,1024]{1,0} all-gather(%p), \
replica_groups=[4,16]<=[64], dimensions={0}, frontend_attributes={chain_id="3"}
  ROOT %t = (bf16[512,1024]{1,0}, bf16[8192,1024]{1,0}, u32[]{:S(2)}) custom-call(%p)
}

%beside (p.1: bf16[512,1024], w.1: bf16[4096,4096]) -> bf16[4096,4096] {
  %p.1 = bf16[512,1024]{1,0} parameter(0)
  %w.1 = bf16[4096,4096]{1,0} parameter(1)
  %all-gather.2 = bf16[8192,1024]{1,0} all-gather(%p.1), \
replica_groups=[4,16]<=[64], dimensions={0}, frontend_attributes={chain_id="3"}
  ROOT %convolution.1 = bf16[4096,4096]{1,0} convolution(%w.1, %w.1), \
dim_labels=bf_io->bf
}

%done (p.2: bf16[512,1024]) -> bf16[8192,1024] {
  %p.2 = bf16[512,1024]{1,0} parameter(0)
  ROOT %all-gather.3 = bf16[8192,1024]{1,0} all-gather(%p.2), \
replica_groups=[4,16]<=[64], dimensions={0}, frontend_attributes={chain_id="3"}
}

"""


def test_a_tpu_s_collective_that_is_fused_with_computations_is_one():
    lines = (
        "  %a = bf16[512,1024]{1,0} parameter(0)\n"
        "  %w = bf16[4096,4096]{1,0} parameter(1)\n"
        "  %async-collective-start = (bf16[512,1024]{1,0}, bf16[8192,1024]{1,0},"
        " u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start\n"
        "  %fusion.1 = bf16[4096,4096]{1,0} fusion(%a, %w), kind=kOutput,"
        " calls=%beside\n"
        "  %async-collective-done = bf16[8192,1024]{1,0} fusion(%a), kind=kCustom,"
        " calls=%done"
    )
    line = Walk(parse(entry(lines, CHAIN)), MESH, network("v5p:4x4x4"), IDEAL).run()
    (found,) = line.collectives
    assert (found.kind, found.axis, found.synchronous) == ("all-gather", "fsdp", False)
    assert found.bytes == 8192 * 1024 * 2
    product = 2 * 4096**3 / 459e12
    assert line.seconds == pytest.approx(product)
    assert line.flops == 2 * 4096**3
    assert found.exposed == 0 < found.seconds < product


SPARSE = """\
%called.1 (p: bf16[512,1024], t: token[]) -> bf16[8192,1024] {
  %p = bf16[512,1024]{1,0} parameter(0)
  %t = token[] parameter(1)
  ROOT %all-gather.1 = bf16[8192,1024]{1,0} all-gather(%p), \
replica_groups=[4,16]<=[64], dimensions={0}
}, execution_thread="sparsecore"

"""


def test_a_collective_on_another_core_runs_beside_computations():
    """As tpu7x has all but the smallest."""
    lines = (
        "  %a = bf16[512,1024]{1,0} parameter(0)\n"
        "  %w = f32[4096,4096]{1,0} parameter(1)\n"
        "  %t = token[] parameter(2)\n"
        "  %call-start = ((bf16[512,1024]{1,0}, token[]), bf16[8192,1024]{1,0},"
        ' u32[]{:S(8)}) call-start(%a, %t), async_execution_thread="sparsecore",'
        " to_apply=%called.1\n"
        "  %c = f32[4096,4096]{1,0} dot(%w, %w), lhs_contracting_dims={1},"
        " rhs_contracting_dims={0}\n"
        "  %done = bf16[8192,1024]{1,0} call-done(%call-start)"
    )
    line = Walk(parse(entry(lines, SPARSE)), MESH, network("v5p:4x4x4"), IDEAL).run()
    (found,) = line.collectives
    assert (found.kind, found.axis, found.synchronous) == ("all-gather", "fsdp", False)
    assert found.bytes == 8192 * 1024 * 2
    assert found.exposed == 0 < found.seconds
    assert line.seconds == pytest.approx(2 * 4096**3 / 459e12)


@pytest.mark.parametrize(("kind", "rate"), [("bf16", 1), ("f32", 2)])
def test_a_gpu_s_products_of_fp32_are_of_tf32(kind, rate):
    lines = (
        f"  %w = {kind}[4096,4096]{{1,0}} parameter(0)\n"
        f"  %c = f32[4096,4096]{{1,0}} dot(%w, %w), lhs_contracting_dims={{1}},"
        " rhs_contracting_dims={0}"
    )
    mesh = {"data": 8, "fsdp": 1, "tensor": 1, "context": 1}
    line = Walk(parse(entry(lines)), mesh, network("h100:8"), IDEAL).run()
    assert line.seconds == pytest.approx(rate * 2 * 4096**3 / 989e12)
    chips = {"data": 64, "fsdp": 1, "tensor": 1, "context": 1}
    line = Walk(parse(entry(lines)), chips, network("v5p:4x4x4"), IDEAL).run()
    assert line.seconds == pytest.approx(2 * 4096**3 / 459e12)


BETWEEN = """\
  %a = f32[4096,4096]{1,0} parameter(0)
  %t = token[] after-all()
  %recv = (f32[4096,4096]{1,0}, u32[], token[]) recv(%t), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.21_0",\
_xla_megascale_target="{1,2}x{0:255}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send = (f32[4096,4096]{1,0}, u32[], token[]) send(%a, %t), channel_id=3, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.21_0",\
_xla_megascale_target="{1,2}x{0:255}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %c = f32[4096,4096]{1,0} dot(%a, %a), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  %send-done = token[] send-done(%send), channel_id=3, is_host_transfer=true
  %recv-done = (f32[4096,4096]{1,0}, token[]) recv-done(%recv), channel_id=2
"""


def test_what_goes_between_slices_is_a_collective_on_their_network():
    """Which the compiler writes as what hosts send and receive."""
    order = [[n // 256, n // 16 % 16, n % 16] for n in range(512)]
    slices = network("v5e:16x16*2", order)
    mesh = {"data": 2, "fsdp": 256, "tensor": 1, "context": 1}
    line = Walk(parse(entry(BETWEEN)), mesh, slices, IDEAL).run()
    (found,) = line.collectives
    assert (found.kind, found.axis, found.devices) == ("all-reduce", "data", 2)
    assert not found.synchronous
    assert found.bytes == 4096**2 * 4
    takes, product = 2 * 4096**2 * 4 / 2 / 3.125e9, 2 * 4096**3 / 197e12
    assert found.seconds == pytest.approx(takes)
    assert found.exposed == pytest.approx(takes - product)
    assert line.seconds == pytest.approx(takes)


def test_what_moves_to_the_host_is_said_to_be_hidden():
    lines = (
        "  %x = bf16[1024,1024]{1,0} parameter(0)\n"
        "  %y = (bf16[1024,1024]{1,0:S(5)}, bf16[1024,1024]{1,0}, u32[]{:S(2)})"
        " copy-start(%x)\n  %z = bf16[1024,1024]{1,0:S(5)} copy-done(%y)"
    )
    line = Walk(parse(entry(lines)), MESH, network("v5p:4x4x4"), IDEAL).run()
    assert any("host" in note for note in line.notes)
