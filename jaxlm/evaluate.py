"""Score checkpoints: ``python -m jaxlm.evaluate --workdir=runs/ner --split=test``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jaxlm.core import cluster, door
from jaxlm.core.errors import UserError
from jaxlm.core.schema import leaves
from jaxlm.experiment.config import ExperimentConfig

LEAVES = leaves(ExperimentConfig)
READING = {
    "format": "its file format (default: auto)",
    "columns": "its column names, as config.data.columns (default: the usual ones)",
    "scheme": "how its entity labels are written (default: auto)",
}
"""How other data is read; the run's own ``config.data`` need not fit it."""


def main(arguments: list[str]) -> None:
    """Evaluate chosen checkpoints once, or follow a live run."""
    parser = door.make_parser("Score the checkpoints of a run.")
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="which data of the run's config (default: test), or of --data where that"
        " has splits",
    )
    parser.add_argument(
        "--data", help="any other labelled data source, instead of --split"
    )
    parser.add_argument(
        "--step",
        default="best",
        help="best (default), last, all, or the number of a checkpoint",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="score every checkpoint of a live run as it appears, until the run ends",
    )
    for name, meaning in READING.items():
        parser.add_argument(
            f"--{name}",
            choices=LEAVES[f"data.{name}"].rule.choices,
            help=f"of --data: {meaning}",
        )
    cluster.add_flags(parser)
    known, _ = parser.parse(arguments)
    place = cluster.read_flags(known)
    if known.watch and known.step != "best":
        raise UserError("--watch scores every checkpoint; leave out --step")
    if known.data is not None and not known.data.strip():
        raise UserError("--data is empty; a data source, such as a path")
    reading = {name: vars(known)[name] for name in READING if vars(known)[name]}
    if reading and not known.data:
        raise UserError(f"--{next(iter(reading))} describes --data, which is missing")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxlm.core.joining import joined

    with joined(place) as hosts:
        hosts.log_to(Path(known.workdir) / "logs", "evaluate-")
        hosts.alike(cluster.shared_flags(known))
        evaluate(known, reading)


def evaluate(known: argparse.Namespace, reading: dict[str, str]) -> None:
    """Score, and print what came of it."""
    from jaxlm.core.hosts import here
    from jaxlm.experiment.runs import Run, result_name

    run = Run(known.workdir)
    split = known.split or "test"
    name = result_name(known.data, known.split)
    steps = [] if known.watch else run.choose(known.step)
    data = run.dataset(split, known.data, **reading)
    headline = run.parts.task.headline.removeprefix("-")
    if known.watch:
        for step, evaluation in run.watch(data, name):
            loss, value = evaluation.metrics["loss"], evaluation.metrics[headline]
            print(
                f"step {step}  {name}  loss {loss:.4f}  {headline} {value:.4f}",
                flush=True,
            )
        return
    for step in steps:
        evaluation = run.evaluate(data, name, step)
        print(f"step {step}  {name}  loss {evaluation.metrics['loss']:.4f}\n")
        if here().first:
            print(evaluation.report)
            print(f"written: {run.workdir}/results/{name}-{step}.json")


if __name__ == "__main__":
    door.start(main)
