"""Train on the GPU nodes of a Slurm cluster: a batch script, and its submission.

  python -m launch.slurm NAME --nodes=2 --gpus-per-node=8 --time=24:00:00 \\
      -- --config=configs/ner.py

makes the script and hands it to sbatch; --dry-run prints it. A job that nears its time
limit, is preempted or loses a node is saved, queued again and goes on. docs/launch.md
has the whole way.
"""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from launch import shell as sh
from launch.shell import Parser, Refusal, Shell
from launch.trainer import (
    USER_ERROR,
    Trainer,
    add_environment,
    check_config,
    environment,
    split,
    trainer,
)

TIME = re.compile(r"([0-9]+-)?[0-9]{1,2}(:[0-9]{2}){0,2}|[0-9]+")
FLAG = re.compile(r"--[a-z][-a-z]*(=[^\s'\"]+)?")
LOGS = "build/slurm"
PYTHON = ".venv/bin/python"
MOST_GRACE_SECONDS = 65_535
"""By sbatch's ``--signal``."""

SCRIPT = """\
#!/bin/bash
{directives}
# Made by launch/slurm.py. Every start of the job, as after a preemption, runs it all.
set -u
cd {checkout} || exit {user_error}
restarts=${{SLURM_RESTART_COUNT:-0}}
echo "$(date -Is) start $restarts on $SLURM_JOB_NODELIST"

{step} &
step=$!
# {seconds} s before the time limit Slurm sends SIGTERM to this shell alone (B:). The
# trainers get it by scancel, save and end; srun would not hand it on, but kill them.
trap 'scancel --signal=TERM "$SLURM_JOB_ID.0" 2>/dev/null' TERM
while :; do # a signal ends `wait`, not the step
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break
done
echo "$(date -Is) the trainers ended with exit code $code"

# What the user has to mend ({user_error}) would fail again. A job that was cancelled,
# or that Slurm itself queues again, is not running any more.
if [ "$code" -ne 0 ] && [ "$code" -ne {user_error} ] &&
    [ "$restarts" -lt {restarts} ] &&
    scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING
then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60 # until it is taken out of here
fi
exit "$code"
"""


def directives(given: argparse.Namespace) -> list[str]:
    """The options of sbatch."""
    # A task a GPU: so does jax.distributed have it under Slurm, where a process owns
    # the device of its number on the node. Not --gpus-per-task, which would hide the
    # others' GPUs from it, and break both that number and NCCL's links.
    tasks = given.gpus_per_node or 1
    options = [
        f"--job-name={given.name}",
        f"--nodes={given.nodes}",
        f"--ntasks-per-node={tasks}",
    ]
    if given.gpus_per_node:
        options.append(f"--gpus-per-node={given.gpus_per_node}")
    for flag in ("cpus_per_task", "mem", "time", "partition", "account", "qos"):
        if value := getattr(given, flag):
            options.append(f"--{flag.replace('_', '-')}={value}")
    return [
        *options,
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{given.grace_seconds}",
        f"--output={LOGS}/{given.name}-%j.out",
        *given.sbatch,
    ]


def limit_seconds(time: str) -> int:
    """A time limit as Slurm reads it; 0 is none.

    MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, or DAYS-HOURS[:MINUTES[:SECONDS]].
    """
    days, dash, rest = time.rpartition("-")
    parts = [int(each) for each in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def check(given: argparse.Namespace) -> None:
    """Refuse a job that would do nothing, before it waits in a queue.

    Raises:
      Refusal: no start would get to train, or there is no Python to run.
    """
    grace, limit = given.grace_seconds, limit_seconds(given.time or "0")
    if grace > MOST_GRACE_SECONDS or 0 < limit <= grace:
        most = min(limit - 1 if limit else MOST_GRACE_SECONDS, MOST_GRACE_SECONDS)
        why = f", as --time={given.time} is {limit} s" if limit > 0 else ""
        raise Refusal(f"--grace-seconds={grace} is not allowed; at most {most}{why}")
    own = given.python or given.container
    if not own and not given.dry_run and not Path(PYTHON).exists():
        raise Refusal(
            f"{PYTHON} is not here, which all tasks would run; make it: python3.12 -m"
            ' venv .venv && .venv/bin/pip install -e ".[cuda12]", or name another by'
            " --python or --container"
        )


def step(given: argparse.Namespace, run: Trainer) -> str:
    """The command that runs a trainer for each task."""
    words = [
        "srun",
        f"--output={LOGS}/{given.name}-%j-%t.out",
        "--open-mode=append",
        # The first to end is not followed by a kill of those that still save.
        "--kill-on-bad-exit=0",
        f"--wait={given.grace_seconds}",
    ]
    python = given.python or ("python" if given.container else PYTHON)
    program = [python, "-m", "jaxlm.main", *run.arguments]
    if given.container:
        where = str(Path.cwd())
        inside = ["--nv"] if given.gpus_per_node else []
        words += ["apptainer", "exec", *inside, f"--bind={where}", f"--pwd={where}"]
        words.append(given.container)
    return shlex.join([*words, *program])


def script(given: argparse.Namespace, run: Trainer) -> str:
    """The batch script."""
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {each}" for each in directives(given)),
        checkout=shlex.quote(str(Path.cwd())),
        step=step(given, run),
        seconds=given.grace_seconds,
        restarts=given.restarts,
        user_error=USER_ERROR,
    )


def make_parser() -> Parser:
    """Flags of a job."""
    parser = Parser(prog="python -m launch.slurm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", type=sh.name, help="of the job")
    parser.add_argument("--nodes", type=sh.whole(1), default=1)
    parser.add_argument(
        "--gpus-per-node",
        type=sh.whole(0),
        default=8,
        help="and as many tasks; 0: one task a node, on its CPUs",
    )
    parser.add_argument("--cpus-per-task", type=sh.whole(1))
    for flag, example in {
        "mem": "of a node, such as 200G",
        "partition": "such as gpu",
        "account": "that pays",
        "qos": "quality of service",
    }.items():
        parser.add_argument(f"--{flag}", type=sh.token, help=example)
    parser.add_argument(
        "--time",
        type=sh.checked(TIME, "such as 24:00:00 or 2-00:00:00"),
        help="limit of one start; the run goes on after it",
    )
    parser.add_argument(
        "--grace-seconds", type=sh.whole(1), default=120, help="SIGTERM so far ahead"
    )
    parser.add_argument(
        "--restarts", type=sh.whole(0), default=20, metavar="N", help="at most so many"
    )
    parser.add_argument(
        "--python",
        type=sh.token,
        help=f"on all nodes: {PYTHON}, or in a container python",
    )
    parser.add_argument(
        "--container", type=sh.token, help="an image of Apptainer, such as jaxlm.sif"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        type=sh.checked(FLAG, "such as --constraint=h100"),
        metavar="--FLAG=VALUE",
        help="any other option of sbatch; may be repeated",
    )
    add_environment(parser)
    parser.add_argument("--dry-run", action="store_true", help="print it, run nothing")
    return parser


def main(arguments: list[str]) -> None:
    """Make the script, and hand it to sbatch."""
    own, rest = split(arguments)
    given = make_parser().parse_args(own)
    run = trainer(rest)
    check_config(run)
    check(given)
    environment(given.env)  # only that they are set: sbatch takes all of it along
    shell = Shell(given.dry_run)
    shell.run(["mkdir", "-p", LOGS])  # Slurm makes no folder for a log
    shell.run(["sbatch", "--export=ALL"], text=script(given, run))
    shell.say(f"follow it: tail -F {LOGS}/{given.name}-*.out")
    shell.say(f"its state: squeue --name={given.name}")
    shell.say(f"end it: scancel --name={given.name}")


if __name__ == "__main__":
    sh.start(main)
