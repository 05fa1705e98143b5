"""launch/jobset.py: manifests that fit the real schemas, and how kubectl gets them.

The schemas are the pydantic models of kubeflow_trainer_api, which are generated from
the OpenAPI of JobSet and of Kubernetes.
"""

import os
import subprocess

import pytest
import yaml
from kubeflow_trainer_api import models

from launch.as_yaml import as_yaml
from tests.launching import launch, notes, stand_in

TRAINER = ("--", "--config=configs/ner.py:tiny", "--config.task.labels=A 'B")
TPU = ("tpu", "ner", "--image=r/jaxlm:tpu", "--topology=v5e:4x4", "--volume=pvc:runs")
GPU = ("gpu", "ner", "--image=r/jaxlm:cuda12", "--nodes=2", "--volume=pvc:runs")
APPLY = ["kubectl", "apply", "--server-side", "-f", "-"]


@pytest.fixture
def kubectl(tmp_path):
    stand_in(tmp_path, "kubectl")
    return lambda *given, **named: launch(tmp_path, "jobset", *given, **named)


@pytest.fixture
def jobset(kubectl):
    """The JobSet that is applied; its pod and container beside it."""

    def made(*given):
        done = kubectl(*given, *TRAINER)
        assert done.code == 0, done.err
        ((words, text),) = done.calls
        assert words == APPLY
        found = yaml.safe_load(text)
        job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
        return (
            found,
            job,
            job["template"]["spec"],
            job["template"]["spec"]["containers"],
        )

    return made


def refused_by_schema(manifest):
    """What the schema says against a JobSet: a wrong type, or a field it has not."""
    try:
        known = models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
    except ValueError as problem:
        return str(problem)
    return "" if known == manifest else "a field that is not known"


ALL = (
    "--env=HF_TOKEN", "--spot", "--namespace=ml", "--service-account=jaxlm",
    "--set=XLA_FLAGS=--a=b --c", "--node-selector=pool=big", "--run-as=0",
    "--restarts=3", "--grace-seconds=25",
)  # fmt: skip


@pytest.mark.parametrize("volume", ["pvc:runs", "gs://mine/some/runs"])
@pytest.mark.parametrize("options", [(), ALL], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", [TPU, GPU], ids=["tpu", "gpu"])
def test_a_manifest_fits_the_schemas(kubectl, kind, options, volume):
    given = (*kind[:-1], f"--volume={volume}", *options, *TRAINER)
    done = kubectl(*given, HF_TOKEN="hunter2")
    assert done.code == 0, done.err
    found = yaml.safe_load(done.calls[-1][1])
    assert (found["apiVersion"], found["kind"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
    )
    assert refused_by_schema(found) == ""


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("spec", "failurePolicies", {}),
        ("job", "completions", "4"),
        ("pod", "terminationGracePeriod", 120),
        ("container", "env", [{"nam": "A"}]),
    ],
)
def test_the_schemas_refuse_what_is_wrong(jobset, where, key, value):
    found, job, pod, (container,) = jobset(*TPU)
    places = {"spec": found["spec"], "job": job, "pod": pod, "container": container}
    places[where][key] = value
    assert refused_by_schema(found) != ""


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"),
    [
        ("v5e:1x1", 1, 1),
        ("v5e:2x4", 1, 8),
        ("v5e:4x4", 4, 4),
        ("v6e:16x16", 64, 4),
        ("v5p:2x2x1", 1, 4),
        ("v5p:4x4x4", 16, 4),
        ("v4:2x2x4", 4, 4),
        ("tpu7x:2x2x2", 2, 4),
    ],
)
def test_a_slice_has_a_pod_for_each_host_with_all_its_chips(
    jobset, topology, hosts, chips
):
    _, job, pod, (container,) = jobset(*TPU, f"--topology={topology}")
    assert job["completions"] == job["parallelism"] == hosts
    assert container["resources"]["limits"] == {"google.com/tpu": str(chips)}
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert shape == topology.partition(":")[2]


def test_several_slices_are_several_jobs_each_in_one_pool_of_nodes(jobset):
    found, *_ = jobset(*TPU, "--slices=2")
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert list(found["metadata"]["annotations"].values()) == [
        "cloud.google.com/gke-nodepool"
    ]


def test_gpu_nodes_know_their_coordinator_their_number_and_their_place(jobset):
    _, job, pod, (container,) = jobset(*GPU, "--gpus-per-node=4")
    assert (job["completionMode"], job["completions"]) == ("Indexed", 2)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    variables = {each.pop("name"): each for each in container["env"]}
    assert variables["JAX_COORDINATOR_ADDRESS"] == {"value": "ner-gpu-0-0.ner:8476"}
    assert variables["JAX_NUM_PROCESSES"] == {"value": "2"}
    field = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_the_arguments_reach_the_trainer_and_runs_lie_on_the_volume(jobset):
    *_, pod, (container,) = jobset(*TPU)
    assert container["args"] == [*TRAINER[1:], "--workdir=/runs/ner-tiny"]
    assert container["volumeMounts"] == [{"name": "runs", "mountPath": "/runs"}]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "runs"}


def test_kubernetes_fills_nothing_in_what_it_hands_on(kubectl):
    given = "--config.data.train=$(HF_TOKEN) $HOME $$"
    done = kubectl(*TPU, "--set=A=$(id)", *TRAINER, given)
    (container,) = _pod(done.calls[0][1])["containers"]
    assert container["args"][2] == "--config.data.train=$$(HF_TOKEN) $$HOME $$$$"
    assert container["env"][0] == {"name": "A", "value": "$$(id)"}


def test_a_bucket_is_mounted_without_caches_for_the_user_of_the_trainer(jobset):
    _, job, pod, _ = jobset(*TPU[:-1], "--volume=gs://mine/a/runs", "--run-as=7")
    csi = pod["volumes"][0]["csi"]
    assert csi["volumeAttributes"] == {
        "bucketName": "mine",
        "mountOptions": "metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"
        ",uid=7,gid=7,only-dir=a/runs",
    }
    annotations = job["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}


def test_a_lost_pod_starts_all_again_and_a_users_error_none(jobset):
    found, job, pod, _ = jobset(*TPU, "--restarts=5", "--grace-seconds=25")
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert pod["terminationGracePeriodSeconds"] == 25
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    (rule,) = found["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_a_trainer_is_nobody_special(jobset):
    *_, pod, (container,) = jobset(*TPU)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_a_secret_goes_by_standard_input_and_is_never_printed(kubectl, tmp_path):
    given = (*TPU, "--env=HF_TOKEN", *TRAINER)
    done = kubectl(*given, HF_TOKEN="hunter2")
    (words, text), (others, manifest) = done.calls
    assert words == others == APPLY
    found = yaml.safe_load(text)
    assert found["stringData"] == {"HF_TOKEN": "hunter2"}
    reference = {"secretKeyRef": {"name": found["metadata"]["name"], "key": "HF_TOKEN"}}
    assert "hunter2" not in manifest + done.out + done.err
    (container,) = _pod(manifest)["containers"]
    assert {"name": "HF_TOKEN", "valueFrom": reference} in container["env"]


def _pod(manifest):
    jobs = yaml.safe_load(manifest)["spec"]["replicatedJobs"]
    return jobs[0]["template"]["spec"]["template"]["spec"]


def test_a_dry_run_prints_what_can_be_pasted_without_the_secret(kubectl, tmp_path):
    given = (*TPU, "--env=HF_TOKEN")
    wet = kubectl(*given, *TRAINER, HF_TOKEN="hunter2")
    dry = kubectl(*given, "--dry-run", *TRAINER, HF_TOKEN="hunter2")
    assert dry.code == 0 and dry.calls == [] and "hunter2" not in dry.out + dry.err
    pasted = tmp_path / "pasted"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "NOTES": str(pasted),
        "HF_TOKEN": "hunter2",
    }
    done = subprocess.run(["bash", "-c", dry.out], env=environment)
    assert done.returncode == 0
    read = [(words, yaml.safe_load(text)) for words, text in notes(pasted)]
    assert read == [(words, yaml.safe_load(text)) for words, text in wet.calls]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((*TPU, "--topology=v9:4x4"), "'v9:4x4' is not allowed: such as v5e:4x4"),
        ((*TPU, "--topology=v5p:3x1x1"), "v5p has 2x2x1, 2x2x2, 2x2x4, 2x4x4, and thr"),
        ((*TPU, "--topology=v5p:4x4"), "v5p:4x4: no such slice"),
        ((*TPU, "--topology=v5e:3x4"), "v5e has 1x1, 2x2, 2x4, 4x4"),
        ((*TPU, "--topology=v5e:4x4x4"), "v5e:4x4x4: no such slice"),
        ((*TPU, "--chips-per-host=3"), "has 16 chips, which hosts of 3 do not make up"),
        ((*GPU, "--set=JAX_PROCESS_ID=1"), "JAX_PROCESS_ID is given twice"),
        ((*GPU, "--set=A=1", "--set=A=2"), "the variable A is given twice"),
        ((*TPU, "--topology=v5e:2x4", "--slices=2"), "take a larger --topology"),
        ((*TPU, "--volume=/data"), "pvc:CLAIM or gs://BUCKET"),
        ((*TPU, "--volume=gs://BUCKET/runs"), "in small letters"),
        ((*TPU, "--namespace=-a"), "at most 63 of a-z"),
        (
            (*TPU, "--node-selector=cloud.google.com/gke-tpu-topology=2x2"),
            "gke-tpu-topology is 4x4 already",
        ),
        ((*TPU, "--set=HF_TOKEN"), "NAME=VALUE"),
        ((*TPU, "--env=HF_TOKEN=hunter2"), "give the name alone"),
        ((*GPU, "--nodes=none"), "'none' is not a whole number of at least 1"),
        (("gpu", "ner", "--image=x", "--nodes=1"), "--volume"),
        (("npu", "ner"), "npu"),
        ((*GPU, "--image=a b"), "'a b' is not allowed"),
    ],
)
def test_what_is_not_allowed_is_one_line_and_nothing_runs(kubectl, given, said):
    done = kubectl(*given, *TRAINER)
    assert done.code == 2 and done.calls == []
    assert said in done.err and done.err.count("\n") == 1
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"b": [1, {"c": "d", "e": [[True]]}, "f"]}, "g": [], "h": {}},
        ["yes", "No", "null", "~", "1", "1e3", "0x1", "a: b", "a #b", "", " x", "x\ny"],
        {"x/y.z": "4x4", "on": "é", "tag": "!x", "star": "*x", "dash": "- x"},
        ["\N{GRINNING FACE}", "a\u2028b\x85c\x7f", "\\ud83d", "\t\0"],
    ],
)
def test_yaml_reads_what_was_written(value):
    assert yaml.safe_load(as_yaml(value)) == value
