"""The memory that loading takes, in two processes that hold half a model each.

python tools/load_memory.py                    2 GB, made for the purpose, and removed
python tools/load_memory.py --gigabytes=8 --scan

Two processes of four CPU devices each (``jax.distributed``, gloo) load a random Llama
of f32 safetensors in several files, its width split over all eight (``fsdp``). Each
watches its anonymous memory (``RssAnon`` of /proc/self/status, every 2 ms): what it
allocates, without the pages of mapped files, which the system drops at will. What is
said is the growth from before the load to its greatest, over the bytes of the
parameters that the process then holds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from jaxlm.core.safetensors import INDEX, write

ROOT = Path(__file__).parents[1]
SHARD_BYTES = 512 * 2**20


def shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama whose layers have 12 widths squared, and their shapes."""
    mlp = width * 8 // 3 // 64 * 64
    found = {"model.embed_tokens.weight": (32_000 // 8 * 8, width)}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for each in "qkvo":
            found[f"{name}.self_attn.{each}_proj.weight"] = (width, width)
        found[f"{name}.mlp.gate_proj.weight"] = (mlp, width)
        found[f"{name}.mlp.up_proj.weight"] = (mlp, width)
        found[f"{name}.mlp.down_proj.weight"] = (width, mlp)
        found[f"{name}.input_layernorm.weight"] = (width,)
        found[f"{name}.post_attention_layernorm.weight"] = (width,)
    return found | {"model.norm.weight": (width,)}


def make(folder: Path, megabytes: int, width: int) -> int:
    """Write a checkpoint of at least so many MB of tensors; how many bytes it has."""
    layers = 1
    while size(shapes(layers, width)) < megabytes * 10**6:
        layers += 1
    tensors = shapes(layers, width)
    random, shard, number, place = np.random.default_rng(0), {}, 0, {}
    for name, shape in tensors.items():
        shard[name] = random.random(shape, np.float32) * 0.04 - 0.02
        place[name] = f"model-{number:05}.safetensors"
        if sum(value.nbytes for value in shard.values()) >= SHARD_BYTES:
            write(folder / place[name], shard)
            shard, number = {}, number + 1
    if shard:
        write(folder / f"model-{number:05}.safetensors", shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": place}))
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": tensors["model.embed_tokens.weight"][0],
        "hidden_size": width,
        "intermediate_size": tensors["model.layers.0.mlp.up_proj.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return size(tensors)


def size(tensors: dict[str, tuple[int, ...]]) -> int:
    """Their bytes, in f32."""
    return sum(4 * int(np.prod(shape)) for shape in tensors.values())


def memory(kind: str) -> int:
    """Bytes of this process now, by a name of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024


class Watch:
    """The greatest anonymous memory while it is open."""

    def __enter__(self) -> Watch:
        self.greatest, self.open = memory("RssAnon"), True
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self) -> None:
        while self.open:
            self.greatest = max(self.greatest, memory("RssAnon"))
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.open = False
        self.thread.join()


def load(folder: str, process: int, port: int, scan: bool) -> None:
    """Be one of the two processes; prints what it measured as JSON."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    from jaxlm.core.mesh import Rules, make_mesh
    from jaxlm.models import pretrained

    mesh, _ = make_mesh({"data": 1, "fsdp": 8})
    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # what jax itself allocates once
    before, began = memory("RssAnon"), time.perf_counter()
    with Watch() as watch:
        rules = Rules.of({"width": ("fsdp",)})
        model = pretrained.load(folder, mesh=mesh, rules=rules, scan=scan)
        jax.block_until_ready(model.params)
    leaves = jax.tree.leaves(model.params)
    held = sum(part.data.nbytes for leaf in leaves for part in leaf.addressable_shards)
    figures = {
        "process": process,
        "seconds": round(time.perf_counter() - began, 2),
        "held": held,
        "growth": watch.greatest - before,
        "after": memory("RssAnon") - before,
        "devices": jax.device_count(),
    }
    print(json.dumps(figures), flush=True)
    jax.distributed.shutdown()


def measure(folder: Path, scan: bool) -> list[dict[str, float]]:
    """Load a checkpoint in two processes; what each of them measured."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, __file__, f"--folder={folder}", f"--port={port}"]
    command += ["--scan"] if scan else []
    running = [
        subprocess.Popen(
            [*command, f"--process={process}"],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [each.communicate(timeout=600)[0] for each in running]
    if any(each.returncode for each in running):
        raise SystemExit(f"a process failed: {outputs}")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--scan", action="store_true", help="one stack of all layers")
    parser.add_argument("--folder", help="a checkpoint that is there")
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.process is not None:
        return load(given.folder, given.process, given.port, given.scan)
    needed = given.gigabytes * 10**9
    if shutil.disk_usage(tempfile.gettempdir()).free < 1.5 * needed:
        raise SystemExit(f"{tempfile.gettempdir()}: no room; set TMPDIR")
    with tempfile.TemporaryDirectory(prefix="load-memory-") as made:
        total = make(Path(made), int(needed / 10**6), given.width)
        print(f"{total / 1e9:.2f} GB of f32 tensors, scan={given.scan}")
        for each in measure(Path(made), given.scan):
            held, growth, after = (each[n] / 1e9 for n in ("held", "growth", "after"))
            print(
                f"process {each['process']}: holds {held:.3f} GB, grew by at most"
                f" {growth:.3f} GB ({growth / held:.3f} times), after the load by"
                f" {after:.3f} GB; {each['seconds']} s"
            )


if __name__ == "__main__":
    main()
