"""Several processes on this machine, each with CPU devices of its own, as one run.

python launch/local.py --processes=2 --devices=4 -- --config=configs/ner.py:tiny
python launch/local.py --processes=2 --devices=4 --door=evaluate -- --workdir=runs/ner

What follows ``--`` goes to ``python -m jaxlm.main``, or to another ``--door``. Process
0 prints here; the others write to ``<logs>/process-N.log``. Ctrl-C and SIGTERM are
handed on to all, and a second one kills. Where a process dies, the others notice by
themselves; those that have not ended ``--grace-seconds`` later are killed. The exit
code is that of the process that failed first: 128 and the number of the signal, where
one killed it. This is for trying out what runs on many hosts; one process makes more of
one machine.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

POLL_SECONDS = 0.1
MOST = 256
"""Processes of one machine, and devices of one process: beyond it, a slip."""
USER_ERROR = 2
"""A door's exit code for what only the user can mend."""
DEVICES = "--xla_force_host_platform_device_count"


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        where = "--help lists the flags; those of the door follow --"
        self.exit(USER_ERROR, f"error: {message}; {where}\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of this program, and those of the door in ``rest``."""
    parser = Parser(
        description="Run a door of jaxlm in several processes on this machine.",
        allow_abbrev=False,
        usage="%(prog)s [flags] -- [flags of the door]",
    )
    parser.add_argument("--processes", type=whole(MOST), default=2, metavar="N")
    parser.add_argument(
        "--devices", type=whole(MOST), default=4, metavar="N", help="of each process"
    )
    parser.add_argument(
        "--door", default="main", choices=("main", "evaluate", "predict")
    )
    parser.add_argument(
        "--port",
        type=whole(2**16 - 1),
        default=0,
        help="of the coordinator (default: a free one)",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        help="a folder (default: logs/ of the door's workdir, or else here)",
    )
    parser.add_argument(
        "--grace-seconds",
        type=seconds,
        default=90.0,
        metavar="S",
        help="for the others to end after one has failed (default: %(default)g)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be run, and end"
    )
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if known.logs is None:
        known.logs = workdir_of(known.door, known.rest) / "logs"
    return known


def whole(most: int) -> Callable[[str], int]:
    """An argparse type: a whole number from 1 to ``most``."""

    def check(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from 1 to {most}"
            )
        return int(text)

    return check


def seconds(text: str) -> float:
    """A number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def workdir_of(door: str, rest: Sequence[str]) -> Path:
    """The door's --workdir, its last; where it is not given, that which main takes."""
    given = {"--workdir": "", "--config": ""}
    for place, argument in enumerate(rest):
        flag, equals, value = argument.partition("=")
        if flag in given:
            given[flag] = value if equals else "".join(rest[place + 1 : place + 2])
    if given["--workdir"] or door != "main" or not given["--config"]:
        return Path(given["--workdir"])
    path, _, variant = given["--config"].partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, variant)))


def command(known: argparse.Namespace) -> list[str]:
    """What every process runs."""
    return [sys.executable, "-m", f"jaxlm.{known.door}", *known.rest]


def variables(known: argparse.Namespace, port: int, process: int) -> dict[str, str]:
    """What a process's environment has beside that of this one."""
    flags = re.sub(rf"{DEVICES}=\d+", "", os.environ.get("XLA_FLAGS", "")).split()
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(known.processes),
        "JAX_PROCESS_ID": str(process),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*flags, f"{DEVICES}={known.devices}"]),
    }


def shown(known: argparse.Namespace, port: int, process: int) -> str:
    """A process's command as a shell would take it."""
    own = variables(known, port, process)
    words = [f"{name}={shlex.quote(value)}" for name, value in own.items()]
    text = " ".join([*words, shlex.join(command(known))])
    log = shlex.quote(str(log_of(known, process)))
    return text if process == 0 else f"{text} >>{log} 2>&1"


def log_of(known: argparse.Namespace, process: int) -> Path:
    """Where a process but the first writes: as a door with a --workdir does."""
    prefix = "" if known.door == "main" else f"{known.door}-"
    return known.logs / f"{prefix}process-{process}.log"


def start(
    known: argparse.Namespace, port: int, process: int, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process, in a session of its own: signals come to it from here alone."""
    own = {**environment, **variables(known, port, process)}
    if process == 0:
        return subprocess.Popen(command(known), env=own, start_new_session=True)
    with open(log_of(known, process), "ab") as log:
        return subprocess.Popen(
            command(known),
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Processes:
    """The processes, and the signals that are handed on to them."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []
        self.told = 0
        self.made: list[Path] = []
        """Folders that were made for the logs, the innermost first."""

    def start(self, known: argparse.Namespace, port: int) -> None:
        """Start all of them, or none: one alone would wait for the others."""
        folders = (known.logs, *known.logs.parents)
        self.made = [each for each in folders if not each.exists()]
        known.logs.mkdir(parents=True, exist_ok=True)
        try:
            for process in range(known.processes):
                self.running.append(start(known, port, process, os.environ))
                if self.told:
                    self.running[-1].terminate()
        except OSError:
            for each in self.running:
                each.kill()
            raise

    def tell(self, number: int, frame: FrameType | None = None) -> None:
        """Hand a signal on; the second kills."""
        self.told += 1
        for each in self.running:
            if each.poll() is None:
                each.send_signal(number if self.told == 1 else signal.SIGKILL)

    def wait(self, grace_seconds: float) -> tuple[int, int | None]:
        """The exit code of all, and which process failed first, if one did."""
        failed: int | None = None
        until = float("inf")
        while any(each.poll() is None for each in self.running):
            codes = [each.poll() for each in self.running]
            bad = [index for index, code in enumerate(codes) if code]
            if bad and failed is None:
                failed, until = bad[0], time.monotonic() + grace_seconds
            if time.monotonic() > until:
                for each in self.running:
                    each.kill()
            time.sleep(POLL_SECONDS)
        codes = [each.returncode for each in self.running]
        bad = [index for index, code in enumerate(codes) if code]
        if failed is None and bad:
            failed = bad[0]
        code = codes[failed] if failed is not None else 0
        return (code if code >= 0 else 128 - code), failed

    def refused(self) -> bool:
        """Whether all say what the user has to mend; the first does so in print."""
        return all(each.returncode == USER_ERROR for each in self.running)

    def leave_nothing(self, known: argparse.Namespace) -> None:
        """Remove logs with nothing but a refusal, and the folders made for them."""
        if not self.made:
            return
        for process in range(1, known.processes):
            log = log_of(known, process)
            lines = log.read_text(errors="replace").splitlines()
            if all(line.startswith("error: ") for line in lines):
                log.unlink()
        for folder in self.made:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as trial:
        trial.bind(("localhost", 0))
        return trial.getsockname()[1]


def main(arguments: Sequence[str]) -> int:
    """Start the processes, or print how; the exit code of all."""
    known = parse(arguments)
    port = known.port or free_port()
    if known.dry_run:
        for process in range(known.processes):
            print(shown(known, port, process))
        return 0
    processes = Processes()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, processes.tell)
    try:
        processes.start(known, port)
    except OSError as problem:
        print(f"error: {problem.filename}: {problem.strerror}", file=sys.stderr)
        return 2
    code, failed = processes.wait(known.grace_seconds)
    if processes.refused():
        processes.leave_nothing(known)
    elif failed is not None:
        where = f"; see {log_of(known, failed)}" if failed else ""
        ended = processes.running[failed].returncode
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        text = f"process {failed} of {known.processes} ended first: {how}{where}"
        print(text, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
