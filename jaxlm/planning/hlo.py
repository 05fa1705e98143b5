"""A compiled program, read from XLA's text of it (HLO, after scheduling).

Nothing here computes a cost; see ``work``, ``collectives`` and ``timeline``. The text
is that of ``jax.stages.Compiled.as_text()``, of TPU and GPU alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4,
    "u32": 4, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8,
    "c128": 16, "token": 0, "opaque": 0,
}  # fmt: skip
"""Of one element; 8-bit floats (f8e4m3fn and others) have names that begin with f8."""
MAIN = 0
"""The memory space of an array that says none: the chip's main memory."""
HOST = 5
"""That of the host's memory, where ``model.remat=offload`` keeps activations."""
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_OPEN = re.compile(r"kernel_metadata=\{$|^\".*\"[,]?$")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Array:
    """One array of a type: ``bf16[8,128]{1,0:T(8,128)S(1)}``."""

    dtype: str
    dims: tuple[int, ...]
    space: int = MAIN

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without what tiles pad."""
        width = 1 if self.dtype.startswith("f8") else BYTES[self.dtype]
        return self.size * width

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclass
class Instruction:
    """One line. ``arrays`` are the leaves of its type; ``rest`` is what follows."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    rest: str
    root: bool

    @property
    def bytes(self) -> float:
        return sum(each.bytes for each in self.arrays)

    @cached_property
    def op_name(self) -> str:
        """What in the Python program it comes from: ``jit(step)/.../dot_general``."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    def called(self, key: str) -> str | None:
        """The computation that an attribute (``calls``, ``body``) names."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    def numbers(self, key: str) -> tuple[int, ...]:
        """The list of an attribute: ``lhs_contracting_dims={1}``."""
        found = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.rest)
        return tuple(int(each) for each in found[1].split(",") if each) if found else ()


@dataclass
class Computation:
    """Instructions in the order in which they run."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(each for each in self if each.root)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """By name: who reads it."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for each in self:
            for operand in dict.fromkeys(each.operands):
                if operand in found:
                    found[operand].append(each)
        return found

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        return {int(each.literal): each for each in self if each.opcode == "parameter"}

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    def arrays(self, instruction: Instruction, operand: int) -> tuple[Array, ...]:
        """The arrays of an operand, by its place."""
        name = instruction.operands[operand]
        found = self.instructions.get(name)
        return found.arrays if found else ()


@dataclass
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str
    causal: bool = False
    """Of the model, whose text does not say it: what some kernels leave out by it."""

    def __getitem__(self, name: str) -> Computation:
        return self.computations[name]


def parse(text: str) -> Module:
    """Read a program.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    current, entry = None, None
    for line in _joined(text):
        if current is None:
            head = _HEAD.match(line)
            if head:
                current = Computation(head[2])
                computations[head[2]] = current
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            found = _instruction(line)
            if found:
                current.instructions[found.name] = found
    if entry is None:
        raise ValueError("no ENTRY computation in this text; is it HLO?")
    return Module(computations, entry)


def _joined(text: str) -> Iterator[str]:
    """Lines, those whole again that the metadata of a kernel breaks."""
    waiting = ""
    for line in text.splitlines():
        if waiting and not _OPEN.search(line):
            yield waiting + line
            waiting = ""
        elif waiting or _OPEN.search(line):
            waiting += line
        else:
            yield line


def _instruction(line: str) -> Instruction | None:
    head = _LINE.match(line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.find(" ", start)
    opcode = _OPCODE.match(line, end)
    if not opcode:
        return None
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    plain = opcode[1] in ("constant", "parameter", "iota")
    kind, made = opcode[1], start
    if kind == "fusion-start":  # ((what it reads), what it makes, u32[])
        kind, made = "fusion", _closing(line, start + 1)
    return Instruction(
        head[2],
        kind,
        read_arrays(line[made:end].removesuffix("u32[])")),
        () if plain else tuple(_NAME.findall(inside)),
        inside if plain else "",
        line[close + 1 :],
        bool(head[1]),
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return start + place.start()
    return len(text)


def read_arrays(text: str) -> tuple[Array, ...]:
    """The leaves of a type, tuples flattened."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(each.lstrip("<=")) for each in dims.split(",") if each)
        found.append(Array(dtype, sizes, int(space[1]) if space else MAIN))
    return tuple(found)


def trips(module: Module, inside: Computation, loop: Instruction) -> int | None:
    """How often the body of a ``while`` runs; None where the text does not tell.

    XLA says so (``known_trip_count``) or the condition compares a counter with a
    constant, as that of ``jax.lax.scan`` does.
    """
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known[1])
    condition, body = loop.called("condition"), loop.called("body")
    if condition is None or body is None:
        return None
    found = _comparison(module, module[condition])
    if found is None:
        return None
    place, bound, direction = found
    begin = _constant(inside, _element(inside, loop.operands[0], place))
    step = _step(module[body], place)
    if begin is None or step is None or direction not in ("LT", "LE"):
        return None
    count = bound - begin + (direction == "LE")
    return max(-(-count // step), 0)


def _comparison(module: Module, condition: Computation) -> tuple[int, int, str] | None:
    """Of ``counter < bound``: the counter's place in the tuple, bound, direction."""
    root, names = condition.root, None
    where = condition
    if root.opcode == "fusion":
        where = module[root.called("calls") or ""]
        names = root.operands
        root = where.root
    if root.opcode != "compare":
        return None
    place = bound = None
    for name in root.operands:
        each, home = where[name], where
        if each.opcode == "parameter" and names is not None:
            each, home = condition[names[int(each.literal)]], condition
        value = _constant(home, each.name)
        index = re.search(r"\bindex=(\d+)", each.rest)
        if value is not None:
            bound = value
        elif each.opcode == "get-tuple-element" and index:
            place = int(index[1])
    direction = re.search(r"direction=(\w\w)", root.rest)
    if place is None or bound is None or direction is None:
        return None
    return place, bound, direction[1]


def _element(inside: Computation, name: str, place: int) -> str | None:
    """The name of an element of a tuple that is made here."""
    made = inside.instructions.get(name)
    if made is None or made.opcode != "tuple" or place >= len(made.operands):
        return None
    return made.operands[place]


def _constant(inside: Computation, name: str | None) -> int | None:
    """The value of a scalar constant, perhaps copied."""
    each = inside.instructions.get(name or "")
    while each is not None and each.opcode in ("copy", "bitcast", "convert"):
        each = inside.instructions.get(each.operands[0])
    if each is None or each.opcode != "constant":
        return None
    return int(each.literal) if re.fullmatch(r"-?\d+", each.literal) else None


def _step(body: Computation, place: int) -> int | None:
    """By how much a loop's counter grows in a turn."""
    root = body.root
    if root.opcode != "tuple" or place >= len(root.operands):
        return None
    each = body.instructions.get(root.operands[place])
    while each is not None and each.opcode in ("copy", "bitcast"):
        each = body.instructions.get(each.operands[0])
    if each is None:
        return None
    if each.opcode == "add":
        values = [_constant(body, name) for name in each.operands]
        return next((value for value in values if value), None)
    # A fusion of the addition, or several in one: what a scan does is add 1.
    return 1 if each.opcode in ("fusion", "get-tuple-element") else None
