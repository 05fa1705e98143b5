"""How much of a sheet's figures real steps reach: one table for all plans."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Efficiency:
    """Shares of the sheet: of peak FLOP/s in products, in kernels of attention with
    heads of 128 and in Pallas's attention for GPUs, of memory bandwidth, of links;
    ``latency`` of a hop in seconds."""

    product: float
    attention: float
    pallas: float
    memory: float
    network: float
    latency: float


EFFICIENCIES = {
    "tpu": Efficiency(0.85, 0.5, 0.5, 0.8, 0.8, 1e-6),
    "cuda": Efficiency(0.6, 0.43, 0.17, 0.8, 0.75, 10e-6),
}
"""By platform, for every chip of it. Of memory, links and latency: assumed, and not
fitted. Of products and attention: fitted to the steps of docs/planning.md that say so,
and checked on the others there. Of Pallas's attention: measured by itself on an H200
(docs/benchmarks.md); TPUs have none of it."""
