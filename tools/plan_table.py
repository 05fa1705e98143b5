"""The table of docs/planning.md, made again by the compilers.

python tools/plan_table.py                 all; what was compiled before is read back
python tools/plan_table.py bert-large-v5e  one of them
python tools/plan_table.py --table         the table alone, of what docs/plans.json has

Needs jaxlm[plan-tpu] and jaxlm[plan-gpu]. Each case is planned by the door, in a
process of its own, and its figures go into docs/plans.json as soon as they are there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.core.files import atomic_write_json, atomic_write_text, read_json

ROOT = Path(__file__).resolve().parents[1]
PLANS, PAGE = ROOT / "docs" / "plans.json", ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- plans: begin -->", "<!-- plans: end -->"
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A config on a topology, and what of the config is changed for it."""

    config: str
    topology: str
    changes: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        changes = [f"--config.{change}" for change in self.changes]
        return [
            f"--config=configs/{self.config}",
            f"--topology={self.topology}",
            *changes,
        ]


BERT, GPT = "pretrain_bert.py", "pretrain_gpt.py"
CASES = {
    "bert-large-v5e": Case(
        f"{BERT}:large", "v5e:16x16", ("mesh.data=16", "mesh.fsdp=16")
    ),
    "gpt2-1.5b-h100": Case(f"{GPT}:1.5b", "h100:8", ("model.scan=false",)),
    "7b-v5p": Case(f"{GPT}:7b", "v5p:4x4x4"),
    # With the config's four rows XLA computes again for want of memory.
    "7b-h100": Case(f"{GPT}:7b", "h100:8", ("train.rows_per_device=2",)),
    "7b-h200": Case(f"{GPT}:7b", "h200:4x8"),
    # Four rows a chip, as MaxText's published step has; the config's 1,024 give two.
    "70b-v5p": Case(f"{GPT}:70b", "v5p:8x8x8", ("train.batch_size=2048",)),
    "70b-h100": Case(f"{GPT}:70b", "h100:32x8"),
}


def main() -> None:
    """Plan what is asked for, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*CASES, []], default=[])
    parser.add_argument("--table", action="store_true", help="plan nothing")
    known = parser.parse_args()
    plans = read_json(PLANS) if PLANS.exists() else {}
    for name in [] if known.table else known.names or CASES:
        print(f"{name}: {' '.join(CASES[name].arguments)}", flush=True)
        plans[name] = planned(CASES[name])
        atomic_write_json(PLANS, {each: plans[each] for each in CASES if each in plans})
    write_table(plans)


def planned(case: Case) -> dict[str, Any]:
    """What the door says of a case, less what only a program's reader wants."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "jaxlm.plan", "--json", "--jobs=1"]
    done = subprocess.run(
        [*command, *case.arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"the plan failed with code {done.returncode}")
    found = json.loads(done.stdout)
    found["seconds"] = round(time.monotonic() - begin, 1)
    found["changes"] = list(case.changes)
    for name in ("collectives", "assumptions"):  # what only one plan's reader wants
        found.pop(name, None)
    return found


def write_table(plans: dict[str, Any]) -> None:
    """Between the marks in docs/planning.md."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    atomic_write_text(PAGE, f"{before}{BEGIN}\n{table(plans)}\n{END}{after}")


def table(plans: dict[str, Any]) -> str:
    """One line a case."""
    lines = [
        "| config | machines | changed | a device | compiled in | beyond the model's"
        " FLOPs | step | the compiler's cycles | MFU | tokens/s | held, beside"
        " products, by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        if name in plans:
            lines.append(row(case, plans[name]))
    return "\n".join(lines)


def row(case: Case, plan: dict[str, Any]) -> str:
    """A line of the table."""
    size = f"{plan['bytes_per_device'] / GIB:.1f} of {plan['capacity_bytes'] / GIB:.1f}"
    cells = [
        f"`{case.config}`",
        f"`{case.topology}`",
        ", ".join(f"`{change}`" for change in plan["changes"]),
        f"{size} GiB",
        f"{plan['compile_seconds']:.0f} s",
    ]
    if not plan["fits"]:
        return "| " + " | ".join([*cells, "does not fit", *[""] * 5]) + " |"
    step = plan["step_seconds"]
    held = [
        f"{each['what']} ({each['seconds'] / step:.1%})"
        for each in plan.get("held_by", [])[:2]
    ]
    cells += [
        f"{plan['recompute_overhead']:+.0%}",
        f"{step:.3g} s",
        f"{cycles:.3g} s" if (cycles := plan["compiler_cycle_seconds"]) else "",
        f"{plan['mfu']:.1%}",
        f"{plan['tokens_per_second']:,.0f}",
        "; ".join(held),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
