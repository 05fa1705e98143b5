"""A training step on the accelerators here: measured, beside what was planned of it.

python tools/measure_step.py --config=configs/pretrain_gpt.py:124m \
    [--config.train.batch_size=64 ...] [--plan=PLAN.json] [--trace=FOLDER]

The step is the planner's own (``jaxlm.experiment.planned``), which is main's, on the
devices that are here, with random tokens. PLAN is what ``python -m jaxlm.plan --json``
printed of the same config for these machines. FOLDER gets a profile of two steps, to be
read by tools/read_trace.py, and the program. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.core import config as configs
from jaxlm.core.mesh import make_mesh
from jaxlm.core.programs import keep_programs
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.planned import Planned, build
from jaxlm.planning.devices import DEVICES

WARM, STEPS, TRACED = 3, 8, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--trace", type=Path)
    known, overrides = parser.parse_known_args()
    keep_programs()
    resolved = configs.resolve(ExperimentConfig, known.config, overrides).config
    mesh, _ = make_mesh(resolved.mesh.sizes)
    planned = build(resolved, mesh)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        program = planned.lower().compile()
        compiled = time.perf_counter() - began
        state, batch = first_state(planned), random_batch(planned)
        line = {"config": known.config, "overrides": overrides}
        line["compile_seconds"] = round(compiled, 1)
        state, found = measure(planned, program, state, batch)
        line |= found
        if known.plan:
            plan = json.loads(known.plan.read_text())
            line["planned_seconds"] = plan["step_seconds"]
            line["planned_bytes"] = plan["bytes_per_device"]
            line["planned_over_measured"] = plan["step_seconds"] / line["step_seconds"]
        print(json.dumps(line), flush=True)
        if known.trace:
            write_trace(known.trace, program, state, batch)


def measure(
    planned: Planned, program: Any, state: Any, batch: Any
) -> tuple[Any, dict[str, Any]]:
    """The last state; seconds of a step, the median, MFU, bytes in use at most."""
    device = planned.mesh.devices.flat[0]
    stats = program.memory_analysis()
    taken, metrics = [], None
    for _ in range(WARM + STEPS):
        began = time.perf_counter()
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - began)
    seconds = statistics.median(taken[WARM:])
    facts = planned.facts
    flops = facts["model_flops_per_token"] * facts["tokens_per_step"]
    kind = device.device_kind.lower()
    peak = next((d.flops for n, d in DEVICES.items() if n in kind), None)
    count = planned.mesh.devices.size
    return state, {
        "device": device.device_kind,
        "devices": count,
        "jax": jax.__version__,
        "step_seconds": seconds,
        "spread": [min(taken[WARM:]), max(taken[WARM:])],
        "tokens_per_second": facts["tokens_per_step"] / seconds,
        "mfu": None if peak is None else flops / seconds / count / peak,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "compiler_bytes": stats.argument_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes,
        "metrics": jax.tree.map(float, metrics),
    }


def write_trace(folder: Path, program: Any, state: Any, batch: Any) -> None:
    """A profile of some steps, and the program's text, which names what it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.txt").write_text(program.as_text())
    with jax.profiler.trace(str(folder / "raw")):
        for _ in range(TRACED):
            state, metrics = program(state, batch)
            jax.block_until_ready(metrics)
    found = next((folder / "raw").rglob("*.trace.json.gz"))
    shutil.move(found, folder / "trace.json.gz")
    shutil.rmtree(folder / "raw")


def first_state(planned: Planned) -> Any:
    """Random parameters and no moments: what a step takes does not hang on them."""
    state = planned.state

    def make() -> Any:
        key = jax.random.key(0)

        def drawn(leaf: Any) -> jax.Array:
            return jax.random.normal(key, leaf.shape, leaf.dtype) * 0.02

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
        return zeros._replace(
            trainable=jax.tree.map(drawn, state.trainable),
            frozen=jax.tree.map(drawn, state.frozen),
        )

    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, state))()


def random_batch(planned: Planned) -> dict[str, jax.Array]:
    """Rows of one example each, without padding: a plan counts attention of these."""
    rows, length = planned.batch["tokens"].shape
    random = np.random.default_rng(0)
    tokens = random.integers(0, planned.facts["vocab_size"], (rows, length), np.int32)
    made = {
        "tokens": tokens,
        "labels": np.roll(tokens, -1, axis=1),
        "mask": np.ones((rows, length)),
        "segments": np.ones((rows, length)),
        "positions": np.broadcast_to(np.arange(length), (rows, length)),
        "dice": random.integers(0, 2**31 - 1, (rows, length)),
    }
    placed = {}
    for name, like in planned.batch.items():
        value = made.get(name, np.zeros(like.shape))
        placed[name] = jax.device_put(value.astype(like.dtype), like.sharding)
    return placed


if __name__ == "__main__":
    main()
