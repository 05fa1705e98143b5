"""What a compiled step would need and take: memory, FLOPs, time, money."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxlm.planning.calibration import EFFICIENCIES
from jaxlm.planning.compiling import Compiled
from jaxlm.planning.hlo import Module, parse
from jaxlm.planning.network import Network
from jaxlm.planning.timeline import Timeline, Walk
from jaxlm.planning.topology import Topology

DAY = 86_400.0
BY_ITSELF = 0.75
"""Of a GPU's memory: what jax sets aside, and what a program may then use, where
nothing else is said (docs.jax.dev/en/latest/gpu_memory_allocation.html)."""
_SIZE = r"([\d.]+)([KMGT]?)i?B?"
_REFUSALS = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE),
    re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)
"""How a compiler refuses a program: all that it needs, or its temporaries alone."""
_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Plan:
    """A step on a topology. All bytes, FLOPs and times are of one device, but where
    ``all`` devices are named; a device is a chip, or on tpu7x half of one."""

    topology: Topology
    compiled: Compiled

    @property
    def facts(self) -> dict[str, Any]:
        """What was known before compiling, and what the compiler says."""
        return self.compiled.facts

    @property
    def devices(self) -> int:
        return self.topology.devices

    # Memory.

    @property
    def capacity(self) -> int:
        """Bytes that a program may use; of a device that refused one, by its word."""
        refused = read_refusal(self.compiled.exhausted)
        return refused[1] if refused else self.topology.device.memory

    @property
    def reserved(self) -> int:
        """Arguments, temporaries and outputs, less what outputs take over of arguments.

        A GPU's runtime sets all of it aside before a step.
        """
        memory = self.facts["memory"]
        held = memory["argument"] + memory["output"] - memory["alias"]
        return held + memory["temp"]

    @property
    def arguments(self) -> int:
        """Bytes of the state and the batch."""
        names = ("parameter_bytes", "optimizer_bytes", "batch_bytes")
        return sum(self.facts[name] for name in names)

    @property
    def peak(self) -> int:
        """The compiler's ``peak_memory_in_bytes``: the most that lives at a time."""
        return self.facts.get("memory", {}).get("peak", 0)

    @property
    def by_peak(self) -> bool:
        """Whether ``peak`` is what is compared with the chip, or ``reserved``.

        A TPU's compiler lays every array out itself, accepts what fits by its peak, and
        refuses all else: it took a step of 35.7 GiB reserved, 30.5 at its peak, for a
        chip of 31.25.
        """
        return self.topology.device.platform == "tpu" and self.peak > 0

    @property
    def needed(self) -> int:
        """Bytes that are compared with the chip."""
        if self.compiled.exhausted:
            refused = read_refusal(self.compiled.exhausted)
            return refused[0] + refused[2] * self.arguments if refused else 0
        return self.peak if self.by_peak else self.reserved

    @property
    def fits(self) -> bool:
        return not self.compiled.exhausted and self.needed <= self.capacity

    @property
    def beyond_default(self) -> bool:
        """Whether a GPU has the memory, but jax lets a program have less of it."""
        gpu = self.topology.device.platform == "cuda"
        return gpu and self.needed > BY_ITSELF * self.capacity

    # Arithmetic.

    @property
    def model_flops(self) -> float:
        """That the model needs in a step; see ``formulas``."""
        return (
            self.facts["model_flops_per_token"]
            * self.facts["tokens_per_step"]
            / self.devices
        )

    @property
    def compiled_flops(self) -> float:
        """Of the program's products and kernels."""
        return self.timeline.flops

    @property
    def overhead(self) -> float:
        """What is computed beyond the model: 0.33 is a third more."""
        return self.compiled_flops / self.model_flops - 1

    # Time.

    @cached_property
    def module(self) -> Module:
        module = parse(self.compiled.program)
        module.causal = self.facts["causal"]
        return module

    @cached_property
    def timeline(self) -> Timeline:
        """The program, walked."""
        efficiency = EFFICIENCIES[self.topology.device.platform]
        network = Network(
            self.topology,
            np.array(self.facts["places"]),
            efficiency.network,
            efficiency.latency,
        )
        return Walk(self.module, self.facts["mesh"], network, efficiency).run()

    @property
    def step_seconds(self) -> float:
        return self.timeline.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs over what the chips could do in the time of a step."""
        return self.model_flops / (self.step_seconds * self.topology.device.flops)

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self.facts["tokens_per_step"] / self.step_seconds

    def days(self, tokens: float) -> float:
        """To train on so many tokens."""
        return tokens / self.tokens_per_second / DAY

    def cost(self, tokens: float, price: float) -> float:
        """Of that, at a price for a chip and an hour."""
        return self.days(tokens) * 24 * self.topology.chips * price

    def to_dict(
        self, tokens: float | None = None, price: float | None = None
    ) -> dict[str, Any]:
        """For machines; seconds, bytes and FLOPs, of one device."""
        facts = self.facts
        found: dict[str, Any] = {
            "topology": self.topology.text,
            "devices": self.devices,
            "mesh": facts["mesh"],
            "model": facts["model"],
            "task": facts["task"],
            "parameters": facts["parameters"],
            "tokens_per_step": facts["tokens_per_step"],
            "fits": self.fits,
            "bytes_per_device": self.needed,
            "capacity_bytes": self.capacity,
            "parameter_bytes": facts["parameter_bytes"],
            "optimizer_bytes": facts["optimizer_bytes"],
            "versions": facts["versions"],
            "compile_seconds": round(facts["compile_seconds"], 1),
            "exceeded_by_bytes": max(0, self.needed - self.capacity),
        }
        if self.compiled.exhausted:
            return found
        line = self.timeline
        found |= {
            "reserved_bytes_per_device": self.reserved,
            "peak_bytes_per_device": self.peak,
            "memory": facts["memory"],
            "step_seconds": self.step_seconds,
            "compute_seconds": line.compute,
            "memory_seconds": line.memory,
            "exposed_seconds": line.exposed,
            "mfu": self.mfu,
            "tokens_per_second": self.tokens_per_second,
            "model_flops": self.model_flops,
            "compiled_flops": self.compiled_flops,
            "recompute_overhead": self.overhead,
            "compiler_cycle_seconds": self.cycle_seconds,
            "collectives": [vars(each) for each in line.collectives],
            "assumptions": self.assumptions,
        }
        if tokens is not None:
            found |= {"tokens": tokens, "days": self.days(tokens)}
            if price is not None:
                found["cost"] = self.cost(tokens, price)
        return found

    @property
    def cycle_seconds(self) -> float | None:
        """The compiler's cycles of all instructions, collectives apart; TPU only."""
        clock = self.topology.device.clock
        return self.timeline.cycles / clock if clock and self.timeline.cycles else None

    @property
    def rejected(self) -> list[str]:
        """What ``cost_analysis`` says that cannot be."""
        cost = self.facts.get("cost_analysis", {})
        least = self.model_flops / self.topology.device.flops
        found = []
        flops, seconds = cost.get("flops"), cost.get("optimal_seconds")
        if flops is not None and flops < 0.9 * self.model_flops:
            times = self.compiled_flops / flops if flops > 0 else math.inf
            found.append(f"its flops {flops:.3g} are {times:.1f} times too few")
        if seconds is not None and not least <= seconds < math.inf:
            found.append(
                f"its optimal_seconds {seconds:.3g} are less than the model's FLOPs"
                f" take at the chip's peak ({least:.3g})"
            )
        return found

    @property
    def assumptions(self) -> list[str]:
        """What the figures hang on."""
        device, facts = self.topology.device, self.facts
        efficiency = EFFICIENCIES[device.platform]
        versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
        told = "".join(f", {k}={v}" for k, v in facts.get("flags", {}).items())
        found = [
            f"{device.name}: {device.flops / 1e12:.4g} TFLOP/s of bf16,"
            f" {device.bandwidth / 1e9:.4g} GB/s of memory, links of"
            f" {device.link / 1e9:.4g} GB/s one way, {device.network / 1e9:.4g} GB/s"
            f" between {'slices' if device.dimensions else 'hosts'} ({device.source})",
            f"of these, products reach {efficiency.product:.0%}, attention kernels"
            f" {efficiency.attention:.0%}, memory {efficiency.memory:.0%}, links"
            f" {efficiency.network:.0%} (docs/planning.md)",
            f"compiled by {versions}{told}; the mesh lies on the devices as jax orders"
            " them",
        ]
        if self.fits and self.beyond_default:
            share = math.ceil(100 * self.needed / self.capacity + 1) / 100
            found.append(
                f"jax by itself lets a program have {BY_ITSELF:.0%} of a GPU's memory;"
                f" this one needs XLA_CLIENT_MEM_FRACTION={share:.2f} when it runs"
            )
        if device.dimensions:
            sides = " x ".join(
                f"{side}{' (ring)' if ring else ''}"
                for side, ring in zip(
                    self.topology.shape, self.topology.wraps, strict=True
                )
            )
            found.append(f"the slice is {sides}")
        return [*found, *facts["assumed"], *self.timeline.notes]


def read_refusal(text: str) -> tuple[int, int, bool] | None:
    """Bytes needed, bytes there are, and whether arguments are to be added.

    None where the words are not known.
    """
    for number, words in enumerate(_REFUSALS):
        if found := words.search(text):
            sizes = [
                int(float(found[place]) * _UNIT[found[place + 1].upper()])
                for place in (1, 3)
            ]
            return sizes[0], sizes[1], number == 1
    return None
