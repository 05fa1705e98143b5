"""The accelerators that can be planned for, by the vendors' sheets.

All figures are of one chip, and of one direction of a link. Sheets quote links in both
directions and memory in decimal bytes or in GiB; what is written here says which.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
TPU_DOCS = "https://docs.cloud.google.com/tpu/docs"
NVIDIA = "https://www.nvidia.com/en-us/data-center"


@dataclass(frozen=True)
class Device:
    """One chip.

    ``flops``: peak FLOP/s of bf16 products, dense. ``memory``: bytes that a program may
    use. ``bandwidth``: of that memory, B/s. ``link``: B/s of one direction of one link
    to a neighbour (TPU), or of all links to the switch (GPU). ``network``: B/s of one
    direction between slices (TPU) or hosts (GPU), for each chip. ``dimensions`` of the
    torus, 0 behind a switch. ``host``: chips in one machine. ``cores``: devices that
    jax shows of one chip.
    """

    name: str
    platform: str
    flops: float
    memory: int
    bandwidth: float
    link: float
    network: float
    dimensions: int
    host: int
    source: str
    clock: float = 0.0
    cores: int = 1


# TPU: "bidirectional ICI bandwidth per chip" of the sheet, over two directions and the
# links of a chip (4 in a 2D torus, 6 in a 3D one); DCN in Gbit/s of the sheet over 8.
# ``clock`` (Hz): peak FLOP/s over 2 * 128 * 128 (v6e on: 2 * 256 * 256) and the MXUs of
# the sheet. ``memory`` is what the compiler of libtpu 0.0.42.1 takes for its limit, by
# its message of a program that does not fit (v5e: 15.75 GiB of 16).
_TPUS = (
    Device(
        "v4", "tpu", 275e12, int(30.75 * GIB), 1228e9, 50e9, 6.25e9, 3, 4,
        f"{TPU_DOCS}/v4", clock=1.05e9,
    ),
    Device(
        "v5e", "tpu", 197e12, int(15.75 * GIB), 819e9, 50e9, 3.125e9, 2, 4,
        f"{TPU_DOCS}/v5e", clock=1.5e9,
    ),
    Device(
        "v5p", "tpu", 459e12, int(95.74 * GIB), 2765e9, 100e9, 6.25e9, 3, 4,
        f"{TPU_DOCS}/v5p", clock=1.75e9,
    ),
    Device(
        "v6e", "tpu", 918e12, int(31.25 * GIB), 1638e9, 100e9, 12.5e9, 2, 4,
        f"{TPU_DOCS}/v6e", clock=1.75e9,
    ),
    Device(
        "tpu7x", "tpu", 2307e12 / 2, int(94.75 * GIB), 7380e9 / 2, 100e9, 6.25e9, 3, 4,
        f"{TPU_DOCS}/tpu7x", clock=2.2e9, cores=2,
    ),
)  # fmt: skip

# NVIDIA: SXM boards. "NVLink" of the sheet over two directions; network: one NIC for
# each GPU, as in DGX A100 (200 Gbit/s) and DGX H100, H200 and B200 (400 Gbit/s). The
# sheets' bf16 figures of H100 on are with sparsity: half of it. ``memory`` is what the
# driver leaves of a card, by XLA's own descriptions of cards (target_config/specs).
_GPUS = (
    Device(
        "a100", "cuda", 312e12, 85_100_068_864, 2039e9, 300e9, 25e9, 0, 8,
        f"{NVIDIA}/a100/",
    ),
    Device(
        "h100", "cuda", 989e12, 84_942_979_072, 3352e9, 450e9, 50e9, 0, 8,
        f"{NVIDIA}/h100/",
    ),
    Device(
        "h200", "cuda", 989e12, 151_397_597_184, 4800e9, 450e9, 50e9, 0, 8,
        f"{NVIDIA}/h200/",
    ),
    Device(
        "b200", "cuda", 2250e12, 191_514_411_008, 7672e9, 900e9, 50e9, 0, 8,
        f"{NVIDIA}/dgx-b200/",
    ),
)  # fmt: skip

DEVICES = {device.name: device for device in (*_TPUS, *_GPUS)}
