"""Train: ``python -m jaxlm.main --config=configs/ner.py --workdir=runs/ner``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jaxlm.core import cluster, config, door
from jaxlm.core.errors import Lost, UserError
from jaxlm.data.config import check_sources
from jaxlm.experiment import ExperimentConfig


def main(arguments: list[str]) -> None:
    """Resolve the config, then train; a second start resumes."""
    parser = door.make_parser(
        "Train a model by a config file; the same command again resumes.", config=True
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew in a workdir that holds a run; says what it deletes",
    )
    cluster.add_flags(parser)
    known, overrides = parser.parse(arguments)
    place = cluster.read_flags(known)
    if known.config is None:
        raise UserError("--config is missing; for example --config=configs/ner.py")
    resolved = config.resolve(ExperimentConfig, known.config, overrides)
    if known.explain:
        print(config.explain(resolved))
        return
    check_sources(resolved.config.data)
    workdir = Path(known.workdir or default_workdir(known.config))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from jaxlm.core.joining import joined
    from jaxlm.experiment.training import train
    from jaxlm.train.saving import NotSaved

    with joined(place) as hosts:
        hosts.log_to(workdir / "logs")
        print(f"workdir {workdir}", flush=True)
        try:
            train(resolved.config, workdir, overwrite=known.overwrite)
        except (KeyboardInterrupt, SystemExit, OSError, NotSaved, Lost):
            if has_begun(workdir):
                print(f"to go on: {command(arguments)}", flush=True)
            raise


def has_begun(workdir: Path) -> bool:
    """Whether this process has begun or resumed the run there."""
    from jaxlm.train.recorded import read_status

    return (read_status(workdir) or {}).get("pid") == os.getpid()


def command(arguments: list[str]) -> str:
    """What goes on with the run: the same command, but that it deletes nothing."""
    kept = [each for each in arguments if each != "--overwrite"]
    return shlex.join(["python", "-m", "jaxlm.main", *kept])


def default_workdir(spec: str) -> Path:
    """``configs/ner.py:tiny`` trains in ``runs/ner-tiny``."""
    path, _, variant = spec.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))


if __name__ == "__main__":
    door.start(main)
