"""The manifests of a JobSet: TPU slices of GKE, or GPU nodes, one trainer a host."""

from __future__ import annotations

import argparse
import math
import re

from launch.shell import Refusal
from launch.trainer import USER_ERROR, Trainer

SLICES = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
"""GKE's label of an accelerator, by the planner's name of its generation."""
WIDE = ("v5e", "v6e")
"""Generations that have hosts of 1, 4 and 8 chips; the others have 4."""
TOPOLOGY = re.compile(rf"({'|'.join(SLICES)}):([1-9][0-9]*(?:x[1-9][0-9]*){{1,2}})")
PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""The slices of ``WIDE``; the others are of whole cubes of 4x4x4, or ``PARTS`` of one:
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus"""
PARTS = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
RUNS = "/runs"
PORT = 8476
"""Of the coordinator, on GPU nodes; on TPUs, jax knows one by itself."""
TPU_PORT = 8471
"""By which the hosts of a slice speak."""
CONTAINER = "trainer"


def slice_hosts(topology: str, chips_per_host: int | None) -> tuple[int, int]:
    """Hosts of a slice and chips of a host, for a topology such as ``v5e:4x4``.

    Raises:
      Refusal: there is no such slice, or its chips are not those of whole hosts.
    """
    kind, _, shape = topology.partition(":")
    sides = [int(each) for each in shape.split("x")]
    cubes = len(sides) == 3 and all(side % 4 == 0 for side in sides)
    known = shape in PLANES if kind in WIDE else shape in PARTS or cubes
    if not known:
        parts = f"{', '.join(PARTS)}, and three multiples of 4"
        raise Refusal(
            f"--topology={topology}: no such slice, so that pods would wait for ever;"
            f" {kind} has {', '.join(PLANES) if kind in WIDE else parts}"
        )
    chips = math.prod(sides)
    usual = chips if kind in WIDE and chips <= 8 else 4
    each = chips_per_host or usual
    if chips % each or each not in ((1, 4, 8) if kind in WIDE else (4,)):
        raise Refusal(
            f"--topology={topology} has {chips} chips, which hosts of {each} do not"
            " make up; v5e and v6e have hosts of 1, 4 or 8 chips, the others of 4"
        )
    return chips // each, each


def manifest(given: argparse.Namespace, run: Trainer) -> dict:
    """The JobSet."""
    hosts, resources, selector = machines(given)
    job = {
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,  # one pod less, and the JobSet starts all of them again
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "In",
                        "values": [USER_ERROR],
                    },
                }
            ]
        },
        "template": pod(given, run, resources, selector),
    }
    metadata: dict = {"name": given.name, "namespace": given.namespace}
    if given.kind == "tpu" and hosts > 1:  # a slice is one pool of nodes
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # The headless service by which pods find each other; it has our name.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": given.restarts,
                "rules": [
                    {
                        "name": "userError",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": given.kind,
                    "replicas": slices(given),
                    "template": {"spec": job},
                }
            ],
        },
    }


def slices(given: argparse.Namespace) -> int:
    """How many jobs: one a slice."""
    return given.slices if given.kind == "tpu" else 1


def machines(given: argparse.Namespace) -> tuple[int, dict, dict]:
    """Hosts of a job, what its pods ask for, and the nodes that they may run on."""
    if given.kind == "gpu":
        return given.nodes, {"nvidia.com/gpu": str(given.gpus_per_node)}, {}
    hosts, chips = slice_hosts(given.topology, given.chips_per_host)
    if given.slices > 1 and hosts == 1:
        raise Refusal(
            f"--slices={given.slices}: slices of one host, as {given.topology}, are not"
            " joined by GKE; take a larger --topology"
        )
    kind, _, shape = given.topology.partition(":")
    selector = {
        "cloud.google.com/gke-tpu-accelerator": SLICES[kind],
        "cloud.google.com/gke-tpu-topology": shape,
    }
    return hosts, {"google.com/tpu": str(chips)}, selector


def pod(
    given: argparse.Namespace, run: Trainer, resources: dict, selector: dict
) -> dict:
    """The template of a pod: one trainer on one host, with all its chips."""
    volumes, mounts = [runs_volume(given)], [{"name": "runs", "mountPath": RUNS}]
    if given.kind == "gpu":  # NCCL's, between the GPUs of a node; the usual is 64 MB
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    user = {"runAsUser": given.run_as, "runAsGroup": given.run_as}
    port = PORT if given.kind == "gpu" else TPU_PORT
    spec: dict = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": given.grace_seconds,
        "securityContext": {
            **user,
            "fsGroup": given.run_as,
            "runAsNonRoot": given.run_as != 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": given.image,
                "args": [literal(each) for each in run.arguments],
                "env": variables(given),
                "ports": [{"containerPort": port, "protocol": "TCP"}],
                "resources": {"limits": resources},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if given.spot:
        key = "cloud.google.com/gke-spot"
        selector = {**selector, key: "true"}
        wanted = {"key": key, "operator": "Equal", "value": "true"}
        spec["tolerations"] = [{**wanted, "effect": "NoSchedule"}]
    if selector := all_labels(given, selector):
        spec["nodeSelector"] = selector
    if given.service_account:
        spec["serviceAccountName"] = given.service_account
    template: dict = {"spec": spec}
    if given.volume.startswith("gs://"):
        template["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    return template


def all_labels(given: argparse.Namespace, ours: dict[str, str]) -> dict[str, str]:
    """The labels that nodes must have: ours, and those of ``--node-selector``."""
    labels = dict(ours)
    for key, _, value in (each.partition("=") for each in given.node_selector):
        if labels.setdefault(key, value) != value:
            raise Refusal(
                f"--node-selector={key}={value}: {key} is {labels[key]} already, by"
                " another flag; no node has both"
            )
    return labels


def runs_volume(given: argparse.Namespace) -> dict:
    """Where runs lie, the same for all pods: a claim, or a bucket through gcsfuse."""
    kind, _, rest = given.volume.partition(":")
    if kind == "pvc":
        return {"name": "runs", "persistentVolumeClaim": {"claimName": rest}}
    bucket, _, folder = rest.strip("/").partition("/")
    # No cache of metadata: what one pod wrote, the others must see.
    options = [
        "metadata-cache:ttl-secs:0",
        "metadata-cache:negative-ttl-secs:0",
        f"uid={given.run_as}",
        f"gid={given.run_as}",
    ]
    if folder:
        options.append(f"only-dir={folder}")
    attributes = {"bucketName": bucket, "mountOptions": ",".join(options)}
    driver = "gcsfuse.csi.storage.gke.io"
    return {"name": "runs", "csi": {"driver": driver, "volumeAttributes": attributes}}


def variables(given: argparse.Namespace) -> list[dict]:
    """The environment of a trainer: settings, secrets by reference, who it is."""
    found: list[dict] = [
        {"name": name, "value": literal(value)}
        for name, _, value in (each.partition("=") for each in given.set)
    ]
    for name in given.env:
        secret = {"name": secret_name(given), "key": name}
        found.append({"name": name, "valueFrom": {"secretKeyRef": secret}})
    if given.kind == "gpu":
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        first = f"{given.name}-gpu-0-0.{given.name}"
        found += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(given.nodes)},
            {
                "name": "JAX_PROCESS_ID",
                "valueFrom": {"fieldRef": {"fieldPath": index}},
            },
        ]
        if not any(each["name"] == "NCCL_DEBUG" for each in found):
            found.append({"name": "NCCL_DEBUG", "value": "WARN"})
    names = [each["name"] for each in found]
    for name in names:
        if names.count(name) > 1:  # which the cluster would refuse, or half take
            raise Refusal(
                f"the variable {name} is given twice, by --set, by --env or by this"
                " launcher; leave all but one out"
            )
    return found


def literal(text: str) -> str:
    """A text that Kubernetes leaves as it is: it fills ``$(NAME)`` in, secrets too."""
    return text.replace("$", "$$")


def secret_name(given: argparse.Namespace) -> str:
    """Of the Secret with what ``--env`` names."""
    return f"{given.name}-env"


def secret(given: argparse.Namespace, values: dict[str, str]) -> dict:
    """The Secret with the values of ``--env``."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret_name(given), "namespace": given.namespace},
        "stringData": values,
    }
