"""A slice as a queued resource of Cloud TPU: what is asked of gcloud about it."""

from __future__ import annotations

import re
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launch.shell import Failed, Refusal, Shell

ACCELERATOR = re.compile(r"(v2|v3|v4|v5litepod|v5p|v6e)-([1-9][0-9]*)")
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""Runtime versions for JAX, by generation: cloud.google.com/tpu/docs/runtimes."""
OURS = ("--zone", "--project", "--node-id", "--node-count", "--node-prefix")
"""What says where a slice is: by another, it would be made and not found again."""
GONE = ("SUSPENDED", "FAILED")
"""States of a queued resource that can only be deleted and made anew."""
WAITING = (
    "CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING",
    "DELETING",
)  # fmt: skip
MISSING = "MISSING"
TELL_SECONDS = 300


@dataclass
class Queued:
    """A queued resource, through gcloud; a dry run takes it as missing at first."""

    shell: Shell
    name: str
    zone: str
    project: str | None = None
    assumed: str = field(default=MISSING)

    def gcloud(self, verb: str, *rest: str) -> list[str]:
        """A command of gcloud about this queued resource."""
        where = [f"--zone={self.zone}"]
        if self.project:
            where.append(f"--project={self.project}")
        words = ["gcloud", "compute", "tpus", "queued-resources", verb]
        return [*words, *(() if verb == "scp" else (self.name,)), *where, *rest]

    def state(self) -> str:
        """Its state by Cloud TPU, or ``MISSING``."""
        command = self.gcloud("describe", "--format=value(state.state)")
        answer = self.shell.ask(command)
        if self.shell.dry_run:
            return self.assumed
        if answer.code and "NOT_FOUND" in answer.err:
            return MISSING
        if answer.code:
            raise Failed(command, answer.code, answer.err)
        return answer.out

    def create(self, options: Sequence[str]) -> None:
        """Ask for it."""
        self.shell.run(self.gcloud("create", *options, "--async"))
        self.assumed = "ACTIVE"

    def delete(self, *, ask: bool = False) -> None:
        """Delete it and its TPUs; gcloud asks first, if it may."""
        self.shell.run(self.gcloud("delete", "--force", *(() if ask else ("--quiet",))))

    def everywhere(self, command: str) -> None:
        """Run a shell command on all workers of all slices."""
        everyone = ("--node=all", "--worker=all")
        self.shell.run(self.gcloud("ssh", *everyone, f"--command={command}"))

    def copy(self, files: Sequence[str]) -> None:
        """Copy files to the home of all workers; who may read them stays as it is."""
        everyone = ("--node=all", "--worker=all", "--scp-flag=-p")
        command = self.gcloud("scp", *everyone)
        self.shell.run([*command[:5], *files, f"{self.name}:", *command[5:]])

    def first(self, command: str) -> list[str]:
        """The command that runs a shell command on worker 0 of slice 0."""
        return self.gcloud("ssh", "--node=0", "--worker=0", f"--command={command}")


def hosts(accelerator: str) -> int:
    """How many hosts a slice has.

    v5e and v6e count chips, up to 8 on the only host, else 4 on each; the others count
    TensorCores, 8 on a host. cloud.google.com/tpu/docs: "TPU configurations".
    """
    kind, _, count = accelerator.partition("-")
    if kind in ("v5litepod", "v6e"):
        return 1 if int(count) <= 8 else int(count) // 4
    return max(1, int(count) // 8)


def create_options(given: Namespace) -> list[str]:
    """Flags of ``queued-resources create``.

    Raises:
      Refusal: a run that could not be kept.
    """
    kind = given.accelerator.partition("-")[0]
    for each in given.create_flag:
        if each.partition("=")[0] in OURS:
            raise Refusal(
                f"--create-flag={each} is not allowed; the name, --zone, --project and"
                " --slices say where the slice is, now and later"
            )
    if given.spot and given.reserved:
        raise Refusal("--spot and --reserved exclude each other; give one of them")
    shared = given.slices > 1 or hosts(given.accelerator) > 1
    if not given.bucket and (given.spot or shared):
        why = (
            f"{given.accelerator} has several hosts, which write one run together"
            if shared
            else "what is on a spot TPU is lost when it is taken back"
        )
        raise Refusal(f"--bucket is missing: {why}; give --bucket=gs://NAME")
    nodes = (
        [f"--node-id={given.name}"]
        if given.slices == 1
        else [f"--node-count={given.slices}", f"--node-prefix={given.name}"]
    )
    options = [
        f"--accelerator-type={given.accelerator}",
        f"--runtime-version={given.runtime or RUNTIMES[kind]}",
        *nodes,
    ]
    if given.spot:
        options.append("--spot")
    if given.reserved:
        options.append("--reserved")
    if given.valid_until:
        options.append(f"--valid-until-duration={given.valid_until}")
    return [*options, *given.create_flag]


def check_bucket(shell: Shell, bucket: str) -> None:
    """Refuse a bucket whose folders cannot be renamed at once, as checkpoints are."""
    root = "/".join(bucket.split("/")[:3])
    wanted = "--format=value(hierarchicalNamespace.enabled)"
    command = ["gcloud", "storage", "buckets", "describe", root, "--raw", wanted]
    answer = shell.ask(command)
    if answer.code:
        raise Failed(command, answer.code, answer.err)
    if not shell.dry_run and answer.out != "True":
        raise Refusal(
            f"{root} has no hierarchical namespace, by which a checkpoint appears at"
            f" once or not at all; make one: gcloud storage buckets create gs://NAME"
            " --enable-hierarchical-namespace --uniform-bucket-level-access"
        )


def provide(
    queued: Queued,
    options: Sequence[str],
    poll_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Wait until the queued resource is active, made (anew) where it has to be.

    Gives whether it was made.

    Raises:
      Failed: it was made and then failed, or was deleted meanwhile.
    """
    say, made, began, told = queued.shell.say, False, clock(), ("", 0.0)
    while True:
        state, now = queued.state(), clock()
        if state != told[0] or now - told[1] >= TELL_SECONDS:
            say(f"{queued.name} is {state} after {(now - began) / 60:.0f} min")
            told = (state, now)
        if state == "ACTIVE":
            return made
        if state in (MISSING, *GONE):
            if made:
                raise Failed(queued.gcloud("create"), 1, f"{queued.name} is {state}")
            if state != MISSING:
                queued.delete()
            queued.create(options)
            made = True
        elif state not in WAITING:
            raise Refusal(
                f"{queued.name} is {state}, which is not known here; delete it: python"
                f" -m launch.tpu_vm delete {queued.name} --zone={queued.zone}"
            )
        if not queued.shell.dry_run:
            time.sleep(poll_seconds)
