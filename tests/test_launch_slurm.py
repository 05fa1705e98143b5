"""launch/slurm.py: the script that it makes, and how it hands it to sbatch."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.slurm import limit_seconds
from tests.launching import ROOT, launch, notes, stand_in

TRAINER = ("--", "--config=configs/ner.py", "--config.task.labels=A 'B")

SRUN = """#!/bin/bash
exec "$TRAINER"
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >> "$TOLD"
kill -TERM $(<"$TOLD.pid")
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$TOLD"
[[ $1 = requeue ]] || echo "JobState=${STATE:-RUNNING}"
"""


@pytest.fixture
def slurm(tmp_path):
    for name in ("sbatch", "srun", "scancel", "scontrol", "sleep"):
        stand_in(tmp_path, name)
    return lambda *given, **named: launch(tmp_path, "slurm", *given, **named)


def test_a_job_has_a_task_for_each_gpu_and_says_what_it_needs(slurm):
    done = slurm(
        "ner", "--nodes=4", "--gpus-per-node=8", "--cpus-per-task=12", "--mem=900G",
        "--time=24:00:00", "--partition=gpu", "--sbatch=--constraint=h100", *TRAINER,
    )  # fmt: skip
    assert done.code == 0, done.err
    ((words, script),) = done.calls
    assert words == ["sbatch", "--export=ALL"]
    options = [line[8:] for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert options == [
        "--job-name=ner", "--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8",
        "--cpus-per-task=12", "--mem=900G", "--time=24:00:00", "--partition=gpu",
        "--requeue", "--open-mode=append", "--signal=B:TERM@120",
        "--output=build/slurm/ner-%j.out", "--constraint=h100",
    ]  # fmt: skip


def test_the_arguments_reach_the_trainer_as_they_were_given(slurm):
    ((_, script),) = slurm("ner", *TRAINER).calls
    (line,) = (each for each in script.splitlines() if each.startswith("srun "))
    words = shlex.split(line.removesuffix(" &"))
    assert words[words.index("-m") :] == [
        "-m", "jaxlm.main", *TRAINER[1:], "--workdir=runs/ner",
    ]  # fmt: skip


def test_a_container_has_the_gpus_and_the_checkout(slurm, tmp_path):
    done = slurm("ner", "--container=jaxlm.sif", *TRAINER)
    inside = f"apptainer exec --nv --bind={tmp_path} --pwd={tmp_path} jaxlm.sif python"
    assert inside in done.calls[0][1]


def test_a_dry_run_prints_what_would_be_submitted_and_runs_nothing(slurm, tmp_path):
    wet, dry = slurm("ner", *TRAINER), slurm("ner", "--dry-run", *TRAINER)
    assert dry.code == 0 and dry.calls == []
    assert f"sbatch --export=ALL <<'END'\n{wet.calls[0][1]}END\n" in dry.out
    (tmp_path / "build/slurm").rmdir()
    pasted = subprocess.run(
        ["bash", "-c", dry.out],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "NOTES": str(tmp_path / "pasted"),
        },
    )
    assert pasted.returncode == 0 and (tmp_path / "build/slurm").is_dir()
    assert notes(tmp_path / "pasted") == wet.calls


def test_the_script_is_sound_for_shellcheck(slurm, tmp_path):
    ((_, script),) = slurm("ner", *TRAINER).calls
    (tmp_path / "job").write_text(script)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, tmp_path / "job"], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


@pytest.fixture
def job(slurm, tmp_path):
    """Runs the batch script with stand-ins; ``trainer`` is what a task does."""

    def run(trainer, *, signal=False, **variables):
        ((_, script),) = slurm("ner", "--restarts=3", *TRAINER).calls
        for name, text in (
            ("srun", SRUN),
            ("scancel", SCANCEL),
            ("scontrol", SCONTROL),
        ):
            stand_in(tmp_path, name, text)
        stand_in(tmp_path, "sleep", "#!/bin/bash\n")
        stand_in(tmp_path, "task", f"#!/bin/bash\n{trainer}\n")
        told = tmp_path / "told"
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "TOLD": str(told),
            "TRAINER": str(tmp_path / "task"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n1",
            **variables,
        }
        with subprocess.Popen(["bash", "-c", script], env=environment) as began:
            while signal and not (tmp_path / "told.pid").exists():
                time.sleep(0.02)
            if signal:
                began.terminate()
            code = began.wait(30)
        return code, told.read_text() if told.exists() else ""

    return run


SAVES = (
    "trap 'echo saved >>$TOLD; exit 143' TERM; echo $$ >$TOLD.pid; read -t 20 <> <(:)"
)
"""A trainer that is stopped by SIGTERM alone, within 20 seconds."""


def test_a_signal_reaches_the_trainers_which_save_and_the_job_is_queued_again(job):
    code, told = job(SAVES, signal=True)
    assert code == 143
    assert told.splitlines() == [
        "scancel --signal=TERM 7.0",
        "saved",
        "scontrol show job 7",
        "scontrol requeue 7",
    ]


@pytest.mark.parametrize(
    ("trainer", "variables"),
    [
        ("exit 0", {}),
        ("exit 2", {}),
        ("exit 1", {"SLURM_RESTART_COUNT": "3"}),
        ("exit 1", {"STATE": "CANCELLED"}),
    ],
    ids=["finished", "to be mended", "often enough", "cancelled"],
)
def test_a_job_is_not_queued_again(job, trainer, variables):
    code, told = job(trainer, **variables)
    assert code == int(trainer[-1]) and "requeue" not in told


def test_a_job_whose_trainer_failed_is_queued_again(job):
    assert "scontrol requeue 7" in job("exit 1", SLURM_RESTART_COUNT="2")[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("Ner", *TRAINER), "'Ner' is not allowed: at most 40 of a-z, 0-9 and -"),
        (("ner", "--nodes=0", *TRAINER), "'0' is not a whole number of at least 1"),
        (("ner", "--time=soon", *TRAINER), "such as 24:00:00"),
        (("ner", "--partition=a b", *TRAINER), "'a b' is not allowed: letters"),
        (("ner", "--partition=a\n#SBATCH --x", *TRAINER), "no spaces"),
        (("ner", "--sbatch=rm -rf", *TRAINER), "such as --constraint=h100"),
        (("ner",), "missing --config; give them after --"),
        (("ner", "--", "--config=c.py", "--workdir=/data/x"), "is not below runs/"),
        (("ner", "--", "--config=c.py", "--workdir=runs/../x"), "is not below runs/"),
        (("ner", "--env=HF_TOKEN=hunter2", *TRAINER), "give the name alone"),
        (("ner", "--env=JAXLM_UNSET", *TRAINER), "export JAXLM_UNSET first"),
        (("ner", "--", "--config=configs/nre.py"), "no such file in this checkout"),
        (("ner", *TRAINER, "--workdir="), "--workdir is empty"),
        (("ner", "--grace-seconds=65536", *TRAINER), "at most 65535"),
        (("ner", "--time=2:00", *TRAINER), "at most 119, as --time=2:00 is 120 s"),
        (("ner", "--nope", *TRAINER), "--nope"),
        (("ner", *TRAINER, "a\udcff"), "'a\\udcff' is not UTF-8"),
    ],
)
def test_what_is_not_allowed_is_one_line_and_nothing_runs(slurm, given, said):
    done = slurm(*given)
    assert done.code == 2 and done.calls == []
    assert said in done.err and done.err.count("\n") == 1
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("0", 0), ("120", 7200), ("90:30", 5430), ("24:00:00", 86400),
        ("2-00", 172800), ("1-02:03", 93780), ("1-02:03:04", 93784),
    ],
)  # fmt: skip
def test_a_time_limit_is_read_as_slurm_does(time, seconds):
    assert limit_seconds(time) == seconds


def test_a_job_without_a_python_is_not_queued(slurm, tmp_path):
    assert slurm("ner", *TRAINER).code == 0
    (tmp_path / ".venv/bin/python").unlink()
    done = slurm("ner", *TRAINER)
    assert (done.code, done.calls) == (2, [])
    assert ".venv/bin/python is not here" in done.err and done.err.count("\n") == 1
    for other in ("--dry-run", "--python=/opt/python", "--container=jaxlm.sif"):
        assert slurm("ner", other, *TRAINER).code == 0


def test_a_program_that_fails_or_is_missing_is_said(slurm, tmp_path):
    done = slurm("ner", *TRAINER, FAILS="3")
    assert (done.code, done.err) == (
        1,
        "error: sbatch --export=ALL failed (exit code 3)\n",
    )
    done = slurm("ner", *TRAINER, PATH="/usr/bin:/bin:/nowhere")
    if done.code != 1:  # where a real sbatch is, it is the one that fails
        assert done.code == 2 and "sbatch: no such program here" in done.err


def test_who_stops_reading_a_dry_run_sees_no_traceback():
    given = "ner --dry-run -- --config=configs/ner.py"
    command = f"{sys.executable} -m launch.slurm {given} | true"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (141, "")
