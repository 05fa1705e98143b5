"""Plan: ``python -m jaxlm.plan --config=... --topology=v5p:4x4x4``.

Compiles the step that main would run, for machines that are not here, by the compilers
of ``pip install jaxlm[plan-tpu]`` and ``jaxlm[plan-gpu]``; prints what it would need
and take.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from jaxlm.core import config, door
from jaxlm.core.errors import UserError
from jaxlm.experiment import ExperimentConfig
from jaxlm.planning.compiling import kept_folder
from jaxlm.planning.meshes import check_compiler
from jaxlm.planning.topology import EXAMPLES, FLAG, parse_topology, sizes_on

LONGEST_NAME = 200
"""Of a file, in bytes: file systems have 255, and it is written by a longer one."""


def main(arguments: list[str]) -> None:
    """Check the arguments, compile, and print the plan."""
    parser = door.make_parser(
        "Plan a run on a TPU slice or a GPU cluster that is not here.", config=True
    )
    add_flags(parser)
    known, overrides = parser.parse(arguments)
    if known.config is None:
        raise UserError("--config is missing; as --config=configs/pretrain_gpt.py:7b")
    resolved = config.resolve(ExperimentConfig, known.config, overrides)
    if known.explain:
        print(config.explain(resolved))
        return
    if known.workdir:
        raise UserError("--workdir: a plan writes nothing there; leave it out")
    if known.topology is None:
        raise UserError(f"{FLAG} is missing; {EXAMPLES}")
    if known.price is not None and known.tokens is None:
        raise UserError("--price: needs --tokens, which it is the price of")
    topology = parse_topology(known.topology)
    if resolved.config.mesh.layout == "auto":
        raise UserError(
            "config.mesh.layout: auto is for main; take --config.mesh.layout=manual,"
            " and --search to have the sizes chosen"
        )
    if not known.search:
        sizes_on(topology, resolved.config.mesh.sizes)
    check_compiler(topology)
    kept_folder()
    if known.hlo is not None:
        check_file(known.hlo)

    from jaxlm.experiment.layout import build
    from jaxlm.planning import planner

    def configure(extra: tuple[str, ...]) -> ExperimentConfig:
        chosen = [*overrides, *extra]
        return config.resolve(ExperimentConfig, known.config, chosen).config

    wanted = planner.Wanted(build, configure, topology, known.jobs)
    if known.search:
        found = planner.search(wanted, progress)
    else:
        found = planner.plan(wanted, progress)
    show(found, known)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this door."""
    parser.add_argument(
        "--topology", metavar="NAME:SIZE", help=f"the machines: {EXAMPLES}"
    )
    parser.add_argument(
        "--tokens", type=_positive, help="tokens to train on: days are printed"
    )
    parser.add_argument(
        "--price", type=_positive, help="of a chip and an hour: the cost is printed"
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="try meshes, microbatches, rematerialisation and blocks of attention;"
        " print the best that fits",
    )
    parser.add_argument(
        "--jobs", type=_count, help="compilations at a time (default: by free memory)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, for machines"
    )
    parser.add_argument(
        "--hlo", metavar="PATH", help="also write the compiled program's text there"
    )


def show(found: Any, known: argparse.Namespace) -> None:
    """Print what was found, and write the program where that is asked for."""
    from jaxlm.core.files import atomic_write_text, to_plain
    from jaxlm.planning.outcome import as_text

    if known.json:
        print(json.dumps(to_plain(found.to_dict(known.tokens, known.price)), indent=2))
    else:
        print(as_text(found, known.tokens, known.price))
    if known.hlo and not found.best.compiled.program:
        progress(f"--hlo={known.hlo}: not written; there is no program that fits")
    elif known.hlo:
        atomic_write_text(known.hlo, found.best.compiled.program)


def progress(line: str) -> None:
    """A line of progress; never among what is printed for machines."""
    print(line, file=sys.stderr, flush=True)


def check_file(path: str) -> None:
    """Refuse a file for the program that could not be written, before it is compiled.

    Raises:
      UserError: it is something else than a file (which a file would take the place
        of), or in a directory that cannot be written.
    """
    there = os.path.lexists(path)
    if not path or there and (os.path.islink(path) or not os.path.isfile(path)):
        raise UserError(f"--hlo={path}: is not a file; name one to be written")
    if len(os.fsencode(os.path.basename(path))) > LONGEST_NAME:
        raise UserError(f"--hlo={path}: a name has {LONGEST_NAME} bytes at most")
    folder = Path(path).absolute().parent
    while not os.path.lexists(folder):  # made when the file is, so that none is left
        folder = folder.parent
    door.writable_directory(folder)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; a number above 0")
    return value


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; a whole number, at least 1"
        )
    return int(text)


if __name__ == "__main__":
    door.start(main)
