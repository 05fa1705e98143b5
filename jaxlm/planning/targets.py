"""NVIDIA's cards as XLA's GPU compiler wants them described (``GpuTargetConfigProto``).

The figures are those of the cards as the driver shows them, which XLA keeps, too, in
``xla/backends/gpu/target_config/specs`` (github.com/openxla/xla).
"""

from __future__ import annotations

HOPPER = {"major": 9, "cores": 132, "lanes": 128, "shared": 233472, "most": 232448}
CARDS = {
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB", "major": 8, "cores": 108, "lanes": 64,
        "shared": 167936, "most": 166912, "bandwidth": 2039040000000,
        "l2": 41943040, "clock": 1.41, "memory": 85100068864, "dnn": (9, 8),
    },
    "h100": {
        **HOPPER, "name": "NVIDIA H100 80GB HBM3", "bandwidth": 3352320000000,
        "l2": 52428800, "clock": 1.98, "memory": 84942979072, "dnn": (9, 8),
    },
    "h200": {
        **HOPPER, "name": "NVIDIA H200 141GB HBM3e", "bandwidth": 4800000000000,
        "l2": 52428800, "clock": 1.98, "memory": 151397597184, "dnn": (9, 10),
    },
    "b200": {
        "name": "NVIDIA B200", "major": 10, "cores": 148, "lanes": 128,
        "shared": 233472, "most": 232448, "bandwidth": 7672320000000,
        "l2": 132644864, "clock": 1.965, "memory": 191514411008, "dnn": (9, 10),
    },
}  # fmt: skip


def target_config(name: str) -> str:
    """The description of a card as a text proto."""
    card = CARDS[name]
    major, minor = card["dnn"]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {card["shared"]} threads_per_core_limit: 2048
  core_count: {card["cores"]} fpus_per_core: {card["lanes"]}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {card["bandwidth"]} l2_cache_size: {card["l2"]}
  clock_rate_ghz: {card["clock"]} device_memory_size: {card["memory"]}
  shared_memory_per_block_optin: {card["most"]}
  cuda_compute_capability {{ major: {card["major"]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: {major} minor: {minor} }}
device_description_str: "{card["name"]}"
"""
