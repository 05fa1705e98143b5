"""A plan as text."""

from __future__ import annotations

import re
from collections import defaultdict

from jaxlm.planning.collectives import Collective
from jaxlm.planning.estimate import Plan
from jaxlm.planning.hlo import MAIN, Array, Instruction
from jaxlm.planning.timeline import Operation, scope

GIB = 2**30
LARGEST = 6
"""Arrays, collectives and operations that are listed."""
ALIASES = frozenset(
    ("parameter", "tuple", "get-tuple-element", "bitcast", "while", "copy-done",
     "constant", "opt-barrier", "copy-start", "conditional", "call")
)  # fmt: skip


def report(plan: Plan, tokens: float | None, price: float | None) -> str:
    """All sections."""
    sections = [head(plan), memory(plan)]
    if not plan.compiled.exhausted:
        sections += [arithmetic(plan), collectives(plan), time(plan, tokens, price)]
        sections.append(["assumptions", *(f"  - {line}" for line in plan.assumptions)])
    return "\n\n".join("\n".join(lines) for lines in sections)


def head(plan: Plan) -> list[str]:
    facts = plan.facts
    axes = " x ".join(f"{a}={n}" for a, n in facts["mesh"].items() if n > 1)
    return [
        f"{facts['task']} of {facts['model']}: {facts['parameters']:,} parameters, on"
        f" {plan.topology.text}, {plan.devices} devices, mesh {axes or 'of one'}",
        f"a step is {facts['rows']:,} rows of {facts['length']:,},"
        f" {facts['tokens_per_step']:,} tokens; compiled in"
        f" {facts['compile_seconds']:.0f} s",
    ]


def memory(plan: Plan) -> list[str]:
    facts = plan.facts
    verdict = "fits" if plan.fits else "does NOT fit"
    lines = [
        f"{verdict}: {gib(plan.needed)} of {gib(plan.capacity)} for each device"
        f" ({plan.needed / plan.capacity:.0%})"
    ]
    if not plan.fits:
        lines[0] += f", {gib(plan.needed - plan.capacity)} too much"
    if plan.compiled.exhausted:
        if not plan.needed:
            lines = [f"does NOT fit; the compiler: {plan.compiled.exhausted[:300]}"]
        return [
            *lines,
            f"  arguments {gib(plan.arguments)} (parameters"
            f" {gib(facts['parameter_bytes'])}, optimizer"
            f" {gib(facts['optimizer_bytes'])}, batch {gib(facts['batch_bytes'])})",
        ]
    sizes = facts["memory"]
    marks = [" <- compared with the chip" * each for each in (plan.by_peak, True)]
    lines += [
        f"  arguments {gib(sizes['argument'])} (parameters"
        f" {gib(facts['parameter_bytes'])}, optimizer {gib(facts['optimizer_bytes'])},"
        f" batch {gib(facts['batch_bytes'])})",
        f"  temporaries {gib(sizes['temp'])}, outputs {gib(sizes['output'])}, of which"
        f" {gib(sizes['alias'])} take the arguments' place, code"
        f" {gib(sizes['generated_code'])}",
        f"  the most that lives at a time, the compiler's peak: {gib(plan.peak)}"
        f"{marks[0]}",
        f"  arguments + temporaries + outputs - aliased: {gib(plan.reserved)}"
        f"{'' if plan.by_peak else marks[1]}",
        "  largest arrays:",
    ]
    lines += [
        f"    {gib(array.bytes):>10}  {str(array):<28} {source}"
        for array, source in largest(plan)
    ]
    return lines


def largest(plan: Plan) -> list[tuple[Array, str]]:
    """The largest temporaries and where they come from, each kind once."""
    found: dict[tuple[str, str], Array] = {}
    module = plan.module
    bodies = {module.entry}
    for computation in module.computations.values():
        for each in computation:
            if each.opcode == "while":
                bodies.add(each.called("body") or "")
    for name in bodies & set(module.computations):
        for each in module[name]:
            if each.opcode in ALIASES or _in_place(plan, each):
                continue
            for array in each.arrays:
                if array.space == MAIN:
                    source = described(each.op_name) or each.name
                    if each.opcode == "custom-call" and "AllocateBuffer" in each.rest:
                        source = f"kept for each turn of a scan ({source})"
                    found.setdefault((str(array), source), array)
    ranked = sorted(found.items(), key=lambda item: -item[1].bytes)
    return [(array, source) for (_, source), array in ranked[:LARGEST]]


def _in_place(plan: Plan, each: Instruction) -> bool:
    """Whether an instruction writes into an array that it is given."""
    if each.opcode == "dynamic-update-slice":
        return True
    called = plan.module.computations.get(each.called("calls") or "")
    return called is not None and "dynamic-update-slice" in {
        inner.opcode for inner in called if inner.bytes >= each.bytes
    }


def arithmetic(plan: Plan) -> list[str]:
    facts, devices = plan.facts, plan.devices
    whole = facts["model_flops_per_token"]
    attention = 3 * facts["attention_flops_per_token"] / whole
    lines = [
        f"model    {plan.model_flops * devices:.4g} FLOPs a step, {whole:.4g} a token"
        f" ({attention:.1%} attention{', causal: half' if facts['causal'] else ''})",
        f"compiled {plan.compiled_flops * devices:.4g} FLOPs:"
        f" {plan.overhead:+.1%} ({'recomputed' if plan.overhead > 0 else 'less'})",
    ]
    if plan.timeline.again > 0.005 * plan.compiled_flops:
        share = plan.timeline.again / plan.model_flops
        lines.append(
            f"  {share:+.1%} by the compiler itself, for want of memory: a smaller"
            " microbatch may be faster"
        )
    if plan.rejected:
        lines.append("cost_analysis is not used: " + "; ".join(plan.rejected))
    return lines


def collectives(plan: Plan) -> list[str]:
    """Kinds by axis, then what is exposed."""
    line = plan.timeline
    if not line.collectives:
        return ["no collectives"]
    rows: dict[tuple[str, str, str], list[Collective]] = defaultdict(list)
    for each in line.collectives:
        if each.devices > 1:
            kind = f"{each.kind}{f' for {each.stands_in}' * bool(each.stands_in)}"
            how = "waits" if each.synchronous else "overlaps"
            rows[kind, each.axis, how].append(each)
    lines = ["collectives          (in program, runs, MiB a step, seconds, exposed)"]
    ranked = sorted(rows.items(), key=lambda row: -sum(e.seconds for e in row[1]))
    for (kind, axis, how), found in ranked:
        size = sum(each.bytes * each.count for each in found) / 2**20
        lines.append(
            f"  {kind:<32} {axis:<12} {how:<8} {len(found):>3} "
            f"{sum(e.count for e in found):>6} {size:>10,.1f} "
            f"{sum(e.seconds for e in found):>8.4f} "
            f"{sum(e.exposed for e in found):>8.4f}"
        )
    return lines


def time(plan: Plan, tokens: float | None, price: float | None) -> list[str]:
    line = plan.timeline
    ideal = plan.model_flops / plan.topology.device.flops
    rows = [
        ("model's FLOPs at peak", ideal),
        ("products and kernels, beyond that", line.compute - ideal),
        ("held by memory", line.memory),
        ("exposed collectives", line.exposed),
    ]
    lines = [
        f"predicted step {plan.step_seconds:.4g} s, MFU {plan.mfu:.1%},"
        f" {plan.tokens_per_second:,.0f} tokens/s",
        *(f"  {s:>8.4f} s {s / line.seconds:>6.1%}  {name}" for name, s in rows),
    ]
    if plan.cycle_seconds:
        lines.append(
            f"  (the compiler's own cycles, without collectives:"
            f" {plan.cycle_seconds:.4g} s)"
        )
    lines.append("  what holds it:")
    lines += [
        f"    {seconds:.4f} s {seconds / line.seconds:>6.1%}  {what}"
        for seconds, what in holders(plan)
    ]
    if tokens is not None:
        text = f"{tokens:.4g} tokens: {tokens / plan.facts['tokens_per_step']:,.0f}"
        text += f" steps, {plan.days(tokens):.1f} days"
        if price is not None:
            hours = plan.days(tokens) * 24 * plan.topology.chips
            text += f", {hours:,.0f} chip hours, {plan.cost(tokens, price):,.0f}"
            text += f" at {price:g} for a chip and an hour"
        lines.append(text)
    return lines


def holders(plan: Plan) -> list[tuple[float, str]]:
    """Seconds of what takes most beyond products: bytes, exposed collectives."""
    line = plan.timeline
    found: list[tuple[float, str]] = []
    by_part: dict[str, list[Operation]] = defaultdict(list)
    for each in line.operations:
        if each.bound == "memory":
            by_part[part(each.source)].append(each)
    for name, each in by_part.items():
        seconds = sum(one.seconds for one in each)
        found.append((seconds, f"bytes moved by {name}"))
    by_kind: dict[str, float] = defaultdict(float)
    for each in line.collectives:
        by_kind[f"{each.kind} over {each.axis}, {part(each.source)}"] += each.exposed
    found += [(seconds, f"exposed {name}") for name, seconds in by_kind.items()]
    return [each for each in sorted(found, reverse=True)[:LARGEST] if each[0] > 0]


def part(source: str) -> str:
    """Where in a step: forward attention, backward mlp, optimizer."""
    name = scope(source)
    if name == "optimizer" or not source:
        return name
    if "rematted" in source:
        return f"recomputed {name}"
    return f"{'backward' if 'transpose(' in source else 'forward'} {name}"


def described(source: str) -> str:
    """An ``op_name`` in words: ``backward attention, bhst,bthk->bshk dot_general``."""
    if not source:
        return ""
    last = re.sub(r"jit\(|\)$", "", source.rpartition("/")[2])
    return f"{part(source)}, {last}"


def gib(size: float) -> str:
    """Bytes in GiB, or MiB where that says more."""
    return f"{size / GIB:.2f} GiB" if size >= 0.01 * GIB else f"{size / 2**20:.2f} MiB"
