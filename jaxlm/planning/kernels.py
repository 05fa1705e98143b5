"""FLOPs of kernels, into which a compiler does not look.

The operands of a kernel tell: those of cuBLAS its product's dimensions, those of
attention the shapes of queries and keys. FlashAttention is two products forward and
five backward (arXiv:2205.14135, algorithms 1 and 4). Splash attention, Pallas's for
TPUs, has a backward pass of one kernel with these five, or of two that share nothing:
four products for keys and values, three for queries. Pallas's attention for GPUs does
these seven in one kernel.
"""

from __future__ import annotations

import math
import re

from jaxlm.planning.calibration import Efficiency
from jaxlm.planning.hlo import Array, Computation, Instruction, Module

PALLAS = ("tpu_custom_call", "mosaic_gpu", "mosaic_gpu_v2", "__gpu$xla.gpu.triton")
SPLASH = {"fwd": 2, "dkv": 4, "dq": 3, "fused_bwd": 5}
"""Products in a kernel of splash attention, by the part of its name."""
MHA = {"mha_forward": 2, "mha_preprocess_backward": 0, "mha_backward": 7}
"""The same of Pallas's attention for GPUs, by the name of its kernel."""
HEAD = 128
"""The size of a head that fills the matrix units."""
_WHOLE = 2
"""In a mask of blocks: 1 is a block of which a part is computed, 2 a whole one."""


def target(each: Instruction) -> str:
    """What a custom call calls."""
    found = re.search(r'custom_call_target="([^"]*)"', each.rest)
    return found[1] if found else ""


def kernel_flops(module: Module, inside: Computation, each: Instruction) -> float:
    """FLOPs of a custom call; 0 of one that is no product (see ``is_unknown``)."""
    name = target(each)
    if name.startswith("__cublas$"):
        return _cublas(inside, each)
    if name.startswith("__cudnn$fmha"):
        return _cudnn_attention(inside, each, 5 if "Backward" in name else 2)
    if name in PALLAS:
        stated = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', each.rest)
        if stated:
            return float(stated[1])
        if (count := _mha_products(each)) is not None:
            return count * _mha_product(module, inside, each)
        count = _splash_products(each)
        return count * _splash_product(module, inside, each) if count else 0.0
    return 0.0


def is_unknown(each: Instruction) -> bool:
    """Whether a kernel's FLOPs cannot be told: what is said of it, then, is too low."""
    if each.opcode != "custom-call" or target(each) not in PALLAS:
        return False
    known = _splash_products(each) or _mha_products(each) is not None
    return not known and '"cost_estimate"' not in each.rest


def is_attention(each: Instruction) -> bool:
    """Whether a custom call is a kernel of attention."""
    name = target(each)
    return name.startswith("__cudnn$fmha") or (
        name in PALLAS and bool(_splash_products(each) or _mha_products(each))
    )


def attention_share(
    inside: Computation, each: Instruction, efficiency: Efficiency
) -> float:
    """The share of the peak that a kernel of attention reaches.

    Heads of less than 128 leave a part of the matrix units idle, cuDNN's as splash
    attention's: measured of cuDNN on an H200 (docs/benchmarks.md), of splash by the
    shape of a matrix unit. Pallas's kernel for GPUs is as slow with either.
    """
    if _mha_products(each) is not None:
        return efficiency.pallas
    size = _floats(inside, each)[0].dims[-1]
    return efficiency.attention * size / (-(-size // HEAD) * HEAD)


def _cublas(inside: Computation, each: Instruction) -> float:
    left = inside.arrays(each, 0)[0].dims
    found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', each.rest)
    axes = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else []
    return 2.0 * each.arrays[0].size * math.prod(left[axis] for axis in axes)


def _cudnn_attention(inside: Computation, each: Instruction, count: int) -> float:
    """``count`` products over the scores, whose shape [B, H, S, T] the call states."""
    config = each.rest.partition('"cudnn_fmha_backend_config":')[2]
    shape = re.search(r'"dimensions":\s*\[([^\]]*)\]', config)
    if shape is None:
        return 0.0
    B, H, S, T = (int(size) for size in re.findall(r"\d+", shape[1]))
    size = inside.arrays(each, 0)[0].dims[-1]
    share = 1.0
    mask = re.search(r'"mask_type":\s*"(\w+)"', config)
    if mask and "CAUSAL" in mask[1]:
        share = 0.5 + 0.5 / S  # the diagonal, too
        reach = re.search(r'"sliding_window_length":\s*(\d+)', config)
        if reach and 0 < int(reach[1]) < T:
            window = int(reach[1])
            share = (window - window * (window - 1) / (2 * S)) / T
    return count * 2.0 * B * H * S * T * size * share


def _mha_products(each: Instruction) -> int | None:
    """None of a kernel that is none of these."""
    parts = each.op_name.split("/")
    return next((count for part, count in MHA.items() if part in parts), None)


def _mha_product(module: Module, inside: Computation, each: Instruction) -> float:
    """FLOPs of one product of queries and keys [B, S, H, K], half where causal."""
    B, S, H, K = inside.arrays(each, 0)[0].dims
    T = inside.arrays(each, 1)[0].dims[1]
    return 2.0 * B * H * S * T * K * (0.5 if module.causal else 1.0)


def _splash_products(each: Instruction) -> int:
    names = f"{each.name} {each.op_name}"
    if "splash" not in names:
        return 0
    for part, count in SPLASH.items():
        if f"_{part}" in names:
            fused = part == "dkv" and '"use_fused_bwd_kernel\\": true' in each.rest
            return SPLASH["fused_bwd"] if fused else count
    return 0


def _splash_product(module: Module, inside: Computation, each: Instruction) -> float:
    """FLOPs of one product of queries and keys, over the blocks that the mask keeps."""
    # A row alone has no dimension of rows.
    query, key = (array.dims for array in _floats(inside, each)[:2])
    B, H, S, K = (1, *query)[-4:]
    T = key[-2]
    return 2.0 * B * H * S * T * K * _kept_blocks(module, inside, each)


def _floats(inside: Computation, each: Instruction) -> list[Array]:
    """The operands that are no masks or numbers of segments: queries, keys, ..."""
    found = [inside.arrays(each, place) for place in range(len(each.operands))]
    return [
        arrays[0]
        for arrays in found
        if len(arrays) == 1 and arrays[0].dtype in ("bf16", "f16", "f32")
    ]


def _kept_blocks(module: Module, inside: Computation, each: Instruction) -> float:
    """The share of blocks that are computed: by the mask of blocks, its second operand.

    s8[heads or 1, blocks of queries, blocks of keys]; 0 is a block that is left out.
    Where the mask came through copies or a loop, it is the constant of that shape that
    can be one; all blocks, where none or several can.
    """
    found = inside.instructions.get(each.operands[1])
    if found is None or not found.arrays or found.arrays[0].dtype != "s8":
        return 1.0
    array = found.arrays[0]
    alike = [found] if found.opcode == "constant" else _constants(module)
    shares = set()
    for constant in alike:
        values = [int(value) for value in re.findall(r"-?\d+", constant.literal)]
        same = constant.arrays[0].dims == array.dims and len(values) == array.size
        if same and max(values) <= _WHOLE and values[0]:
            shares.add(sum(value > 0 for value in values) / len(values))
    return shares.pop() if len(shares) == 1 else 1.0


def _constants(module: Module) -> list[Instruction]:
    return [
        each
        for computation in module.computations.values()
        for each in computation
        if each.opcode == "constant" and each.arrays and each.arrays[0].dtype == "s8"
    ]
