"""Compile a small step for accelerators that are not here, and print what it became.

    python -m tests.models.ahead '{"topology": "v5e:2x2", "mesh": [2, 1, 2, 1], ...}'

A process of its own: libtpu wants its environment before jax is imported, and does not
know the flags that tests give to the CPU's XLA. Prints one JSON object.
"""

import json
import os
import re
import sys
import time
from collections.abc import Sequence

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5p-8",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    XLA_FLAGS="",
)

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.core.mesh import Rules
from jaxlm.core.schema import flatten
from jaxlm.experiment.config import MeshConfig
from jaxlm.models.architecture import Dropout, LayerKind, TransformerConfig
from jaxlm.models.backends import Need, choose, compute_capability
from jaxlm.models.functional import functional
from jaxlm.models.kernels.cudnn import planned_for
from jaxlm.models.transformer import Transformer

AXES = ("data", "fsdp", "tensor", "context")
# What XLA must know of a card that is not here; figures of NVIDIA's H100 SXM sheet.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def make_mesh(topology: str, sizes: list[int]) -> Mesh:
    """A mesh of the devices of ``v5e:2x2``, or of ``h100:4``."""
    name, _, shape = topology.partition(":")
    if name == "h100":
        found = topologies.get_topology_desc(
            topology, "cuda", target_config=H100, topology=f"1x1x{shape}"
        )
    else:
        wrap = {"wrap": (True,) * 3} if name == "v5p" else {}
        found = topologies.get_topology_desc(topology, "tpu", **wrap)
    devices = mesh_utils.create_device_mesh(tuple(sizes), found.devices)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def compile_step(
    topology: str,
    mesh: list[int],
    model: dict,
    backend: str = "auto",
    rows: int = 8,
    length: int = 256,
    reaches: Sequence[int | None] = (None,),
    packing: bool = True,
    remat: str = "none",
) -> dict:
    """The gradient of a sum of hidden states, compiled: its time, size and kernels."""
    devices = make_mesh(topology, mesh)
    kinds = tuple(LayerKind(reach) for reach in reaches)
    sizes = {"vocab_size": 256, "max_positions": length, "dropout": Dropout.of(0.0)}
    config = TransformerConfig(**{**sizes, **model}, pattern=kinds)
    rules = Rules.of(flatten(MeshConfig().rules))
    need = Need.of(
        config,
        platform=devices.devices.flat[0].platform,
        capability=compute_capability(devices.devices.flat[0]),
        dtype="bfloat16",
        split=mesh[3] > 1,
        packing=packing,
    )
    chosen = choose(backend, need)

    def make(rngs):
        return Transformer(
            config,
            rngs,
            rules=rules,
            remat=remat,
            dtype=jnp.dtype(jnp.bfloat16),
            attention=chosen,
        )

    made = functional(make)
    placed = rules.shardings(devices, made.axes, made.shapes)

    def abstract(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    split = NamedSharding(devices, PartitionSpec(("data", "fsdp")))
    ints = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=split)
    batch = {name: ints for name in ("tokens", "segments", "positions")}
    places = jax.ShapeDtypeStruct((rows, 4 if packing else 1), jnp.int32)
    batch["starts"] = places.update(sharding=split)

    def loss(params, batch):
        return made.apply(params, batch)["hidden"].astype(jnp.float32).sum()

    with jax.set_mesh(devices), planned_for(need.capability):
        params = jax.tree.map(abstract, made.shapes, placed)
        lowered = jax.jit(jax.grad(loss)).lower(params, batch)
        start = time.monotonic()
        compiled = lowered.compile()
    text = compiled.as_text()
    memory = compiled.memory_analysis()
    kernels = re.findall(r'custom_call_target="([^"]+)"', text)
    return {
        "platform": need.platform,
        "backend": chosen.name,
        "notice": chosen.notice,
        "seconds": round(time.monotonic() - start, 1),
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "kernels": {name: kernels.count(name) for name in sorted(set(kernels))},
        "collectives": {
            name: len(re.findall(rf" {name}(-start)?\(", text))
            for name in ("all-gather", "all-reduce", "collective-permute", "all-to-all")
        },
    }


if __name__ == "__main__":
    print(json.dumps(compile_step(**json.loads(sys.argv[1]))))
