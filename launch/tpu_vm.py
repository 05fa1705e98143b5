"""Train on a Cloud TPU slice: queued resource, installation, run, logs, preemption.

  python -m launch.tpu_vm train NAME --zone=Z --accelerator=v5litepod-16 \\
      --bucket=gs://BUCKET -- --config=configs/ner.py

does all of it, and the same command again goes on where it was; create, install,
start, logs, status, stop and delete are its parts. --dry-run prints the commands and
runs none. docs/launch.md has the whole way.
"""

from __future__ import annotations

import argparse
import re
import shlex
import time
from pathlib import Path

from launch import shell as sh
from launch.queued import (
    ACCELERATOR,
    Queued,
    check_bucket,
    create_options,
    provide,
)
from launch.shell import Failed, Parser, Refusal, Shell
from launch.trainer import (
    USER_ERROR,
    Trainer,
    add_environment,
    bucket,
    check_config,
    environment,
    in_checkout,
    split,
    trainer,
)

SCRATCH = Path("build/launch")
WORKER = "bash jaxlm/launch/worker.sh"
TRIES = 3
"""Installations or starts that may fail in a row."""


def install(queued: Queued, given: argparse.Namespace) -> None:
    """Copy HEAD and the environment to all workers, and install jaxlm there."""
    shell, folder = queued.shell, SCRATCH / queued.name
    archive, variables = str(folder / "jaxlm.tar.gz"), folder / "jaxlm.env"
    values = environment(given.env)
    if not shell.dry_run and shell.ask(["git", "status", "--porcelain"]).out:
        shell.say("what is not committed is not copied")
    shell.run(["mkdir", "-p", str(folder)])
    shell.run(["git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD"])
    write_environment(shell, variables, values)
    try:
        queued.copy([archive, str(variables)])
    finally:
        shell.run(["rm", "-f", str(variables)])
    where = given.bucket.removeprefix("gs://").rstrip("/") if given.bucket else ""
    unpack = "mkdir -p jaxlm && tar -xzf jaxlm.tar.gz -C jaxlm"
    words = [given.python, *filter(None, (where,))]
    queued.everywhere(f"{unpack} && {WORKER} install {shlex.join(words)}")


def check_committed(shell: Shell, run: Trainer) -> None:
    """Refuse a config that is not in HEAD, which is what the workers get."""
    command = ["git", "cat-file", "-e", f"HEAD:./{run.config}"]
    if in_checkout(run.config) and shell.ask(command).code:
        raise Refusal(
            f"--config={run.config} is not in HEAD, which is what is copied; commit it"
        )


def write_environment(shell: Shell, path: Path, values: dict[str, str]) -> None:
    """Write a file that a shell can read, for its owner alone; when dry, show how."""
    if shell.dry_run:
        lines = "".join(f"; printf '{name}=%q\\n' \"${name}\"" for name in values)
        print(f"(umask 077; : >{path}; {{ :{lines}; }} >{path})")
        return
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(
        "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    )


def start(run: Trainer) -> str:
    """The shell command that starts the trainer in the background."""
    return f"{WORKER} start {shlex.join(run.arguments)}"


def worker_state(queued: Queued) -> str:
    """What the first worker says of its trainer; "" where it does not answer."""
    answer = queued.shell.ask(queued.first(f"{WORKER} state"))
    if queued.shell.dry_run:
        return "ended 0"
    return "" if answer.code else (answer.out.splitlines() or [""])[-1]


def train(queued: Queued, given: argparse.Namespace, run: Trainer) -> int:
    """Everything, over lost connections and preemptions; gives the trainer's code."""
    shell, options = queued.shell, create_options(given)
    environment(given.env)  # refused before anything costs
    check_config(run)
    check_committed(shell, run)
    if given.bucket:
        check_bucket(shell, given.bucket)
    if shell.dry_run:
        shell.say(f"a dry run takes {queued.name} as missing, and the run as new")
    installed, failed, restarts = False, 0, 0
    while True:
        made = provide(queued, options, given.poll_seconds)
        try:
            now = "none" if made else worker_state(queued)
            if now != "running":
                if made or not installed:
                    install(queued, given)
                    installed = True
                # What is left of one before would hold the chips and the workdir.
                queued.everywhere(f"{WORKER} stop 60 && {start(run)}")
            failed = 0
            shell.stream(queued.first(f"{WORKER} logs"))
            now = worker_state(queued)
        except Failed as problem:  # as when it is taken back meanwhile
            failed += 1
            if failed > TRIES:
                raise
            now = f"cannot be started: {problem}"
        if (code := ended(now)) is not None:
            break
        if now == "running":
            shell.say("the connection was lost, the trainer was not")
        else:
            restarts += 1
            if restarts > given.restarts:
                raise Failed(queued.first("logs"), 1, f"{now}; --restarts is reached")
            shell.say(f"the trainer {now or 'does not answer'}; restart {restarts}")
        time.sleep(given.poll_seconds)
    if given.delete and now == "ended 0":
        queued.delete()
    else:
        shell.say(f"{now}; {queued.name} is kept, and costs until it is deleted")
    return code


def ended(now: str) -> int | None:
    """The exit code of a trainer that is not to be started again; None for another."""
    if now.startswith("stopped"):  # by `stop`
        return 0
    return {"ended 0": 0, f"ended {USER_ERROR}": USER_ERROR}.get(now)


def make_parser() -> Parser:
    """Flags by verb: all name the queued resource; some make it, some the trainer."""
    parser = Parser(prog="python -m launch.tpu_vm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    for verb, what in {
        "train": "create, install, start, logs; over preemptions; then say the end",
        "create": "ask for the queued resource, and wait until it is active",
        "install": "copy HEAD to all workers and install it",
        "start": "start the trainer on all workers, in the background",
        "logs": "follow the first worker's log",
        "status": "the state of the queued resource and of every worker",
        "stop": "SIGTERM to the trainer on all workers: the run is saved",
        "delete": "delete the queued resource and its TPUs",
    }.items():
        one = verbs.add_parser(verb, help=what, description=what)
        one.add_argument("name", type=sh.name, help="the queued resource")
        one.add_argument("--zone", type=sh.token, required=True, help="us-west4-a")
        one.add_argument("--project", type=sh.token, help="else gcloud's default")
        one.add_argument(
            "--dry-run", action="store_true", help="print the commands, run none"
        )
        if verb in ("train", "create"):
            add_creation(one)
        if verb in ("train", "create", "install"):
            one.add_argument(
                "--bucket",
                type=bucket,
                metavar="gs://NAME[/FOLDER]",
                help="where runs/ lies, for all workers",
            )
        if verb in ("train", "install"):
            one.add_argument(
                "--python",
                type=sh.checked(re.compile(r"python3\.1[123]"), "python3.11 to 3.13"),
                default="python3.11",
                help="uv fetches it where the image has none",
            )
            add_environment(one)
        if verb == "train":
            one.add_argument("--restarts", type=sh.whole(0), default=20, metavar="N")
            one.add_argument(
                "--delete", action="store_true", help="delete the TPUs at the end"
            )
        if verb == "delete":
            one.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def add_creation(parser: Parser) -> None:
    """The flags of what is created."""
    parser.add_argument(
        "--accelerator",
        type=sh.checked(ACCELERATOR, "such as v5litepod-16, v5p-128 or v6e-8"),
        required=True,
        help="accelerator type of one slice, such as v5litepod-16",
    )
    parser.add_argument("--runtime", type=sh.token, help="runtime version; else JAX's")
    parser.add_argument("--slices", type=sh.whole(1), default=1, help="over DCN")
    parser.add_argument("--spot", action="store_true", help="cheaper; taken back")
    parser.add_argument("--reserved", action="store_true", help="from a reservation")
    parser.add_argument(
        "--valid-until",
        type=sh.checked(re.compile(r"[1-9][0-9]*[smhd]"), "such as 30m or 6h"),
        help="wait no longer than this for capacity",
    )
    parser.add_argument(
        "--create-flag",
        action="append",
        default=[],
        type=sh.checked(re.compile(r"--[a-z-]+(=\S+)?"), "such as --network=mine"),
        metavar="--FLAG=VALUE",
        help="any other flag of `gcloud compute tpus queued-resources create`",
    )
    parser.add_argument("--poll-seconds", type=sh.whole(0), default=30, metavar="N")


def main(arguments: list[str]) -> int:
    """Carry out one verb."""
    own, rest = split(arguments)
    given = make_parser().parse_args(own)
    takes_trainer = given.verb in ("train", "start")
    if rest and not takes_trainer:
        raise Refusal(f"{given.verb} takes no arguments of the trainer; leave out --")
    run = trainer(rest) if takes_trainer else None
    queued = Queued(Shell(given.dry_run), given.name, given.zone, given.project)
    if given.verb == "train" and run:
        try:
            return train(queued, given, run)
        except KeyboardInterrupt:
            where = f"{given.name} --zone={given.zone}"
            print(f"what was started goes on: python -m launch.tpu_vm logs {where}")
            raise
    if given.verb == "create":
        options = create_options(given)
        if given.bucket:
            check_bucket(queued.shell, given.bucket)
        provide(queued, options, given.poll_seconds)
    elif given.verb == "install":
        install(queued, given)
    elif given.verb == "start" and run:
        queued.everywhere(start(run))
    elif given.verb == "logs":
        return queued.shell.stream(queued.first(f"{WORKER} logs"))
    elif given.verb == "status":
        state = queued.state()
        if not given.dry_run:
            print(state)
        queued.everywhere(f"{WORKER} status")
    elif given.verb == "stop":
        queued.everywhere(f"{WORKER} stop")
    elif given.verb == "delete":
        queued.delete(ask=not given.yes)
    return 0


if __name__ == "__main__":
    sh.start(main)
