"""Where the time of a training step goes on this CPU, by part of the model.

python tools/profile_step.py [--config.model.scan=true ...]

Traces steps of configs/ner.py, with jax's own profiler, and adds up what XLA's compiled
pieces took under the names that the code gives them (`jax.named_scope`). A piece that
fuses several operations counts for its last one. About a minute on two cores.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import jax

from jaxlm.core.config import resolve
from jaxlm.core.pages import ask_for_huge_pages
from jaxlm.experiment.ahead import compiled_step
from jaxlm.experiment.config import ExperimentConfig
from jaxlm.experiment.prepare import loader, prepare
from jaxlm.experiment.training import first_state, make_states

ROOT = Path(__file__).resolve().parents[1]
WARM, STEPS = 3, 10
SCOPES = ("embeddings", "attention", "residual", "mlp", "optimizer")
DEFINITION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .*")
OPERATION = re.compile(r'op_name="([^"]*)"')


def main() -> None:
    ask_for_huge_pages()
    spec = str(ROOT / "configs" / "ner.py")
    run = prepare(
        resolve(ExperimentConfig, spec, sys.argv[1:]).config, None, lambda _: None
    )
    states = make_states(run)
    with jax.set_mesh(run.parts.mesh), tempfile.TemporaryDirectory() as folder:
        state = first_state(run, states)
        batches = [batch for _, batch in islice(loader(run).iterate(), WARM + STEPS)]
        step: object = compiled_step(run.parts, states)
        program = step.lower(state, batches[0]).compile()
        for batch in batches[:WARM]:
            state, _ = program(state, batch)
        jax.block_until_ready(state)
        with jax.profiler.trace(folder):
            for batch in batches[WARM:]:
                state, _ = program(state, batch)
                jax.block_until_ready(state)
        show(spent(next(Path(folder).rglob("*.trace.json.gz")), program.as_text()))


def spent(path: Path, program: str) -> Counter[str]:
    """Milliseconds of a step by part: scope, direction, matrix product or not."""
    parts = dict(filter(None, map(part, program.splitlines())))
    found: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X" and event["name"] in parts:
            found[parts[event["name"]]] += event["dur"] / 1e3 / STEPS
    return found


def part(line: str) -> tuple[str, str] | None:
    """The name of an instruction of the program, and the part that it is of."""
    name, operation = DEFINITION.match(line), OPERATION.search(line)
    if name is None or "fused_computation" in line.split("=")[0]:
        return None
    path = operation[1] if operation else ""
    scope = next((each for each in SCOPES if re.search(rf"\b{each}\b", path)), "other")
    product = "products" if name[1].startswith(("ynn", "dot")) else "the rest"
    if scope == "optimizer":
        return name[1], scope
    return name[
        1
    ], f"{scope}, {product}, {'back' if 'transpose' in path else 'forward'}"


def show(found: Counter[str]) -> None:
    whole = sum(found.values())
    for name, milliseconds in found.most_common():
        print(f"{milliseconds / whole:6.1%} {milliseconds:8.2f} ms  {name}")
    print(f"100.0% {whole:8.2f} ms")


if __name__ == "__main__":
    main()
