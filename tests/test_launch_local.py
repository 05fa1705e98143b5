"""launch/local.py: how processes are started, told to stop, and what became of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local

SCRIPT = Path(local.__file__)
STAND_IN = """
import os, signal, sys, time
process = int(os.environ["JAX_PROCESS_ID"])
print("process", process, "of", os.environ["JAX_NUM_PROCESSES"], *sys.argv[1:])
sys.stdout.flush()
{act}
"""
"""In place of a door: no jax, and it does what a test wants."""


@pytest.fixture
def door(tmp_path):
    """Starts the script over stand-ins that act as told."""
    package = tmp_path / "jaxlm"
    package.mkdir()
    (package / "__init__.py").touch()

    def start(act, *arguments, text=STAND_IN):
        (package / "main.py").write_text(text.format(act=act))
        return subprocess.Popen(
            [sys.executable, SCRIPT, *arguments],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_a_dry_run_prints_what_each_process_would_be():
    done = subprocess.run(
        [
            *(sys.executable, SCRIPT, "--processes=2", "--devices=3", "--port=1234"),
            *("--dry-run", "--", "--config=configs/ner.py", "--workdir=a run"),
        ],
        env=os.environ | {"XLA_FLAGS": f"{local.DEVICES}=8 --xla_dump_to=x"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == (
        "JAX_COORDINATOR_ADDRESS=localhost:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0"
        f" JAX_PLATFORMS=cpu XLA_FLAGS='--xla_dump_to=x {local.DEVICES}=3'"
        f" {sys.executable} -m jaxlm.main --config=configs/ner.py '--workdir=a run'"
    )
    assert "JAX_PROCESS_ID=1" in second
    assert second.endswith(">>'a run/logs/process-1.log' 2>&1")
    assert not Path("a run").exists()


def test_the_first_process_prints_and_the_others_write_files(door, tmp_path):
    out, err = door("", "--processes=3", "--", "--workdir", "w", "-x").communicate()
    assert (out, err) == ("process 0 of 3 --workdir w -x\n", "")
    for process in (1, 2):
        log = (tmp_path / "w" / "logs" / f"process-{process}.log").read_text()
        assert log == f"process {process} of 3 --workdir w -x\n"


@pytest.mark.parametrize(
    ("act", "code", "text"),
    [
        ("sys.exit(7 if process == 1 else 0)", 7, "exit code 7; see w/logs/process-1"),
        (
            "process == 1 and os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "process 1 of 2 ended first: SIGKILL; see w/logs/process-1.log",
        ),
        # The other does not notice, and is killed.
        (
            "time.sleep(60 * process)\nsys.exit(3)",
            3,
            "process 0 of 2 ended first: exit",
        ),
    ],
)
def test_the_code_is_that_of_the_process_that_failed_first(door, act, code, text):
    run = door(act, "--grace-seconds=0.5", "--", "--workdir=w")
    _, err = run.communicate(timeout=30)
    assert run.returncode == code
    assert text in err and err.count("\n") == 1


WAITS = """
def note(number, frame):
    print("told", number, flush=True)
    if {stubborn}:
        return
    sys.exit(128 + number)
signal.signal({number}, note)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_to_all(door, tmp_path, number):
    run = door(WAITS.format(number=int(number), stubborn=False), "--", "--workdir=w")
    wait_for(tmp_path / "w" / "logs" / "process-1.log", "ready")
    assert [run.stdout.readline(), run.stdout.readline()][1] == "ready\n"
    run.send_signal(number)
    out, _ = run.communicate(timeout=30)
    assert out == f"told {int(number)}\n"
    assert run.returncode == 128 + number
    assert f"told {int(number)}" in (tmp_path / "w/logs/process-1.log").read_text()


def test_a_second_signal_kills(door, tmp_path):
    run = door(WAITS.format(number=15, stubborn=True), "--", "--workdir=w")
    log = tmp_path / "w" / "logs" / "process-1.log"
    wait_for(log, "ready")
    run.stdout.readline(), run.stdout.readline()
    run.terminate()
    wait_for(log, "told")
    run.stdout.readline()
    run.terminate()
    run.communicate(timeout=30)
    assert run.returncode == 128 + signal.SIGKILL


def wait_for(path, text):
    until = time.monotonic() + 30
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("rest", "folder"),
    [
        (["--workdir=a"], "a/logs"),
        (["-x", "--workdir", "b", "-y"], "b/logs"),
        (["--workdir=a", "--workdir=c"], "c/logs"),  # the door, too, takes the last
        (["--config=configs/ner.py:tiny"], "runs/ner-tiny/logs"),
        (["--config", "a.py", "--workdir=b"], "b/logs"),
        (["-x"], "logs"),
    ],
)
def test_logs_lie_in_the_workdir(rest, folder):
    assert local.parse(["--", *rest]).logs == Path(folder)
    assert local.parse(["--logs=elsewhere", "--", *rest]).logs == Path("elsewhere")


def test_the_workdir_is_the_one_that_main_takes():
    from jaxlm.main import default_workdir

    for spec in ("configs/ner.py", "configs/ner.py:tiny", "a/b.c.py:", ":x"):
        assert local.workdir_of("main", ["--config", spec]) == default_workdir(spec)
    assert local.workdir_of("predict", ["--config=configs/ner.py"]) == Path()


REFUSES = 'import sys\nprint("error: no", file=sys.stderr)\nsys.exit(2)'


def test_what_all_refuse_is_said_once_and_leaves_nothing(door, tmp_path):
    run = door(REFUSES, "--", "--workdir=runs/w", text="{act}")
    _, err = run.communicate(timeout=30)
    assert (run.returncode, err) == (2, "error: no\n")
    assert not (tmp_path / "runs").exists()


def test_a_log_that_says_more_than_a_refusal_stays(door, tmp_path):
    run = door(REFUSES, "--", "--workdir=runs/w")  # a stand-in says who it is, first
    run.communicate(timeout=30)
    assert "error: no" in (tmp_path / "runs/w/logs/process-1.log").read_text()


def test_none_is_started_where_logs_cannot_be_written(door, tmp_path):
    """The first would wait for the others, who never come."""
    (tmp_path / "w").touch()
    run = door("time.sleep(60)", "--", "--workdir=w")
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out) == (2, "")
    assert err == "error: w/logs: Not a directory\n"


def test_one_that_cannot_be_started_ends_those_that_were(door, tmp_path):
    (tmp_path / "w/logs/process-1.log").mkdir(parents=True)
    run = door("time.sleep(60)", "--", "--workdir=w")
    _, err = run.communicate(timeout=30)  # which is also the first one's output
    assert run.returncode == 2
    assert err == "error: w/logs/process-1.log: Is a directory\n"


@pytest.mark.parametrize(
    "flag",
    [
        *("--processes=0", "--processes=9999", "--devices=x", "--door=export"),
        *("--grace-seconds=nan", "--port=0", "--port=65536", "--config=x.py"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        local.parse([flag])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert flag.partition("=")[0] in said
