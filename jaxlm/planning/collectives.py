"""The collectives of a program: which kind, over which devices, of how many bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxlm.planning import work
from jaxlm.planning.groups import axes_of, axes_of_pairs, groups_of, pairs_of
from jaxlm.planning.hlo import Computation, Instruction, Module

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
CALLING = ("async-start", "call-start")
"""Starts of a computation that runs beside others; the latter is how the compiler of
tpu7x has a collective run by the cores that are not the matrix units' (SparseCores)."""
SCATTERING = "all-reduce-scatter"
"""How a TPU's compiler names the fusion that is a reduce-scatter."""
SEND = "send"
"""A TPU's compiler writes what goes between slices as ``send`` and ``recv``, to and
from the hosts that their network joins; attributes say of which collective."""
_CHAIN = re.compile(r'chain_id="(\w+)"')
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_MEETING = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}')


@dataclass
class Collective:
    """One collective of the program, and what all its runs in a step cost.

    ``bytes``: of the whole array, of which each device has or gets a part; of an
    exchange, what each device has. ``stands_in``: for what an all-reduce is written.
    """

    name: str
    kind: str
    axis: str
    devices: int
    bytes: float
    count: int
    seconds: float
    exposed: float
    synchronous: bool
    stands_in: str
    source: str


def kind_of(module: Module, each: Instruction) -> str:
    """Of a collective, or of its start, perhaps in a fusion; "" of anything else."""
    if each.opcode.endswith("-done"):
        return ""
    opcode = each.opcode.removesuffix("-start")
    if opcode == SEND and (between := _BETWEEN.search(each.rest)):
        kind = between[1].lower().replace("_", "-")
        return kind if kind in KINDS else "collective-permute"
    if opcode in KINDS:
        return opcode
    if each.opcode not in (*CALLING, "fusion"):
        return ""
    stated = stated_in(module, each)
    if stated is None:
        return ""
    scatters = (each.called("calls") or "").startswith(SCATTERING)
    return "reduce-scatter" if scatters else stated[1].opcode


def stated_in(
    module: Module, each: Instruction
) -> tuple[Computation, Instruction] | None:
    """The collective in what a fusion or a start of ``CALLING`` calls."""
    name = each.called("to_apply" if each.opcode == "call-start" else "calls")
    called = module.computations.get(name or "")
    if called is None:
        return None
    return next(((called, e) for e in called if e.opcode in KINDS), None)


def chain_of(module: Module, each: Instruction) -> str:
    """The chain of a TPU's collective that is fused with computations; or "".

    Its start, the computations beside it and its end are fusions that all hold the
    collective, under one number.
    """
    if each.opcode != "fusion":
        return ""
    stated = stated_in(module, each)
    found = _CHAIN.search(stated[1].rest) if stated else None
    return found[1] if found else ""


def waits(module: Module, each: Instruction) -> bool:
    """Whether nothing can run beside a collective; a GPU's start may say that it does.

    Else its end is another instruction, and what stands between runs beside it.
    """
    if '"is_sync":true' in each.rest:
        return True
    if each.opcode == SEND:
        return False
    return not (each.opcode.endswith("-start") or chain_of(module, each))


def received(inside: Computation, each: Instruction) -> Instruction | None:
    """The ``recv`` of what a ``send`` between slices gives; its end ends the two."""
    meeting = _MEETING.search(each.rest)
    return next(
        (
            other
            for other in inside
            if other.opcode == "recv" and meeting and meeting[0] in other.rest
        ),
        None,
    )


def payload(module: Module, inside: Computation, each: Instruction, kind: str) -> float:
    """Bytes of the whole array: a gather's result, a scatter's operand."""
    home, stated = stated_in(module, each) or (inside, each)
    operands = sum(
        array.bytes
        for place in range(len(stated.operands))
        for array in home.arrays(stated, place)
    )
    if each.opcode == SEND:
        back = received(inside, each)
        return max(operands, back.arrays[0].bytes if back is not None else 0.0)
    if kind != "all-gather":
        return operands
    # A start returns its operands beside its results.
    return stated.bytes - (operands if stated.opcode.endswith("-start") else 0.0)


def members_of(
    module: Module, each: Instruction, mesh: Mapping[str, int], places: np.ndarray
) -> tuple[str, list[int]]:
    """The axes of the mesh, and the devices of one group; the furthest of a permute's
    pairs."""
    if each.opcode == SEND:
        members = between_slices(each, places)
        pairs = np.array([(members[0], other) for other in members[1:]])
        return axes_of_pairs(pairs, mesh), members
    stated = stated_in(module, each)
    named = stated[1] if stated else each
    pairs = pairs_of(named)
    if pairs is not None and len(pairs):
        apart = places[pairs][:, 0, 0] != places[pairs][:, 1, 0]
        return axes_of_pairs(pairs, mesh), pairs[int(np.argmax(apart))].tolist()
    groups = groups_of(named, math.prod(mesh.values()))
    if groups is None:
        return "none", []
    return axes_of(groups, mesh), groups[0].tolist()


def between_slices(each: Instruction, places: np.ndarray) -> list[int]:
    """Of the first device and those that stand where it does in other slices, so many
    as take part."""
    alike = np.flatnonzero((places[:, 1:] == places[0, 1:]).all(1))
    _, first = np.unique(places[alike, 0], return_index=True)
    named = _SLICES.search(each.rest)
    count = len(named[1].split(",")) if named else len(first)
    return alike[np.sort(first)][:count].tolist()


def stands_in(
    module: Module, inside: Computation, each: Instruction, kind: str, devices: int
) -> str:
    """What an all-reduce does the work of; "" where it is one.

    Of a gather: each device adds its part to zeros. Of a scatter: each device then
    takes its slice of the sum.
    """
    if kind != "all-reduce" or devices < 2 or each.opcode == SEND:
        return ""
    made = inside.instructions.get(each.operands[0])
    while made is not None and made.opcode in ("copy-done", "copy-start", "copy"):
        made = inside.instructions.get(made.operands[0])
    if made is not None and _returns(module, made) == "dynamic-update-slice":
        return "all-gather"
    taken, size = _taken(module, inside, each.name), each.bytes
    return "reduce-scatter" if 0 < taken <= 1.01 * size / devices else ""


def _returns(module: Module, each: Instruction) -> str:
    """The opcode of an instruction, or of what a fusion returns."""
    if each.opcode != "fusion":
        return each.opcode
    called = module[each.called("calls") or ""]
    root = called.root
    while root.opcode in ("bitcast", "copy", "reshape") and root.operands:
        root = called[root.operands[0]]
    return root.opcode


def _taken(module: Module, inside: Computation, name: str) -> float:
    """Bytes that all readers of a value take of it."""
    total = 0.0
    for user in inside.users[name]:
        if user.opcode in (*work.VIEWS, "all-reduce-done", "call-done", "copy"):
            total += _taken(module, inside, user.name)
        elif user.opcode == "dynamic-slice":
            total += user.bytes
        elif user.opcode == "fusion":
            called = module[user.called("calls") or ""]
            total += work.read(module, called, user.operands.index(name))
        else:
            return math.inf
    return total
