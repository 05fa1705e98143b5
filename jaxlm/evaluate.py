"""Score checkpoints: ``python -m jaxlm.evaluate --workdir=runs/ner --split=test``."""

from __future__ import annotations

import os

from jaxlm.core import door
from jaxlm.core.errors import UserError


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
    known, _ = parser.parse(arguments)
    if known.watch and known.step != "best":
        raise UserError("--watch scores every checkpoint; leave out --step")
    if known.data is not None and not known.data.strip():
        raise UserError("--data is empty; a data source, such as a path")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxlm.experiment.runs import Run, source_name

    run = Run(known.workdir)
    split = known.split or "test"
    name = split
    if known.data:  # a split that was asked for tells two results of one source apart
        name = "-".join(filter(None, (source_name(known.data), known.split)))
    steps = [] if known.watch else run.choose(known.step)
    data = run.dataset(split, known.data)
    headline = run.parts.task.headline
    if known.watch:
        for step, evaluation in run.watch(data, name):
            loss, value = evaluation.metrics["loss"], evaluation.metrics[headline]
            print(f"step {step}  loss {loss:.4f}  {headline} {value:.4f}", flush=True)
        return
    for step in steps:
        evaluation = run.evaluate(data, name, step)
        print(f"step {step}  {name}  loss {evaluation.metrics['loss']:.4f}\n")
        print(evaluation.report)
        print(f"written: {run.workdir}/results/{name}-{step}.json")


if __name__ == "__main__":
    door.run(main)
