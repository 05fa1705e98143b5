"""Which process of how many this one is, as flags or the environment say; no jax.

What a cluster says by itself (Cloud TPU, Slurm, Open MPI, Kubernetes) is asked for by
``jaxlm.core.joining``, where neither of these does.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxlm.core.errors import UserError

FLAGS = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process": "JAX_PROCESS_ID",
}
"""Each flag, and the variable that says the same."""
JOIN_SECONDS, LOST_SECONDS = 300, 60
MOST_SECONDS = 7 * 86_400
MOST_PROCESSES = 2**20
HOST = re.compile(r"\[[0-9A-Fa-f:.]+\]|[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Place:
    """One of several processes, and where the first of them listens.

    ``processes`` is None where the cluster is to be asked. ``local_devices`` are those
    of the machine that are this process's own, None for all.
    """

    coordinator: str = ""
    processes: int | None = None
    process: int = 0
    join_seconds: int = JOIN_SECONDS
    lost_seconds: int = LOST_SECONDS
    local_devices: tuple[int, ...] | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--coordinator``, ``--processes``, ``--process`` and how long to wait."""
    group = parser.add_argument_group(
        "several processes",
        "Found out where a cluster is known (Cloud TPU, Slurm, Open MPI, Kubernetes);"
        f" else by these or {', '.join(FLAGS.values())}.",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens, a free port of its host",
    )
    group.add_argument(
        "--processes", metavar="N", help="how many there are; 1: alone, on any cluster"
    )
    group.add_argument("--process", metavar="I", help="which one this is, from 0 on")
    group.add_argument(
        "--join-seconds",
        metavar="S",
        default=str(JOIN_SECONDS),
        help="how long to wait for all to start (default: %(default)s)",
    )
    group.add_argument(
        "--lost-seconds",
        metavar="S",
        default=str(LOST_SECONDS),
        help="the silence after which one is taken to be gone (default: %(default)s)",
    )


def read_flags(
    known: argparse.Namespace, environment: Mapping[str, str] = os.environ
) -> Place:
    """What flags or, where none is given, variables say.

    Raises:
      UserError: a part is missing or is not allowed.
    """
    given = {flag: vars(known)[flag] for flag in FLAGS}
    names = {flag: f"--{flag}" for flag in FLAGS}
    if not any(given.values()):
        given = {flag: environment.get(name) for flag, name in FLAGS.items()}
        names = FLAGS
    join = _count(known.join_seconds, "--join-seconds", 1, MOST_SECONDS)
    lost = _count(known.lost_seconds, "--lost-seconds", 5, MOST_SECONDS)
    alone = given["processes"] == "1" and given["process"] in (None, "", "0")
    if alone or not (given["processes"] or given["process"]):
        # An address alone is what jax itself takes beside a cluster's own numbers.
        if given["coordinator"] and not alone and names is not FLAGS:
            raise _missing(names, given)
        return Place(given["coordinator"] or "", 1 if alone else None, 0, join, lost)
    if not all(given.values()):
        raise _missing(names, given)
    processes = _count(given["processes"], names["processes"], 1, MOST_PROCESSES)
    process = _count(given["process"], names["process"], 0, MOST_PROCESSES)
    if process >= processes:
        raise UserError(
            f"{names['process']}={process} is not allowed; of"
            f" {names['processes']}={processes} the last is {processes - 1}"
        )
    address = _address(given["coordinator"] or "", names["coordinator"])
    return Place(address, processes, process, join, lost)


def shared_flags(known: argparse.Namespace) -> dict[str, object]:
    """A door's flags, by name, that all processes must be given alike."""
    return {
        f"--{name.replace('_', '-')}": value
        for name, value in vars(known).items()
        if name not in (*FLAGS, "join_seconds", "lost_seconds", "debug")
    }


def _missing(names: Mapping[str, str], given: Mapping[str, str | None]) -> UserError:
    lacking = [names[flag] for flag in FLAGS if not given[flag]]
    there = [names[flag] for flag in FLAGS if given[flag]]
    return UserError(
        f"{' and '.join(there)} without {' and '.join(lacking)}; all of"
        f" {', '.join(names.values())}, or none of them"
    )


def _count(text: str | None, name: str, least: int, most: int) -> int:
    number = int(text) if text and re.fullmatch(r"[0-9]{1,9}", text.strip()) else -1
    if not least <= number <= most:
        raise UserError(f"{name}={text}: is not a whole number from {least} to {most}")
    return number


def _address(text: str, name: str) -> str:
    host, _, port = text.strip().rpartition(":")
    known = HOST.fullmatch(host) and re.fullmatch(r"[0-9]{1,5}", port)
    if not (known and 0 < int(port) < 2**16):
        raise UserError(
            f"{name}={text}: is not HOST:PORT, such as 10.0.0.1:1234, of process 0"
        )
    return text.strip()
