"""What one instruction of a program does: FLOPs of its products, bytes that it moves.

XLA's own ``cost_analysis`` counts the body of a loop once and a kernel as nothing; this
counts one run of one instruction, and ``timeline`` how often it runs. Elementwise
arithmetic has no FLOPs here: what it costs is the bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from jaxlm.planning.hlo import MAIN, Array, Computation, Instruction, Module
from jaxlm.planning.kernels import kernel_flops

FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
     "partition-id", "replica-id", "while", "conditional", "call", "opt-barrier",
     "optimization-barrier", "iota", "add-dependency", "domain", "send", "recv")
)  # fmt: skip
"""What moves nothing itself."""
NOTES = re.compile(
    r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound)"'
)
"""Custom calls by which a TPU's compiler sets memory aside, or notes a fact."""
VIEWS = ("bitcast", "get-tuple-element", "reshape")


def flops(module: Module, inside: Computation, each: Instruction) -> float:
    """FLOPs of the products in an instruction, those of fused ones and kernels too."""
    if each.opcode == "dot":
        return dot_flops(inside, each)
    if each.opcode == "convolution":
        return convolution_flops(inside, each)
    if each.opcode == "custom-call":
        return kernel_flops(module, inside, each)
    if each.opcode in ("fusion", "async-start"):
        name = each.called("calls")
        if name is None or name not in module.computations:
            return 0.0
        called = module[name]
        return sum(flops(module, called, inner) for inner in called)
    return 0.0


def dot_flops(inside: Computation, each: Instruction) -> float:
    """``2 * output * contracted``."""
    left = inside.arrays(each, 0)[0].dims
    contracted = math.prod(left[axis] for axis in each.numbers("lhs_contracting_dims"))
    return 2.0 * each.arrays[0].size * contracted


def convolution_flops(inside: Computation, each: Instruction) -> float:
    """Of the products that count: none with padding or with holes of a dilation.

    A TPU's compiler writes matrix products, batched ones too, as convolutions, whose
    windows lie mostly in padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.rest)
    if labels is None:
        return 0.0
    left, right = (inside.arrays(each, place)[0].dims for place in (0, 1))
    out = each.arrays[0].dims
    window = _window(each.rest)
    pairs = 1.0
    spatial = [label for label in labels[1] if label.isdigit()]
    for label in spatial:
        number = int(label)
        pairs *= _valid_pairs(
            left[labels[1].index(label)],
            right[labels[2].index(label)],
            out[labels[3].index(label)],
            **{key: values[number] for key, values in window.items()},
        )
    groups = re.search(r"batch_group_count=(\d+)", each.rest)
    batch = left[labels[1].index("b")] / (int(groups[1]) if groups else 1)
    inner = right[labels[2].index("i")]  # already of one feature group
    outer = right[labels[2].index("o")]
    return 2.0 * batch * inner * outer * pairs


def _window(rest: str) -> dict[str, list[int]]:
    """By key, a number for each spatial dimension; ``{}`` without a window."""
    found = re.search(r"window=\{([^}]*)\}", rest)
    if found is None:
        return {}
    given = dict(part.split("=") for part in found[1].split())
    count = len(given["size"].split("x"))

    def read(key: str, default: str) -> list[int]:
        return [int(n) for n in given.get(key, "x".join([default] * count)).split("x")]

    pads = given.get("pad", "x".join(["0_0"] * count)).split("x")
    return {
        "stride": read("stride", "1"),
        "low": [int(pad.split("_")[0]) for pad in pads],
        "spread": read("lhs_dilate", "1"),
        "dilation": read("rhs_dilate", "1"),
    }


def _valid_pairs(
    size: int,
    window: int,
    out: int,
    *,
    stride: int = 1,
    low: int = 0,
    spread: int = 1,
    dilation: int = 1,
) -> int:
    """Pairs of an output's and a window's place that meet an element of the input.

    Place o of the output and k of the window read ``o * stride + k * dilation - low``
    of the input, whose elements lie ``spread`` apart.
    """
    count, last = 0, (size - 1) * spread
    for place in range(window):
        offset = place * dilation - low
        first = max(0, -(offset // stride) if offset < 0 else 0)
        end = min(out - 1, (last - offset) // stride) if last >= offset else -1
        if end < first:
            continue
        if spread == 1:
            count += end - first + 1
        else:
            reads = range(first * stride + offset, end * stride + offset + 1, stride)
            count += sum(1 for each in reads if each % spread == 0)
    return count


def moved(module: Module, inside: Computation, each: Instruction) -> float:
    """Bytes of main memory that an instruction reads and writes.

    A slice of an array counts as the slice, and what is written in place as what is
    written: the weights of one layer, of a whole stack.
    """
    if each.opcode in FREE or each.opcode.endswith("-done"):
        return 0.0
    if each.opcode == "custom-call" and NOTES.search(each.rest):
        return 0.0
    if each.opcode == "copy-start":  # to or from memory on the chip: one side counts
        source, target = inside.arrays(each, 0)[0], each.arrays[0]
        return sum(array.bytes for array in (source, target) if array.space == MAIN)
    if each.opcode == "slice-start":  # its type: ((what it reads of), the slice, ...)
        source, target = inside.arrays(each, 0)[0], each.arrays[1]
        return target.bytes * sum(array.space == MAIN for array in (source, target))
    if each.opcode == "dynamic-slice":
        return 2 * _bytes(each.arrays)
    if each.opcode == "dynamic-update-slice":
        return 2 * _bytes(inside.arrays(each, 1))
    if each.opcode == "fusion":
        called = module[each.called("calls") or ""]
        reads = 0.0
        for name in dict.fromkeys(each.operands):
            arrays = inside[name].arrays if name in inside.instructions else ()
            if any(array.space == MAIN for array in arrays):
                number = each.operands.index(name)
                reads += min(_bytes(arrays), read(module, called, number))
        written = _written(module, called, called.root)
        return reads + (written if _bytes(each.arrays) else 0.0)
    reads = sum(
        _bytes(inside[name].arrays)
        for name in dict.fromkeys(each.operands)
        if name in inside.instructions
    )
    if each.opcode == "gather":
        reads = _bytes(each.arrays)
    return reads + _bytes(each.arrays)


def _bytes(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if array.space == MAIN)


def read(module: Module, called: Computation, number: int) -> float:
    """Bytes that a fused computation reads of a parameter."""
    parameter = called.parameters.get(number)
    return 0.0 if parameter is None else _read_of(module, called, parameter)


def _read_of(module: Module, inside: Computation, value: Instruction) -> float:
    total = 0.0
    for user in inside.users[value.name]:
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += user.bytes if user.operands[0] == value.name else 0.0
        elif user.opcode in VIEWS or _relabels(user):
            total += _read_of(module, inside, user)
        elif user.opcode == "dynamic-update-slice" and user.operands[1] != value.name:
            continue  # written in place, or where to
        elif user.opcode == "fusion":
            inner = module[user.called("calls") or ""]
            total += read(module, inner, user.operands.index(value.name))
        else:
            return value.bytes
    return total if value.name != inside.root.name else value.bytes


def _relabels(each: Instruction) -> bool:
    """Whether a fused fusion gives its operand other tiles in place, as tpu7x does."""
    return each.opcode == "fusion" and "output_to_operand_aliasing" in each.rest


def _written(module: Module, inside: Computation, root: Instruction) -> float:
    """Bytes that a fused computation writes."""
    if root.opcode == "tuple":
        return sum(_written(module, inside, inside[name]) for name in root.operands)
    if root.opcode in VIEWS and root.operands:
        made = inside.instructions.get(root.operands[0])
        if made is not None and made.opcode != "parameter":
            return min(_written(module, inside, made), root.bytes)
    if root.opcode == "dynamic-update-slice":
        return sum(array.bytes for array in inside.arrays(root, 1))
    if root.opcode == "fusion":
        called = module[root.called("calls") or ""]
        return _written(module, called, called.root)
    return root.bytes


def cycles(each: Instruction) -> int:
    """The compiler's estimate of a TPU's cycles for one run; 0 where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', each.rest)
    return int(found[1]) if found else 0


def products(
    module: Module, inside: Computation, each: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """The products, convolutions and kernels in an instruction."""
    if each.opcode in ("dot", "convolution", "custom-call"):
        yield inside, each
    elif each.opcode == "fusion":
        called = module[each.called("calls") or ""]
        for inner in called:
            yield from products(module, called, inner)


def inner_sizes(inside: Computation, each: Instruction) -> tuple[int, ...]:
    """What a product contracts and its columns: the sides that fill a matrix unit."""
    if each.opcode == "dot":
        left, right = (inside.arrays(each, place)[0].dims for place in (0, 1))
        contracted = [left[axis] for axis in each.numbers("lhs_contracting_dims")]
        batch = each.numbers("rhs_batch_dims")
        taken = {*batch, *each.numbers("rhs_contracting_dims")}
        columns = [size for axis, size in enumerate(right) if axis not in taken]
        return math.prod(contracted), math.prod(columns)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.rest)
    if each.opcode != "convolution" or labels is None:
        return ()
    left, right = (inside.arrays(each, place)[0].dims for place in (0, 1))
    out = each.arrays[0].dims
    contracted, columns = right[labels[2].index("i")], right[labels[2].index("o")]
    for label in filter(str.isdigit, labels[1]):
        had, made = left[labels[1].index(label)], out[labels[3].index(label)]
        if had == 1:  # heads, which the kernel has: they are columns, too
            columns *= made
        elif made == 1:
            contracted *= had
    return contracted, columns
