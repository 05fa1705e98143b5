"""Programs read back from text: types, loops, work of each instruction."""

from __future__ import annotations

import pytest

from jaxlm.planning.hlo import Array, parse, read_arrays, trips
from jaxlm.planning.work import cycles, flops, moved
from tests.planning.programs import LOOP, entry


def only(lines: str, before: str = "", name: str = "y"):
    """The module of some lines, its entry and one of its instructions."""
    module = parse(entry(lines, before))
    inside = module[module.entry]
    return module, inside, inside[name]


def test_a_type_knows_sizes_and_where_it_lies():
    text = "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[], s4[3]{0}, f8e5m2[5])"
    found = read_arrays(text)
    assert found == (
        Array("bf16", (8, 128), 1),
        Array("f32", ()),
        Array("s4", (3,)),
        Array("f8e5m2", (5,)),
    )
    assert [each.bytes for each in found] == [2048, 4, 1.5, 5]


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("module @jit_step {}")


def test_a_scan_s_turns_are_read_from_its_condition():
    module = parse(LOOP)
    inside = module[module.entry]
    assert trips(module, inside, inside["while"]) == 32


def test_a_gpu_s_compiler_says_how_often_a_loop_runs():
    line = (
        "  %y = (s32[]) while(%x), condition=%c, body=%b, backend_config="
        '{"known_trip_count":{"n":"8"},"known_init_step":{"init":"0","step":"1"}}'
    )
    assert trips(*only(line)) == 8


def test_a_loop_whose_end_is_computed_has_no_known_turns():
    module = parse(LOOP.replace("s32[]{:T(128)} constant(32)", "s32[] parameter(1)"))
    inside = module[module.entry]
    assert trips(module, inside, inside["while"]) is None


def test_a_layer_s_slice_costs_a_layer_and_not_the_stack():
    module = parse(LOOP)
    body = module["body"]
    layer, kept = 64 * 128 * 2, 256 * 128 * 2
    # Read from main memory, written to that on the chip; there it is read from, too.
    assert moved(module, body, body["layer"]) == layer
    assert moved(module, body, body["y"]) == 256 * 64 * 2 + kept
    assert moved(module, body, body["stored"]) == 2 * kept
    main = module["main"]
    assert moved(module, main, main["while"]) == moved(module, main, main["empty"]) == 0
    assert flops(module, body, body["y"]) == 2 * 256 * 64 * 128
    assert cycles(body["y"]) == 700


def test_a_batched_product_counts_each_batch_once():
    lines = (
        "  %a = bf16[4,16,32]{2,1,0} parameter(0)\n"
        "  %b = bf16[4,32,8]{2,1,0} parameter(1)\n"
        "  %y = bf16[4,16,8]{2,1,0} dot(%a, %b), lhs_batch_dims={0},"
        " lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    )
    assert flops(*only(lines)) == 2 * 4 * 16 * 32 * 8


def test_a_batched_product_written_as_a_convolution_counts_no_padding():
    """As a TPU has it: heads are a dimension of the window, all else of it padding."""
    lines = (
        "  %q = bf16[8,512,64]{2,1,0} parameter(0)\n"
        "  %k = bf16[8,512,64]{2,1,0} parameter(1)\n"
        "  %y = f32[8,512,512]{2,1,0} convolution(%q, %k), window={size=8 stride=7"
        " pad=0_0 lhs_dilate=8}, dim_labels=0bf_0oi->0bf"
    )
    assert flops(*only(lines)) == 2 * 8 * 512 * 512 * 64


@pytest.mark.parametrize(
    ("size", "window", "text"),
    [(9, 3, "size=3 stride=2 pad=1_1"), (5, 3, "size=3 pad=2_2 rhs_dilate=2")],
)
def test_a_convolution_counts_the_pairs_that_meet(size, window, text):
    stride = 2 if "stride" in text else 1
    dilation = 2 if "rhs_dilate" in text else 1
    low = 1 if "pad=1_1" in text else 2
    out = (size + 2 * low - dilation * (window - 1) - 1) // stride + 1
    lines = (
        f"  %x = f32[2,{size},3] parameter(0)\n  %w = f32[{window},3,4] parameter(1)\n"
        f"  %y = f32[2,{out},4] convolution(%x, %w), window={{{text}}},"
        " dim_labels=b0f_0io->b0f"
    )
    pairs = sum(
        0 <= o * stride - low + k * dilation < size
        for o in range(out)
        for k in range(window)
    )
    assert flops(*only(lines)) == 2 * 2 * 3 * 4 * pairs


def test_a_prefetch_moves_an_array_once():
    lines = (
        "  %x = f32[128]{0:T(128)} parameter(0)\n"
        "  %y = (f32[128]{0:T(128)S(1)}, f32[128]{0:T(128)}, u32[]{:S(2)})"
        " copy-start(%x)\n  %z = f32[128]{0:T(128)S(1)} copy-done(%y)"
    )
    module, inside, start = only(lines)
    assert moved(module, inside, start) == 512
    assert moved(module, inside, inside["z"]) == 0


def test_a_prefetch_of_a_slice_moves_the_slice_once():
    lines = (
        "  %x = f32[24,64,128]{2,1,0:T(8,128)} parameter(0)\n"
        "  %y = ((f32[24,64,128]{2,1,0:T(8,128)}), f32[6,64,128]{2,1,0:T(8,128)S(1)},"
        " s32[]{:S(2)}) slice-start(%x), slice={[0:6], [0:64], [0:128]}\n"
        "  %z = f32[6,64,128]{2,1,0:T(8,128)S(1)} slice-done(%y)"
    )
    module, inside, start = only(lines)
    assert moved(module, inside, start) == 6 * 64 * 128 * 4
    assert moved(module, inside, inside["z"]) == 0


def test_a_fusion_that_runs_beside_others_costs_what_a_fusion_does():
    """As a GPU's compiler of jax 0.11 writes the storing of a layer's activations."""
    fused = (
        "%store (a: bf16[48,128,64], b: bf16[128,64], c: s32[]) -> bf16[48,128,64] {\n"
        "  %a = bf16[48,128,64]{2,1,0} parameter(0)\n"
        "  %b = bf16[128,64]{1,0} parameter(1)\n"
        "  %c = s32[] parameter(2)\n"
        "  %d = bf16[1,128,64]{2,1,0} bitcast(%b)\n"
        "  %zero = s32[] constant(0)\n"
        "  ROOT %u = bf16[48,128,64]{2,1,0} dynamic-update-slice(%a, %d, %c, %zero,"
        " %zero)\n}\n"
    )
    lines = (
        "  %x = bf16[48,128,64]{2,1,0} parameter(0)\n"
        "  %k = bf16[128,64]{1,0} parameter(1)\n  %n = s32[] parameter(2)\n"
        "  %s = ((bf16[48,128,64]{2,1,0}, bf16[128,64]{1,0}, s32[]),"
        " bf16[48,128,64]{2,1,0}, u32[]) fusion-start(%x, %k, %n), kind=kLoop,"
        " calls=%store\n"
        "  %y = bf16[48,128,64]{2,1,0} fusion-done(%s)"
    )
    module, inside, start = only(lines, fused, "s")
    assert start.arrays == (Array("bf16", (48, 128, 64)),)
    assert moved(module, inside, start) == 2 * 128 * 64 * 2
    assert moved(module, inside, inside["y"]) == 0


def test_a_stack_that_is_given_other_tiles_in_place_is_not_read_whole():
    """As tpu7x's compiler has it: a fusion in a fusion, aliased to its operand."""
    inner = (
        "%tiles (p: bf16[48,128,64]) -> bf16[48,128,64] {\n"
        "  %p = bf16[48,128,64]{2,1,0} parameter(0)\n"
        "  ROOT %t = bf16[48,128,64]{2,1,0} copy(%p)\n}\n"
        "%layer (a: bf16[48,128,64], c: s32[]) -> bf16[1,128,64] {\n"
        "  %a = bf16[48,128,64]{2,1,0} parameter(0)\n"
        "  %c = s32[] parameter(1)\n"
        "  %r = bf16[48,128,64]{2,1,0} fusion(%a), kind=kLoop, calls=%tiles,"
        " output_to_operand_aliasing={{}: (0, {})}\n"
        "  %zero = s32[] constant(0)\n"
        "  ROOT %u = bf16[1,128,64]{2,1,0} dynamic-slice(%r, %c, %zero, %zero),"
        " dynamic_slice_sizes={1,128,64}\n}\n"
    )
    lines = (
        "  %x = bf16[48,128,64]{2,1,0} parameter(0)\n  %n = s32[] parameter(1)\n"
        "  %y = bf16[1,128,64]{2,1,0} fusion(%x, %n), kind=kLoop, calls=%layer"
    )
    module, inside, each = only(lines, inner)
    assert moved(module, inside, each) == pytest.approx(2 * 128 * 64 * 2, abs=8)
