"""Predicted steps beside published ones: what jaxlm/planning/calibration.py rests on.

python tools/calibrate.py            all; what was compiled before is read back
python tools/calibrate.py v6e-70b    some of them

Needs jaxlm[plan-tpu] and jaxlm[plan-gpu]. Writes the table in docs/planning.md. Those
that are ``fitted`` may be looked at to change the efficiencies; the others may not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.core.files import atomic_write_json, atomic_write_text, read_json
from jaxlm.planning.topology import parse_topology

ROOT = Path(__file__).resolve().parents[1]
PAGE, KEPT = ROOT / "docs" / "planning.md", ROOT / "docs" / "calibration.json"
BEGIN, END = "<!-- calibration: begin -->", "<!-- calibration: end -->"
MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext"
RECIPES = "https://github.com/AI-Hypercomputer/tpu-recipes"
FOUNDRY = "https://github.com/mosaicml/llm-foundry"
BENCHMARKS = f"[llm-foundry]({FOUNDRY}/blob/main/scripts/train/benchmarking/README.md)"


@dataclass(frozen=True)
class Point:
    """A step that somebody measured: ``rows`` of ``length`` tokens on each device."""

    model: str
    topology: str
    rows: int
    length: int
    remat: str
    seconds: float
    source: str
    fitted: bool = False
    mesh: tuple[str, ...] = ()


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
GPT = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50368}
GPT |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    # MaxText's base model (emb 2048, 16 heads of 128, mlp 7168, 16 layers) times 16.
    "maxtext-16b": LLAMA
    | {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 64,
        "head_dim": 128, "intermediate_size": 28672, "vocab_size": 32000,
    },
    "mpt-13b": GPT | {"n_embd": 5120, "n_layer": 40, "n_head": 40},
    "mpt-30b": GPT | {"n_embd": 7168, "n_layer": 48, "n_head": 56},
    "mpt-70b": GPT | {"n_embd": 8192, "n_layer": 80, "n_head": 64},
}  # fmt: skip
"""Architectures that are not built in; MPT's positions are ALiBi, which costs as much
as none, and those of GPT-2 next to nothing."""

POINTS = {
    "v6e-70b": Point(
        "llama-70b", "v6e:16x16", 4, 4096, "block", 17.373,
        f"[tpu-recipes]({RECIPES}/tree/main/training/trillium/Llama2-70B-MaxText):"
        " seconds of a step, remat full",
    ),
    "v5p-70b": Point(
        "llama-70b", "v5p:8x8x8", 4, 4096, "block", 23.68,
        f"[MaxText]({MAXTEXT}/blob/main/docs/reference/models/tiering.md): 692 tokens/s"
        " of a chip, remat save_dot_except_mlpwi, which computes less again",
    ),
    "v5e-16b": Point(
        "maxtext-16b", "v5e:16x16", 6, 2048, "block", 10.31,
        f"[MaxText]({MAXTEXT}/blob/main/MaxText/configs/v5e/README.md): 120 TFLOP/s of"
        " a chip, remat full",
    ),
    "h100-7b": Point(
        "llama-7b", "h100:8", 4, 4096, "dots", 1.535,
        f"[MaxText]({MAXTEXT}/blob/main/MaxText/configs/a3/llama_2_7b/README.md): 492"
        " TFLOP/s of a GPU, remat minimal_flash",
        fitted=True,
    ),
    "h100-13b": Point(
        "mpt-13b", "h100:8", 10, 4096, "block", 8.684,
        f"{BENCHMARKS}: 4,717 tokens/s of a GPU",
        fitted=True,
    ),
    "h100x32-30b": Point(
        "mpt-30b", "h100:4x8", 14, 2048, "block", 12.42,
        f"{BENCHMARKS}: 2,308 tokens/s of a GPU",
    ),
    "h100x64-70b": Point(
        "mpt-70b", "h100:8x8", 8, 2048, "block", 15.77,
        f"{BENCHMARKS}: 1,039 tokens/s of a GPU",
    ),
}  # fmt: skip


def main() -> None:
    """Plan what is asked for, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*POINTS, []], default=[])
    known = parser.parse_args()
    kept = read_json(KEPT) if KEPT.exists() else {}
    for name in known.names or POINTS:
        print(name, flush=True)
        kept[name] = predicted(POINTS[name])
        atomic_write_json(KEPT, {each: kept[each] for each in POINTS if each in kept})
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    atomic_write_text(PAGE, f"{before}{BEGIN}\n{table(kept)}\n{END}{after}")


def predicted(point: Point) -> dict[str, Any]:
    """What the planner says of the same step."""
    with tempfile.TemporaryDirectory() as folder:
        model = f"random:{point.model}"
        if point.model in MODELS:
            place = Path(folder) / point.model
            place.mkdir()
            names = ("max_position_embeddings", "n_positions")
            text = json.dumps(MODELS[point.model] | dict.fromkeys(names, point.length))
            (place / "config.json").write_text(text)
            model = f"random:{place}"
        rows = point.rows * parse_topology(point.topology).devices
        command = [
            sys.executable, "-m", "jaxlm.plan", "--json", "--jobs=1",
            "--config=configs/pretrain_gpt.py:7b", f"--topology={point.topology}",
            f"--config.model.pretrained={model}", f"--config.train.batch_size={rows}",
            f"--config.train.rows_per_device={point.rows}",
            f"--config.data.max_length={point.length}",
            f"--config.model.remat={point.remat}",
            *(f"--config.mesh.{each}" for each in point.mesh),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the plan failed with code {done.returncode}")
    found = json.loads(done.stdout)
    names = (
        "fits", "step_seconds", "compiler_cycle_seconds", "mfu", "recompute_overhead",
        "versions",
    )  # fmt: skip
    return {name: found.get(name) for name in names}


def table(kept: dict[str, Any]) -> str:
    """One line a point."""
    lines = [
        "| step | published | predicted | difference | the compiler's cycles | used to"
        " fit | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, point in POINTS.items():
        if (found := kept.get(name)) is None or found["step_seconds"] is None:
            continue
        seconds, cycles = found["step_seconds"], found.get("compiler_cycle_seconds")
        counted = f"{cycles:.4g} s, {cycles / point.seconds - 1:+.1%}" if cycles else ""
        lines.append(
            f"| {point.model} on `{point.topology}`, {point.rows} x {point.length:,} a"
            f" device | {point.seconds:.4g} s | {seconds:.4g} s |"
            f" {seconds / point.seconds - 1:+.1%} | {counted} |"
            f" {'yes' if point.fitted else 'no'} | {point.source} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
