"""FLOPs of kernels, by their operands."""

from __future__ import annotations

import pytest

from jaxlm.planning.calibration import EFFICIENCIES
from jaxlm.planning.hlo import parse
from jaxlm.planning.kernels import (
    attention_share,
    is_attention,
    is_unknown,
    kernel_flops,
)
from tests.planning.programs import entry

CUDNN = (
    "  %q = bf16[2,1024,16,64]{3,2,1,0} parameter(0)\n"
    "  %y = (bf16[2,16,1024,64]{3,1,2,0}, f32[2,16,1024]{2,1,0}, u8[0]{0})"
    ' custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax",'
    ' backend_config={"operation_queue_id": "0", "cudnn_fmha_backend_config":'
    ' {"intermediate_tensor_shape": {"dimensions": ["2", "16", "1024", "1024"]},'
    ' "mask_type": "CAUSAL", "sliding_window_length": 0}}'
)
SPLASH = (
    "  %next = s8[1,4,4]{2,1,0} constant({ { { 0, 0, 0, 0 }, { 0, 1, 0, 0 },"
    " { 0, 1, 2, 0 }, { 0, 1, 2, 3 } } })\n"
    "  %mask = s8[1,4,4]{2,1,0} constant({ { { 1, 0, 0, 0 }, { 2, 1, 0, 0 },"
    " { 2, 2, 1, 0 }, { 2, 2, 2, 1 } } })\n"
    "  %q = bf16[2,8,2048,128]{3,2,1,0} parameter(0)\n"
    "  %k = bf16[2,2,2048,128]{3,2,1,0} parameter(1)\n"
    "  %y = (f32[2,512,128]{2,1,0}, bf16[2,8,2048,128]{3,2,1,0})"
    " custom-call(%next, %mask, %q, %k, %k),"
    ' custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
    '"xprof_metadata":"{\\"use_fused_bwd_kernel\\": false}"\n'
    '}}, metadata={op_name="jit(step)/jvp()/NAME/pallas_call"}'
)


def instruction(lines: str):
    module = parse(entry(lines))
    inside = module[module.entry]
    return module, inside, inside["y"]


@pytest.mark.parametrize(
    ("target", "products"), [("fmhaSoftmax", 2), ("fmhaSoftmaxBackward", 5)]
)
def test_cudnn_s_attention_is_two_products_forward_and_five_backward(target, products):
    module, inside, each = instruction(CUDNN.replace('fmhaSoftmax"', f'{target}"'))
    whole = products * 2 * 2 * 16 * 1024 * 1024 * 64
    assert kernel_flops(module, inside, each) == pytest.approx(whole / 2, rel=1e-3)
    module, inside, each = instruction(
        CUDNN.replace('fmhaSoftmax"', f'{target}"').replace("CAUSAL", "PADDING")
    )
    assert kernel_flops(module, inside, each) == whole
    assert is_attention(each) and not is_unknown(each)


def test_a_sliding_window_leaves_the_pairs_in_it():
    module, inside, each = instruction(CUDNN.replace('length": 0', 'length": 256'))
    seen = sum(min(place + 1, 256) for place in range(1024))
    assert kernel_flops(module, inside, each) == pytest.approx(
        2 * 2 * 2 * 16 * 64 * seen
    )


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("splash_mha_fwd_segmented_residuals", 2),
        ("splash_mha_dkv_segmented_no_residuals", 4),
        ("splash_mha_dq_segmented_no_residuals", 3),
    ],
)
def test_splash_attention_computes_the_blocks_that_its_mask_keeps(name, products):
    module, inside, each = instruction(SPLASH.replace("NAME", name))
    product = 2 * 2 * 8 * 2048 * 2048 * 128
    assert kernel_flops(module, inside, each) == products * product * 10 / 16
    assert is_attention(each) and not is_unknown(each)


def test_a_row_alone_has_no_dimension_of_rows():
    name = "splash_mha_fwd_segmented_residuals"
    text = SPLASH.replace("NAME", name).replace("bf16[2,", "bf16[")
    text = text.replace("{3,2,1,0} param", "{2,1,0} param")
    module, inside, each = instruction(text)
    wanted = 2 * 2 * 8 * 2048 * 2048 * 128 * 10 / 16
    assert kernel_flops(module, inside, each) == wanted
    efficiency = EFFICIENCIES["tpu"]
    assert attention_share(inside, each, efficiency) == efficiency.attention


def test_a_mask_that_came_by_a_copy_is_found():
    text = SPLASH.replace("NAME", "splash_mha_fwd_segmented_residuals")
    text = text.replace("(%next, %mask,", "(%next, %copied,").replace(
        "  %y =", "  %copied = s8[1,4,4]{2,1,0} copy(%mask)\n  %y ="
    )
    product = 2 * 2 * 8 * 2048 * 2048 * 128
    assert kernel_flops(*instruction(text)) == 2 * product * 10 / 16


def test_a_fused_backward_kernel_has_five_products():
    text = SPLASH.replace("NAME", "splash_mha_dkv_segmented_no_residuals")
    module, inside, each = instruction(text.replace("false", "true"))
    assert (
        kernel_flops(module, inside, each)
        == 5 * 2 * 2 * 8 * 2048 * 2048 * 128 * 10 / 16
    )


def test_a_kernel_nobody_knows_says_so():
    lines = SPLASH.replace("NAME", "my_kernel")
    module, inside, each = instruction(lines)
    assert is_unknown(each) and kernel_flops(module, inside, each) == 0
    stated = lines + ', backend_config={"cost_estimate":{"flops":"12345"}}'
    module, inside, each = instruction(stated)
    assert not is_unknown(each) and kernel_flops(module, inside, each) == 12345


def test_cublas_multiplies_what_its_config_contracts():
    module, inside, each = instruction(
        "  %a = bf16[128,64]{1,0} parameter(0)\n  %b = bf16[64,32]{1,0} parameter(1)\n"
        "  %y = (bf16[128,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b),"
        ' custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    )
    assert kernel_flops(module, inside, each) == 2 * 128 * 64 * 32


@pytest.mark.parametrize(
    ("name", "products"),
    [("mha_forward", 2), ("mha_preprocess_backward", 0), ("mha_backward", 7)],
)
@pytest.mark.parametrize("causal", [True, False])
def test_pallas_attention_on_a_gpu_leaves_out_what_is_hidden(name, products, causal):
    module, inside, each = instruction(
        "  %q = bf16[4,512,8,64]{3,2,1,0} parameter(0)\n"
        "  %y = bf16[4,512,8,64]{3,2,1,0} custom-call(%q, %q, %q),"
        ' custom_call_target="__gpu$xla.gpu.triton", metadata={op_name='
        f'"jit(step)/attention/jit(mha)/{name}/pallas_call"}}, backend_config={{x}}'
    )
    module.causal = causal
    product = 2 * 4 * 8 * 512 * 512 * 64 * (0.5 if causal else 1)
    assert kernel_flops(module, inside, each) == products * product
    assert not is_unknown(each)


@pytest.mark.parametrize(("size", "filled"), [(64, 0.5), (128, 1.0), (192, 0.75)])
def test_heads_that_fill_no_matrix_unit_are_slower(size, filled):
    efficiency = EFFICIENCIES["cuda"]
    text = CUDNN.replace("1024,16,64]", f"1024,16,{size}]")
    _, inside, each = instruction(text)
    share = attention_share(inside, each, efficiency)
    assert share == pytest.approx(filled * efficiency.attention)


def test_pallas_s_attention_for_gpus_has_a_share_of_its_own():
    lines = (
        "  %q = bf16[2,1024,16,64]{3,2,1,0} parameter(0)\n"
        "  %y = bf16[2,1024,16,64]{3,2,1,0} custom-call(%q, %q, %q),"
        ' custom_call_target="__gpu$xla.gpu.triton",'
        ' metadata={op_name="jit(step)/jvp()/mha_forward"}'
    )
    _, inside, each = instruction(lines)
    efficiency = EFFICIENCIES["cuda"]
    assert attention_share(inside, each, efficiency) == efficiency.pallas
