"""How long a step takes, by walking its program in the order in which it runs.

Each instruction takes the longer of its arithmetic and its bytes; a collective runs
beside what stands between its start and its end, one after another on their network,
and what it takes longer than that is exposed. A loop is its body times its trips.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxlm.planning import kernels, work
from jaxlm.planning.calibration import Efficiency
from jaxlm.planning.collectives import (
    SEND,
    Collective,
    chain_of,
    kind_of,
    members_of,
    payload,
    received,
    stands_in,
    stated_in,
    waits,
)
from jaxlm.planning.hlo import HOST, Computation, Instruction, Module, trips
from jaxlm.planning.network import Network

TILE = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}
"""The side of a TPU's matrix unit: smaller products leave a part of it idle."""
TF32 = 0.5
"""Of a GPU's peak in bf16, by all sheets of NVIDIA: that of products of fp32, for which
XLA takes TF32. A TPU rounds them to bf16."""
PREFETCHES = ("copy-start", "slice-start")
"""What moves to memory on the chip ahead of its use, beside other work."""
BESIDE = (*PREFETCHES, "async-start")
"""What runs beside other work, other than collectives."""


@dataclass
class Operation:
    """One instruction that computes, over all its runs in a step."""

    name: str
    source: str
    count: int
    flops: float
    bytes: float
    seconds: float
    bound: str


@dataclass
class Timeline:
    """What a step does on one device."""

    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    cycles: int = 0
    compute: float = 0.0
    memory: float = 0.0
    exposed: float = 0.0
    again: float = 0.0
    """FLOPs that the compiler added, computing again what it had no memory to keep."""
    collectives: list[Collective] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Flight:
    """A collective between its start and its end, by the clock of its computation."""

    end: float
    collective: Collective


class Walk:
    """Walks a program; ``mesh`` names the axes of its devices, in order."""

    def __init__(
        self,
        module: Module,
        mesh: Mapping[str, int],
        network: Network,
        efficiency: Efficiency,
    ):
        self.module, self.mesh, self.network = module, dict(mesh), network
        self.device, self.efficiency = network.topology.device, efficiency
        self.devices = math.prod(mesh.values())
        self.unknown: set[str] = set()
        self.loops: set[str] = set()
        self.strange: set[str] = set()
        self.offloads = False

    def run(self) -> Timeline:
        """The whole step."""
        line = self._walk(self.module[self.module.entry], 1)
        # What is fetched beside other work takes the memory's time all the same.
        moving = line.bytes / (self.device.bandwidth * self.efficiency.memory)
        late = max(0.0, moving - line.seconds)
        line.seconds += late
        line.memory += late
        if self.unknown:
            line.notes.append(
                "FLOPs of these kernels are unknown and count as none: "
                + ", ".join(sorted(self.unknown))
            )
        if self.loops:
            line.notes.append(
                "how often these loops run is not in the program; they count once: "
                + ", ".join(sorted(self.loops))
            )
        if self.strange:
            line.notes.append(
                "this compiler writes operations that are not known here, whose bytes"
                f" may be wrong: {', '.join(sorted(self.strange))}"
            )
        if self.offloads:
            line.notes.append(
                "what moves to the host's memory and back is taken to be hidden: its"
                " link has no figure here"
            )
        return line

    def _walk(self, inside: Computation, count: int) -> Timeline:
        """One run of a computation, of ``count`` in a step; lists cover all runs."""
        line, flights = Timeline(), dict[str, _Flight]()
        free = dict.fromkeys((False, True), 0.0)  # when the network is; between slices
        for each in inside:
            for called, times in self._calls(inside, each):
                inner = self._walk(self.module[called], count * times)
                _add(line, inner, times)
            kind = kind_of(self.module, each)
            chain = chain_of(self.module, each)
            if chain and "-start" not in each.name:
                if "-done" in each.name:
                    self._land(line, flights.get(chain), count)
                else:  # one of the computations that it runs beside
                    self._compute(inside, each, count, line, beside=True)
            elif kind:
                self._collective(inside, each, kind, count, line, flights, free)
            elif each.opcode.endswith("-done"):
                self._land(line, flights.get(each.operands[0]), count)
            else:
                self._compute(inside, each, count, line)
        return line

    def _calls(self, inside: Computation, each: Instruction) -> list[tuple[str, int]]:
        """Computations that an instruction runs, and how often."""
        if each.opcode == "while":
            times = trips(self.module, inside, each)
            if times is None:
                self.loops.add(each.name)
            return [(each.called("body") or "", 1 if times is None else times)]
        if each.opcode == "call":
            return [(each.called("to_apply") or "", 1)]
        if each.opcode == "conditional":
            found = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
            names = re.findall(r"%([\w.\-]+)", found[1]) if found else []
            names += [each.called(key) for key in ("true_computation",)]
            return [(name, 1) for name in names if name][:1]
        return []

    def _collective(
        self,
        inside: Computation,
        each: Instruction,
        kind: str,
        count: int,
        line: Timeline,
        flights: dict[str, _Flight],
        free: dict[bool, float],
    ) -> None:
        """Adds a collective, and says when its network is ``free`` again."""
        module = self.module
        size = payload(module, inside, each, kind)
        axis, members = members_of(module, each, self.mesh, self.network.places)
        seconds = self.network.seconds(kind, size, members)
        alone = waits(module, each)
        between = each.opcode == SEND
        begin = max(line.seconds, free[between])
        late = begin + seconds - line.seconds if alone else 0.0
        line.seconds += late
        line.exposed += late
        line.flops += work.flops(module, inside, each)
        stated = stated_in(module, each)
        found = Collective(
            each.name,
            kind,
            axis,
            len(members),
            size,
            count,
            seconds * count,
            late * count,
            alone,
            stands_in(module, inside, each, kind, len(members)),
            (stated[1] if stated else each).op_name or each.op_name,
        )
        line.collectives.append(found)
        if not alone:
            back = received(inside, each) if between else None
            name = chain_of(module, each) or (back or each).name
            flights[name] = _Flight(begin + seconds, found)
        free[between] = begin + seconds

    def _land(self, line: Timeline, flight: _Flight | None, count: int) -> None:
        """Wait for what a collective still takes."""
        if flight is not None:
            late = max(0.0, flight.end - line.seconds)
            line.seconds += late
            line.exposed += late
            flight.collective.exposed += late * count

    def _compute(
        self,
        inside: Computation,
        each: Instruction,
        count: int,
        line: Timeline,
        *,
        beside: bool = False,
    ) -> None:
        """Adds what computes; ``beside`` a collective, whose arrays it holds, too."""
        arithmetic = work.flops(self.module, inside, each)
        size = work.moved(self.module, inside, each)
        stated = stated_in(self.module, each) if beside else None
        if stated is not None:
            home, collective = stated
            held = sum(home[name].bytes for name in collective.operands)
            size = max(0.0, size - 2 * (held + collective.bytes))
        line.cycles += work.cycles(each)
        for _, inner in work.products(self.module, inside, each):
            if kernels.is_unknown(inner):
                self.unknown.add(inner.name)
        if not arithmetic and not size:
            return
        busy = self._arithmetic_seconds(inside, each)
        reading = size / (self.device.bandwidth * self.efficiency.memory)
        self.offloads |= any(array.space == HOST for array in each.arrays)
        if each.opcode.endswith("-start") and each.opcode not in BESIDE:
            self.strange.add(each.opcode)
        if each.opcode in PREFETCHES:
            line.bytes += size
            return
        seconds = max(busy, reading)
        line.seconds += seconds
        line.flops += arithmetic
        line.again += arithmetic * bool(_AGAIN.search(each.name))
        line.bytes += size
        bound = "compute" if busy >= reading else "memory"
        if bound == "compute":
            line.compute += seconds
        else:
            line.memory += seconds
        line.operations.append(
            Operation(
                each.name,
                each.op_name,
                count,
                arithmetic * count,
                size * count,
                seconds * count,
                bound,
            )
        )

    def _arithmetic_seconds(self, inside: Computation, each: Instruction) -> float:
        """Of an instruction's products, each at the speed of its kind and shape."""
        total = 0.0
        for home, inner in work.products(self.module, inside, each):
            arithmetic = work.flops(self.module, home, inner)
            if kernels.is_attention(inner):
                share = kernels.attention_share(home, inner, self.efficiency)
            else:
                share = self.efficiency.product * self._filled(home, inner)
                if self.device.platform == "cuda" and _is_wide(home, inner):
                    share *= TF32
            total += arithmetic / (self.device.flops * share)
        return total

    def _filled(self, home: Computation, inner: Instruction) -> float:
        """How much of the matrix unit a product fills."""
        tile = TILE.get(self.device.name)
        if tile is None:
            return 1.0
        share = 1.0
        for size in work.inner_sizes(home, inner):
            share *= size / (-(-size // tile) * tile)
        return share


def _is_wide(home: Computation, inner: Instruction) -> bool:
    """Whether a product is of fp32."""
    arrays = [home.arrays(inner, place) for place in range(len(inner.operands))]
    return any(each[0].dtype == "f32" for each in arrays[:2] if each)


SUMS = "seconds", "flops", "bytes", "cycles", "compute", "memory", "exposed", "again"
_AGAIN = re.compile(r"\.remat\d*(\.|$)")
"""In the name of an instruction that XLA's own rematerialization copied."""


def _add(line: Timeline, inner: Timeline, times: int) -> None:
    """A computation that runs ``times`` inside another; its lists cover all runs."""
    for name in SUMS:
        value = getattr(line, name) + times * getattr(inner, name)
        setattr(line, name, value)
    line.collectives += inner.collectives
    line.operations += inner.operations


def by_source(line: Timeline) -> dict[str, float]:
    """Seconds by the innermost scope of the program's Python: attention, mlp, ..."""
    found: dict[str, float] = defaultdict(float)
    for each in line.operations:
        found[scope(each.source)] += each.seconds
    return dict(sorted(found.items(), key=lambda item: -item[1]))


SCOPES = ("embeddings", "attention", "cross_attention", "mlp", "residual", "optimizer")


def scope(source: str) -> str:
    """The last part of an ``op_name`` that is a scope of our models; else ``other``."""
    parts = re.findall(r"\w+", source)
    named = [part for part in parts if part in SCOPES]
    return named[-1] if named else "other"
