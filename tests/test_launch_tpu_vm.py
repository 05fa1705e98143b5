"""launch/tpu_vm.py on a slice of stand-ins (``tests/slices.py``)."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.queued import Queued, hosts, provide
from launch.shell import Shell
from launch.trainer import default_run
from tests.launching import ROOT, launch, stand_in
from tests.slices import slice_in, until

TRAINER = ("--", "--config=configs/ner.py", "--config.task.labels=A 'B")


@pytest.fixture
def cloud(tmp_path):
    """A folder with the stand-ins, in which launchers run."""
    with slice_in(tmp_path) as folder:
        yield folder


@pytest.fixture
def tpu(cloud):
    def run(verb, *given, plan=(), state="", **variables):
        (cloud / "plan").write_text("".join(f"{each}\n" for each in plan))
        if state:
            (cloud / "state").write_text(f"{state}\n")
        rest = given[given.index("--") :] if "--" in given else ()
        own = given[: len(given) - len(rest)]
        return launch(
            cloud, "tpu_vm", verb, "ner", "--zone=z", *own, *rest,
            CHECKOUT=str(ROOT), **variables,
        )  # fmt: skip

    return run


SLICE = ("--accelerator=v5litepod-16", "--bucket=gs://mine/runs", "--poll-seconds=0")


def codes(cloud):
    """The exit codes of the trainers that have ended."""
    return [each.read_text() for each in cloud.glob("worker-*/.jaxlm/code")]


def verbs(done):
    """What gcloud was asked to do with the queued resource, without questions."""
    said = [words[4] for words, _ in done.calls if words[3] == "queued-resources"]
    return [each for each in said if each != "describe"]


def test_a_slice_is_made_installed_and_trained_on_all_workers(tpu, cloud):
    done = tpu("train", *SLICE, "--spot", *TRAINER, plan=["0"])
    assert done.code == 0, done.err
    assert verbs(done) == ["create", "scp", "ssh", "ssh", "ssh", "ssh"]
    create = next(words for words, _ in done.calls if words[4] == "create")
    assert create[5:] == [
        "ner", "--zone=z", "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=ner", "--spot", "--async",
    ]  # fmt: skip
    assert "ner is ACTIVE" in done.out and "costs until it is deleted" in done.out
    started = (cloud / "arguments").read_text().splitlines()
    assert started == ["-m", "jaxlm.main", *TRAINER[1:], "--workdir=runs/ner"]
    until(lambda: codes(cloud) == ["0\n", "0\n"])  # train waits for the first alone
    assert (cloud / "bucket/runs/ner/metrics.jsonl").read_text() == "0\n"


def test_a_preempted_slice_is_made_anew_and_goes_on_from_the_bucket(tpu, cloud):
    done = tpu("train", *SLICE, "--delete", *TRAINER, plan=["preempted", "0"])
    assert done.code == 0, done.err
    said = verbs(done)
    assert said.count("create") == 2 and said[-1] == "delete"
    assert said.index("delete") < len(said) - 1 - said[::-1].index("create")
    assert "restart 1" in done.out
    assert (cloud / "bucket/runs/ner/metrics.jsonl").read_text() == "preempted\n0\n"


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_what_is_left_of_a_preemption_is_deleted_first(tpu, state):
    done = tpu("create", *SLICE, state=state)
    assert done.code == 0 and verbs(done) == ["delete", "create"]


def test_a_trainer_that_crashes_is_started_again_so_often_and_not_installed(tpu):
    done = tpu("train", *SLICE, "--restarts=1", *TRAINER, plan=["1", "1"])
    assert done.code == 1 and "ended 1; --restarts is reached" in done.err
    assert verbs(done).count("scp") == 1 and "delete" not in verbs(done)


def test_what_the_user_has_to_mend_is_not_tried_again(tpu):
    done = tpu("train", *SLICE, "--delete", *TRAINER, plan=["2"])
    assert done.code == 2 and verbs(done).count("create") == 1
    assert "delete" not in verbs(done)


def test_a_connection_that_is_lost_is_made_again_and_the_trainer_let_be(tpu, cloud):
    (cloud / "cut").touch()
    done = tpu("train", *SLICE, *TRAINER, plan=["until-logs"])
    assert done.code == 0, done.err
    assert "the connection was lost, the trainer was not" in done.out
    assert (cloud / "bucket/runs/ner/metrics.jsonl").read_text() == "until-logs\n"
    assert verbs(done).count("scp") == 1 and "restart" not in done.out


def test_a_run_that_is_alive_is_followed_and_not_started_again(tpu, cloud):
    done = tpu("create", *SLICE)
    done = tpu("install", "--bucket=gs://mine/runs")
    assert done.code == 0, done.err
    assert tpu("start", *TRAINER, plan=["waits"]).code == 0
    until(lambda: (cloud / "arguments").exists())
    follower = tpu_in_background(cloud)
    until(lambda: "logs" in (cloud / "notes").read_text())
    stopped = tpu("stop")
    assert stopped.code == 0, stopped.err
    out, _ = follower.communicate(timeout=30)
    assert follower.returncode == 0
    assert "saved" in out and "stopped 143" in out


def tpu_in_background(cloud):
    words = [sys.executable, "-m", "launch.tpu_vm", "train", "ner", "--zone=z", *SLICE]
    return subprocess.Popen(
        [*words, *TRAINER],
        cwd=cloud,
        env={
            **os.environ,
            "PATH": f"{cloud}:{os.environ['PATH']}",
            "NOTES": str(cloud / "notes"),
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_secret_is_copied_in_a_file_for_its_owner_alone(tpu, cloud):
    given = (*SLICE, "--env=HF_TOKEN", *TRAINER)
    secret = "hunter2 'and' $more"
    done = tpu("train", *given, plan=["0"], HF_TOKEN=secret)
    assert done.code == 0, done.err
    assert (cloud / "token").read_text() == f"token {secret}\n"
    kept = cloud / "worker-0/.jaxlm/env"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not (cloud / "build/launch/ner/jaxlm.env").exists()
    assert "hunter2" not in json.dumps(done.calls) + done.out + done.err


def test_a_dry_run_prints_the_commands_that_would_run_and_runs_none(tpu, cloud):
    given = (*SLICE, "--env=HF_TOKEN")
    dry = tpu("train", *given, "--dry-run", *TRAINER, HF_TOKEN="hunter2")
    assert dry.code == 0 and dry.calls == [] and "hunter2" not in dry.out
    assert not (cloud / "build").exists() and not (cloud / "state").exists()
    wet = tpu("train", *given, *TRAINER, plan=["0"], HF_TOKEN="hunter2")
    lines = [shlex.split(line) for line in dry.out.splitlines()]
    dry_calls = [words for words in lines if words[0] == "gcloud"]
    wet_calls = [words for words, _ in wet.calls]
    assert once(wet_calls) == once(dry_calls)


def once(calls):
    """Calls without the same again, as those that wait."""
    return [each for at, each in enumerate(calls) if each not in calls[:at]]


def test_several_slices_are_named_by_a_prefix(tpu):
    done = tpu("create", *SLICE, "--slices=2", "--reserved", "--valid-until=6h")
    create = next(words for words, _ in done.calls if words[4] == "create")
    assert create[9:] == [
        "--node-count=2", "--node-prefix=ner", "--reserved",
        "--valid-until-duration=6h", "--async",
    ]  # fmt: skip


def test_who_waits_for_long_is_told_so_now_and_then(capsys):
    states = iter(["WAITING_FOR_RESOURCES"] * 9 + ["ACTIVE"])
    minutes = iter(range(100))
    queued = Queued(Shell(dry_run=False), "ner", "z")
    queued.state = lambda: next(states)
    assert not provide(queued, [], 0, clock=lambda: next(minutes) * 60.0)
    assert capsys.readouterr().out.splitlines() == [
        "ner is WAITING_FOR_RESOURCES after 1 min",
        "ner is WAITING_FOR_RESOURCES after 6 min",
        "ner is ACTIVE after 10 min",
    ]


def test_capacity_that_does_not_come_ends_the_wait(tpu):
    done = tpu("create", *SLICE, THEN="FAILED")
    assert done.code == 1 and "ner is FAILED" in done.err
    assert verbs(done) == ["create"]


def test_a_question_that_fails_is_not_taken_for_a_missing_slice(tpu, cloud):
    (cloud / "denied").touch()
    done = tpu("train", *SLICE, *TRAINER)
    assert done.code == 1 and "PERMISSION_DENIED" in done.err
    assert "create" not in verbs(done)


def test_status_says_the_state_of_the_resource_and_of_each_worker(tpu, cloud, capfd):
    tpu("train", *SLICE, *TRAINER, plan=["0"])
    until(lambda: codes(cloud) == ["0\n", "0\n"])
    capfd.readouterr()
    done = tpu("status")
    assert done.out == "ACTIVE\n"
    assert capfd.readouterr().out.count("ended 0: ") == 2


@pytest.mark.parametrize(("given", "asks"), [((), True), (("--yes",), False)])
def test_delete_leaves_the_question_to_gcloud(tpu, cloud, given, asks):
    stand_in(cloud, "gcloud")
    answer = os.memfd_create("answer")
    os.write(answer, b"y\n")
    os.lseek(answer, 0, os.SEEK_SET)
    before = os.dup(0)
    os.dup2(answer, 0)
    try:
        done = tpu("delete", *given)
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(answer)
    ((words, read),) = done.calls
    assert words[4] == "delete" and "--force" in words and read == "y\n"
    assert ("--quiet" not in words) == asks


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("train", "--accelerator=v5litepod-16", *TRAINER), "has several hosts"),
        (
            ("train", "--accelerator=v5litepod-8", "--spot", *TRAINER),
            "--bucket is miss",
        ),
        (("train", "--accelerator=v5litepod-8", "--slices=2", *TRAINER), "several"),
        (("train", "--accelerator=tpu", *TRAINER), "such as v5litepod-16"),
        (("train", *SLICE, "--spot", "--reserved", *TRAINER), "exclude each other"),
        (("train", *SLICE), "missing --config; give them after --"),
        (("train", *SLICE, "--bucket=mine", *TRAINER), "gs://NAME"),
        (("train", *SLICE, "--env=A B", *TRAINER), "give the name alone"),
        (("train", *SLICE, "--valid-until=soon", *TRAINER), "such as 30m or 6h"),
        (("train", *SLICE, "--bucket=gs://mine/..", *TRAINER), "gs://NAME"),
        (("train", *SLICE, "--bucket=gs://BUCKET/runs", *TRAINER), "of a-z, 0-9"),
        (("train", *SLICE, "--create-flag=--zone=b", *TRAINER), "say where"),
        (("train", *SLICE, "--", "--config=c", "--workdir=/x"), "not below runs/"),
        (("train", *SLICE, *TRAINER, "--workdir"), "--workdir is empty"),
        (("train", *SLICE, "--", "--config=configs/nre.py"), "are configs/classify.py"),
        (("stop", *TRAINER), "takes no arguments of the trainer"),
        (("nothing",), "nothing"),
    ],
)
def test_what_is_not_allowed_is_one_line_and_nothing_runs(tpu, given, said):
    done = tpu(*given)
    assert done.code == 2 and done.calls == []
    assert said in done.err and done.err.count("\n") == 1


def test_a_config_that_the_workers_would_not_get_is_refused(tpu, cloud):
    (cloud / "new").touch()
    done = tpu("train", *SLICE, *TRAINER)
    assert (done.code, done.calls) == (2, []) and "is not in HEAD" in done.err
    given = ("--", "--config=../bucket/mine.py")  # theirs, which cannot be seen here
    assert tpu("train", *SLICE, *given, plan=["0"]).code == 0


def test_a_bucket_whose_folders_are_not_renamed_at_once_is_refused(tpu):
    done = tpu("train", *SLICE, *TRAINER, NAMESPACE="")
    assert done.code == 2 and "--enable-hierarchical-namespace" in done.err
    assert verbs(done) == []


@pytest.mark.parametrize(
    ("accelerator", "count"),
    [
        ("v5litepod-1", 1), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v6e-256", 64),
        ("v4-8", 1), ("v5p-8", 1), ("v5p-128", 16), ("v3-32", 4),
    ],
)  # fmt: skip
def test_hosts_of_a_slice(accelerator, count):
    assert hosts(accelerator) == count


@pytest.mark.parametrize("spec", ["configs/ner.py", "configs/ner.py:tiny", "a/b.c:d:e"])
def test_the_run_is_named_as_the_trainer_names_it(spec):
    from jaxlm.main import default_workdir

    assert Path("runs") / default_run(spec) == default_workdir(spec)
