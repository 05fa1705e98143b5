"""Train on Kubernetes: a JobSet of TPU slices (GKE) or of GPU nodes.

  python -m launch.jobset tpu NAME --image=IMAGE --topology=v5e:4x4 \\
      --volume=gs://BUCKET -- --config=configs/ner.py
  python -m launch.jobset gpu NAME --image=IMAGE --nodes=2 --volume=pvc:runs \\
      -- --config=configs/ner.py

makes the manifest and hands it to kubectl; --dry-run prints it. docs/launch.md has the
whole way, from a cluster to the results.
"""

from __future__ import annotations

import argparse
import re

from launch import shell as sh
from launch.as_yaml import as_yaml
from launch.manifest import RUNS, SLICES, TOPOLOGY, manifest, secret
from launch.shell import Parser, Shell
from launch.trainer import BUCKET, add_environment, environment, split, trainer

VOLUME = re.compile(rf"pvc:[a-z0-9]([-.a-z0-9]*[a-z0-9])?|{BUCKET}")
LABEL_NAME = sh.checked(
    re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"),
    "at most 63 of a-z, 0-9 and -, no - first or last",
)
"""As Kubernetes has the names of namespaces."""
SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
LABEL = re.compile(r"[a-z0-9][-a-z0-9./]*=[-\w.]+", re.IGNORECASE)


def make_parser() -> Parser:
    """Flags of a JobSet of TPU slices, or of GPU nodes."""
    parser = Parser(prog="python -m launch.jobset", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=Parser)
    tpu = kinds.add_parser("tpu", help="TPU slices, on GKE")
    tpu.add_argument(
        "--topology",
        required=True,
        type=sh.checked(
            TOPOLOGY, f"such as v5e:4x4 or v5p:4x4x4, of {', '.join(SLICES)}"
        ),
        help="of one slice, as the planner's: v5e:4x4",
    )
    tpu.add_argument("--slices", type=sh.whole(1), default=1, help="over DCN")
    tpu.add_argument("--chips-per-host", type=sh.whole(1), help="4 for v5e:2x4 as two")
    gpu = kinds.add_parser("gpu", help="GPU nodes")
    gpu.add_argument("--nodes", type=sh.whole(1), required=True)
    gpu.add_argument("--gpus-per-node", type=sh.whole(1), default=8)
    for one in (tpu, gpu):
        add_shared(one)
    return parser


def add_shared(one: Parser) -> None:
    """Flags that both kinds have."""
    one.add_argument("name", type=sh.name, help="of the JobSet, and of its service")
    one.add_argument("--image", type=sh.token, required=True, help="by launch/docker")
    one.add_argument("--namespace", type=LABEL_NAME, default="default")
    one.add_argument(
        "--volume",
        required=True,
        type=sh.checked(VOLUME, "pvc:CLAIM or gs://BUCKET[/FOLDER], in small letters"),
        help="where runs lie: pvc:CLAIM (ReadWriteMany), or gs://BUCKET[/FOLDER]",
    )
    one.add_argument(
        "--service-account", type=LABEL_NAME, help="that may use the bucket"
    )
    one.add_argument("--spot", action="store_true", help="GKE spot nodes")
    one.add_argument(
        "--node-selector",
        action="append",
        default=[],
        type=sh.checked(LABEL, "KEY=VALUE"),
        metavar="KEY=VALUE",
        help="only nodes with this label, as"
        " cloud.google.com/gke-accelerator=nvidia-h100-80gb; may be repeated",
    )
    one.add_argument(
        "--set",
        action="append",
        default=[],
        type=sh.checked(SETTING, "NAME=VALUE"),
        metavar="NAME=VALUE",
        help="a variable that is no secret, as NCCL_SOCKET_IFNAME=eth0",
    )
    add_environment(one)
    one.add_argument("--restarts", type=sh.whole(0), default=20, metavar="N")
    one.add_argument(
        "--grace-seconds", type=sh.whole(1), default=120, help="from SIGTERM to SIGKILL"
    )
    one.add_argument("--run-as", type=sh.whole(0), default=1000, help="user and group")
    one.add_argument("--dry-run", action="store_true", help="print it, run nothing")


def main(arguments: list[str]) -> None:
    """Make the manifest, and hand it to kubectl."""
    own, rest = split(arguments)
    given = make_parser().parse_args(own)
    run = trainer(rest, RUNS)
    wanted, values = as_yaml(manifest(given, run)), environment(given.env)
    shell, apply = (
        Shell(given.dry_run),
        ["kubectl", "apply", "--server-side", "-f", "-"],
    )
    if values:  # on its standard input, where no list of processes shows it
        shown = as_yaml(secret(given, {name: f"${name}" for name in values}))
        shell.run(apply, text=as_yaml(secret(given, values)), shown=shown)
    shell.run(apply, text=wanted)
    where, label = (
        f"-n {given.namespace}",
        f"jobset.sigs.k8s.io/jobset-name={given.name}",
    )
    shell.say(f"follow it: kubectl logs {where} -f -l {label} --prefix")
    shell.say(f"its state: kubectl get jobset {where} {given.name}")
    shell.say(f"delete it: kubectl delete jobset {where} {given.name}")


if __name__ == "__main__":
    sh.start(main)
