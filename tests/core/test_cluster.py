"""What flags, the environment or a cluster say of this process's place."""

import argparse

import pytest

from jaxlm.core.cluster import FLAGS, Place, add_flags, read_flags, shared_flags
from jaxlm.core.errors import UserError
from jaxlm.core.joining import detected, local_devices

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}


def place(*arguments, **environment):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_flags(parser.parse_args(arguments), environment)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in (*SLURM, "CUDA_VISIBLE_DEVICES", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_given_leaves_it_to_the_cluster():
    assert place() == Place() and Place().processes is None


def test_flags_say_it():
    given = ("--coordinator=10.0.0.1:1234", "--processes=4", "--process=3")
    assert place(*given) == Place("10.0.0.1:1234", 4, 3)
    assert place(*given, "--join-seconds=9", "--lost-seconds=8").join_seconds == 9


def test_the_environment_says_it_and_flags_go_before_it():
    said = dict(zip(FLAGS.values(), ("[::1]:80", "2", "1"), strict=True))
    assert place(**said) == Place("[::1]:80", 2, 1)
    own = ("--coordinator=a:1", "--processes=3", "--process=0")
    assert place(*own, **said) == Place("a:1", 3, 0)


def test_one_process_is_alone_on_any_cluster(monkeypatch):
    assert place("--processes=1").processes == 1
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert detected(place("--processes=1")).processes == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--processes=2"], {}, "--processes without --coordinator and --process; all"),
        (["--process=0"], {}, "--process without --coordinator and --processes"),
        (["--coordinator=a:1"], {}, "--coordinator without --processes and --process"),
        ([], {"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID without JAX_COORDINATOR_ADDRESS"),
        # A flag does not complete what the environment begins.
        (["--process=0"], {"JAX_NUM_PROCESSES": "2"}, "--process without --coord"),
        (
            ["--coordinator=a:1", "--processes=2", "--process=2"],
            {},
            "--process=2 is not allowed; of --processes=2 the last is 1",
        ),
        (
            ["--coordinator=a:1", "--processes=two", "--process=0"],
            {},
            "--processes=two: is not a whole number from 1 to",
        ),
        (
            ["--coordinator=a:1", "--processes=1", "--process=1"],
            {},
            "--process=1 is not allowed; of --processes=1 the last is 0",
        ),
        (
            ["--coordinator=a", "--processes=2", "--process=0"],
            {},
            "--coordinator=a: is not HOST:PORT",
        ),
        (
            ["--coordinator=http://a:1", "--processes=2", "--process=0"],
            {},
            "--coordinator=http://a:1: is not HOST:PORT",
        ),
        (["--lost-seconds=1"], {}, "--lost-seconds=1: is not a whole number from 5"),
        (["--join-seconds=1e99"], {}, "--join-seconds=1e99: is not a whole number"),
        ([f"--join-seconds={10**20}"], {}, "is not a whole number from 1 to 604800"),
    ],
)
def test_what_is_half_given_or_wrong_is_refused(arguments, environment, message):
    with pytest.raises(UserError) as caught:
        place(*arguments, **environment)
    assert message in str(caught.value)


def test_what_is_each_process_s_own_is_not_to_be_alike():
    parser = argparse.ArgumentParser()
    parser.add_argument("--best-of")
    add_flags(parser)
    known = parser.parse_args(["--best-of=3", "--process=1", "--join-seconds=9"])
    assert shared_flags(known) == {"--best-of": "3"}


def test_a_door_refuses_it_before_it_waits(call):
    arguments = ("--config=configs/ner.py:tiny", "--processes=2")
    assert "--processes without" in call("main", *arguments).error
    assert "--processes without" in call("evaluate", "--workdir=w", arguments[1]).error


def test_slurm_says_it(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert detected(Place()) == Place("node007:61441", 8, 5, local_devices=(1,))
    assert detected(Place("a:1")).coordinator == "a:1"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert detected(Place()).processes == 1


def test_what_a_cluster_says_wrongly_is_the_users_to_mend(monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": "many"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="SlurmCluster: .*ValueError.*--processes=1"):
        detected(Place())


def test_no_cluster_says_nothing():
    assert detected(Place()) == Place()


@pytest.mark.parametrize(
    ("local", "environment", "expected"),
    [
        (None, {}, None),
        (1, {"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, (1,)),
        (0, {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, None),
        (0, {"SLURM_STEP_TASKS_PER_NODE": "2,1"}, (0,)),
        (0, {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, None),
        (3, {"SLURM_STEP_TASKS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": "3"}, None),
        (3, {"SLURM_STEP_TASKS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1"}, (3,)),
    ],
)
def test_a_process_alone_on_its_machine_has_all_its_devices(
    monkeypatch, local, environment, expected
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert local_devices(local) == expected
