"""What a launcher is told of the trainer: its arguments, workdir and environment."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from launch.shell import Refusal, checked

ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
BUCKET = r"gs://[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9](/(?!\.\.?(/|$))[-\w.]+)*/?"
USER_ERROR = 2
"""The trainer's exit code for what only the user can mend; a restart would not help."""


@dataclass(frozen=True)
class Trainer:
    """The arguments of ``jaxlm.main``, ``--workdir`` among them, and its config."""

    arguments: tuple[str, ...]
    workdir: str
    config: str


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's own arguments, and the trainer's, which follow ``--``."""
    given = list(arguments)
    if "--" not in given:
        return given, []
    at = given.index("--")
    return given[:at], given[at + 1 :]


def trainer(arguments: Sequence[str], runs: str = "runs") -> Trainer:
    """The trainer's arguments, its workdir below ``runs`` added where none is given.

    Raises:
      Refusal: no config is named, or the workdir is not below ``runs``, which is what
        the machines share.
    """
    spec = _value(arguments, "--config")
    if not spec:
        raise Refusal(
            "the trainer's arguments are missing --config; give them after --, such as"
            " -- --config=configs/ner.py"
        )
    given = _value(arguments, "--workdir")
    if given == "":
        raise Refusal(
            f"--workdir is empty; leave it out, or give --workdir={runs}/NAME"
        )
    workdir = (given or f"{runs}/{default_run(spec)}").rstrip("/")
    parts = PurePosixPath(workdir).parts
    root = PurePosixPath(runs).parts
    if parts[: len(root)] != root or len(parts) == len(root) or ".." in parts:
        raise Refusal(
            f"--workdir={workdir} is not below {runs}/, where runs are kept; leave it"
            f" out, or give --workdir={runs}/NAME"
        )
    added = () if given else (f"--workdir={workdir}",)
    return Trainer((*arguments, *added), workdir, spec.partition(":")[0])


def default_run(spec: str) -> str:
    """``configs/ner.py:tiny`` is the run ``ner-tiny``, as in ``jaxlm.main``."""
    path, _, variant = spec.partition(":")
    return "-".join(filter(None, (PurePosixPath(path).stem, variant)))


def in_checkout(path: str) -> bool:
    """Whether a path that the trainer is given is one of the checkout.

    Others, as below a mounted bucket or an absolute one, are of its machines.
    """
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts and parts[:1] != ("runs",)


def check_config(run: Trainer) -> None:
    """Refuse a config that is not in this checkout, before a machine is asked for.

    Raises:
      Refusal: there is no such file.
    """
    if in_checkout(run.config) and not Path(run.config).is_file():
        there = ", ".join(sorted(map(str, Path().glob("configs/*.py"))))
        raise Refusal(
            f"--config={run.config}: no such file in this checkout; there are {there}"
        )


def _value(arguments: Sequence[str], flag: str) -> str | None:
    """The last value of ``--flag=value`` or ``--flag value``; None where it is not."""
    value = None
    for at, each in enumerate(arguments):
        if each == flag:
            value = "".join(arguments[at + 1 : at + 2])
        elif each.startswith(f"{flag}="):
            value = each.partition("=")[2]
    return value


bucket = checked(
    re.compile(BUCKET), "gs://NAME[/FOLDER], the name of a-z, 0-9, -, _ and . alone"
)
"""An argparse type: a bucket, or a folder of one."""


def add_environment(parser: argparse.ArgumentParser) -> None:
    """The flag that names what the trainer is handed from this environment."""
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="hand this variable of the environment on, such as HF_TOKEN; may be"
        " repeated; its value is never printed",
    )


def environment(
    names: Sequence[str], variables: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables of these names.

    Raises:
      Refusal: something that is no name, such as one with its value, or is not set.
    """
    for name in names:
        if not ENVIRONMENT_NAME.fullmatch(name):
            shown = name.partition("=")[0]
            raise Refusal(
                f"--env={shown}...: give the name alone, such as --env=HF_TOKEN, and"
                " export its value: on a command line, all users of a machine see it"
            )
        if not variables.get(name):
            raise Refusal(f"--env={name} is not set here; export {name} first")
    return {name: variables[name] for name in names}
