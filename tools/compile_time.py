"""How the compile time of a training step grows with depth, scanned and unrolled.

python tools/compile_time.py

Compiles the step of configs/ner.py for a BERT of MiniLM's width with 12 and with 48
layers, in turn, and prints medians and their ratio. Nothing is trained; no cache is
used. About three minutes on two cores.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax

from jaxlm.core.config import resolve
from jaxlm.experiment.ahead import compiled_step
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.prepare import loader, prepare
from jaxlm.experiment.training import make_states
from jaxlm.models.checkpoint import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
DEPTHS, ROUNDS = (12, 48), 3
SIZES = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def main() -> None:
    for scan in (True, False):
        seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
        for _ in range(ROUNDS if scan else 1):
            for depth in DEPTHS:
                seconds[depth].append(compile_seconds(depth, scan))
        middle = {depth: statistics.median(seconds[depth]) for depth in DEPTHS}
        ratio = middle[DEPTHS[1]] / middle[DEPTHS[0]]
        print(f"scan={scan}: {middle} seconds, ratio {ratio:.2f}", flush=True)


def compile_seconds(depth: int, scan: bool) -> float:
    """Seconds to compile the step, tracing left out."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(BUILT_IN["tiny"], folder)
        path = folder / "config.json"
        config = json.loads(path.read_text()) | SIZES | {"num_hidden_layers": depth}
        path.write_text(json.dumps(config))
        overrides = [
            f"--config.model.pretrained=random:{folder}",
            f"--config.model.scan={str(scan).lower()}",
            "--config.data.train=sample:ner[:32]",
        ]
        spec = str(ROOT / "configs" / "ner.py:tiny")
        resolved = resolve(ExperimentConfig, spec, overrides)
        run = prepare(resolved.config, None, lambda _: None)
        states = make_states(run)
        with jax.set_mesh(run.parts.mesh):
            _, batch = next(loader(run).iterate())
            step: object = compiled_step(run.parts, states)
            lowered = step.lower(states.abstract(0), batch)
            began = time.perf_counter()
            lowered.compile()
            return time.perf_counter() - began


if __name__ == "__main__":
    main()
