"""Export: ``python -m jaxlm.export --workdir=runs/ner --output=exports/ner``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jaxlm.core import door
from jaxlm.core.errors import UserError


def main(arguments: list[str]) -> None:
    """Write a folder that transformers opens; its path is what is printed."""
    parser = door.make_parser(
        "Write a run, or a checkpoint as it is, for transformers.",
        model="a checkpoint, to write again as it is",
    )
    parser.add_argument(
        "--output", required=True, help="the folder to write; new, or empty"
    )
    parser.add_argument(
        "--step",
        help="of --workdir: best (default), last, or the number of a checkpoint",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="how weights are stored (default: fp32)",
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        help="the largest a file of weights may be (default: 5GB)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the export that --output holds",
    )
    known, _ = parser.parse(arguments)
    if known.model is not None and known.step:
        raise UserError("--step chooses a checkpoint of --workdir; leave it out")
    if known.step == "all":
        raise UserError(
            "--step=all: one checkpoint is exported; allowed: best, last, N"
        )
    if not known.output.strip():
        raise UserError("--output is empty; the folder to write")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxlm.experiment.exporting import export_model, export_run
    from jaxlm.experiment.runs import Run
    from jaxlm.models.exporting import Layout

    layout = Layout(known.dtype, known.max_shard_size, known.overwrite)
    output = Path(known.output)
    layout.check(output)
    if known.model is not None:
        export_model(known.model, output, layout, say)
    else:
        run = Run(known.workdir, say)
        export_run(run, run.choose(known.step or "best")[0], output, layout, say)
    print(output)


def say(text: str) -> None:
    """Progress is not output."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    door.start(main)
