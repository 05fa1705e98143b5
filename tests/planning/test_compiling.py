"""What is kept of a compilation, and when it is not trusted."""

import gzip
import json
import subprocess
import sys

import pytest

from jaxlm.planning.compiling import (
    FORMAT,
    MADE,
    Job,
    compiler_flags,
    content_key,
    kept,
)
from jaxlm.planning.topology import parse_topology

FACTS = {"format": FORMAT, **dict.fromkeys(MADE, 1), "exhausted": ""}
PROGRAM = gzip.compress(b"HloModule step" * 100)


def keep(folder, facts=FACTS, program=PROGRAM):
    text = facts if isinstance(facts, str) else json.dumps(facts)
    (folder / "facts.json").write_text(text)
    if program is not None:
        (folder / "program.hlo.gz").write_bytes(program)


def test_what_is_whole_is_kept(tmp_path):
    keep(tmp_path)
    assert kept(tmp_path) == FACTS


def test_what_did_not_fit_has_no_program(tmp_path):
    refused = {"format": FORMAT, "exhausted": "RESOURCE_EXHAUSTED: Used 2G of 1G hbm"}
    keep(tmp_path, refused, None)
    assert kept(tmp_path) == refused


@pytest.mark.parametrize(
    "damaged",
    [
        {"facts": "{"},
        {"facts": "[]"},
        {"facts": {**FACTS, "format": FORMAT - 1}},
        {"facts": {"format": FORMAT}},
        {"program": None},
        {"program": b""},
        {"program": PROGRAM[:-9]},
        {"program": b"x" + PROGRAM},
        {"program": PROGRAM[:20] + b"x" + PROGRAM[21:]},
    ],
)
def test_what_is_damaged_is_as_good_as_none(tmp_path, damaged):
    assert kept(tmp_path) is None
    keep(tmp_path, **damaged)
    assert kept(tmp_path) is None


def test_what_is_told_to_a_compiler_is_in_the_name_of_what_it_made(monkeypatch):
    def key(variable, value):
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
        monkeypatch.setenv(variable, value)
        job = Job(None, parse_topology("h100:8"), {"data": 8})
        return content_key("program", {}, job, {"jax": "1"}, compiler_flags())

    told = [
        key("XLA_FLAGS", ""),
        key("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false"),
        key("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true"),
        key("LIBTPU_INIT_ARGS", "--xla_tpu_enable_x=true"),
    ]
    assert len(set(told)) == 4
    assert told[0] == key("LIBTPU_INIT_ARGS", " ")


def test_a_compilation_ends_with_the_door_that_wants_it():
    """Also where that is killed; else it would go on for minutes, in gigabytes."""
    code = (
        "import multiprocessing, os, threading, time\n"
        "from jaxlm.planning.compiling import _end_with_parent\n"
        "def compile():\n"
        "    threading.Thread(target=_end_with_parent, daemon=True).start()\n"
        "    print('compiling', flush=True)\n"
        "    time.sleep(600)\n"
        "child = multiprocessing.get_context('fork').Process(target=compile)\n"
        "child.start()\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    # Its output ends with the last process that could write there.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -9 and done.stdout == "compiling\n", done.stderr
